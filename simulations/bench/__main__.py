"""`python -m mapek.simulations.bench [SECTION ...]`: the bench at full counts, as root."""

import asyncio
import sys

from mapek.errors import MapekError
from mapek.simulations.bench.run import run_bench

try:
    done = asyncio.run(run_bench(names=sys.argv[1:]))
except MapekError as error:
    sys.exit(f"bench: {error}")
except KeyboardInterrupt:
    sys.exit(130)
sys.exit(0 if done.complete else 1)
