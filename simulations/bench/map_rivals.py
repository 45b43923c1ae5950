"""What other tools take for what our readers do: `bpftool -j map dump`, its output parsed."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from asyncio.subprocess import DEVNULL, PIPE

from mapek.errors import FeatureError, PermanentError


async def bpftool(map_id: int) -> int:
    """Nanoseconds that `bpftool -j map dump` and parsing its output take.

    Raises FeatureError when it is not installed, PermanentError when it fails.
    """
    found = shutil.which("bpftool", path="/usr/sbin:/usr/local/sbin:/usr/bin:/sbin")
    if found is None:
        raise FeatureError("read map", map_id, "bpftool is not installed", "apt-get install bpftool")
    start = time.perf_counter_ns()
    process = await asyncio.create_subprocess_exec(
        found, "-j", "map", "dump", "id", str(map_id), stdout=PIPE, stderr=DEVNULL
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise PermanentError("read map", map_id, "bpftool failed", "run bpftool map dump by hand")
    json.loads(output)
    return time.perf_counter_ns() - start
