"""CPU hogs, one on each core: the noise beside which detection has to stay calm."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mapek.simulations.process import end, start_child


@asynccontextmanager
async def hogs(wanted: bool = True) -> AsyncIterator[int]:
    """While open, one hog spins on each CPU that this process may use; yields how many (0 if not wanted)."""
    processes = []
    try:
        for cpu in sorted(os.sched_getaffinity(0)) if wanted else ():
            processes.append(await start_child("hog", cpu))
        yield len(processes)
    finally:
        await asyncio.gather(*(end(process, grace=1.0) for process in processes))
