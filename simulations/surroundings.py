"""A touchpoint without a loop around it, opened and closed as the loop would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

from mapek.clock import RealClock
from mapek.contracts import Surroundings, Touchpoint
from mapek.knowledge import Knowledge, Topology

T = TypeVar("T", bound=Touchpoint)


@asynccontextmanager
async def opened(touchpoint: T, topology: Topology) -> AsyncIterator[T]:
    """Open it; its tasks end and it is closed at the end. What it emits is dropped."""
    tasks: set[asyncio.Future[None]] = set()

    def spawn(work: Awaitable[None]) -> None:
        tasks.add(asyncio.ensure_future(work))

    clock = RealClock()
    try:
        await touchpoint.open(Surroundings(lambda event: None, clock, Knowledge(topology), spawn))
        yield touchpoint
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await touchpoint.close()
        clock.close()
