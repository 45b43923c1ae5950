"""The machine's own stalls, metered on every CPU beside each measurement, to blame nobody else for them."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import Process
from types import TracebackType
from typing import Self

from mapek.simulations.process import end, start_child
from mapek.simulations.shared_ring import STALLED_TYPE, SharedRing


class StallMeter:
    """A real-time 1 ms timer on each CPU this process may use; keeps latenesses of at least 0.2 ms."""

    def __init__(self, *, period_ns: int = 1_000_000, report_ns: int = 200_000, priority: int = 60) -> None:
        self._period_ns, self._report_ns, self._priority = period_ns, report_ns, priority
        self._rings: list[SharedRing] = []
        self._processes: list[Process] = []

    async def __aenter__(self) -> Self:
        try:
            for cpu in sorted(os.sched_getaffinity(0)):
                ring = SharedRing(f"stalls-{cpu}", STALLED_TYPE, 1 << 16)
                self._rings.append(ring)
                arguments = (cpu, self._period_ns, self._report_ns, self._priority, ring.fd)
                self._processes.append(await start_child("stall_meter", *arguments, pass_fds=(ring.fd,)))
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        await asyncio.gather(*(end(process, grace=1.0) for process in self._processes))
        for ring in self._rings:
            ring.close()

    def worst_ms(self, start_ns: int, end_ns: int) -> float:
        """The longest stall on any CPU that overlaps the window, in ms; 0 when none was worth a record."""
        worst = 0
        for ring in self._rings:
            found = ring.since("due_ns", start_ns - 1_000_000_000)
            ends = found["due_ns"] + found["late_ns"]
            hit = found["late_ns"][(ends >= start_ns) & (found["due_ns"] <= end_ns)]
            worst = max(worst, int(hit.max()) if len(hit) else 0)
        return worst / 1e6
