"""One wire of the lab and its faults: silent or random loss for each direction, carrier loss, flapping.

The fault sits between the nodes, in a namespace of its own: traffic, probes and reflections all cross it, and
nothing on either node is touched. A fault is stamped with CLOCK_MONOTONIC when it takes effect.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal, get_args

from mapek.errors import ConfigError
from mapek.simulations.netns import Namespace
from mapek.simulations.topology import LinkSpec
from mapek.simulations.wire_program import WireProgram

Direction = Literal["both", "ab", "ba"]


@dataclass(frozen=True)
class WireCounts:
    """Frames since the lab was opened, one direction; `flow_*` counts the measured flow alone."""

    forwarded: int
    dropped: int
    flow_forwarded: int
    flow_dropped: int


class Wire:
    """What lies between the two ends of a link."""

    def __init__(
        self, spec: LinkSpec, namespace: Namespace, program: WireProgram, ends: tuple[int, int]
    ) -> None:
        self.spec = spec
        self._namespace, self._program, self._ends = namespace, program, ends

    def fault(self, direction: Direction = "both", loss: float = 1.0) -> int:
        """Lose each frame of a direction with probability `loss`, from now on; returns when that was, in ns.

        Replaces what was set for that direction; the other direction keeps its own.
        """
        if direction not in get_args(Direction) or not 0.0 <= loss <= 1.0:
            raise ConfigError(
                "set fault", f"wire {self.spec.name}", f"{direction} {loss}", "see wire.Direction"
            )
        below = round(loss * (1 << 32))
        now = time.monotonic_ns()
        for name, end in zip(("ab", "ba"), self._ends, strict=True):
            if direction in ("both", name):
                self._program.ends["drop_below"][end] = below
        return now

    def clear(self) -> int:
        """Lose nothing from now on; returns when that was, in ns. Does not touch the carrier."""
        return self.fault("both", 0.0)

    def counts(self, direction: Literal["ab", "ba"]) -> WireCounts:
        """What came in on the side where `direction` begins."""
        row = self._program.counts[self._ends[0 if direction == "ab" else 1]]
        return WireCounts(
            *(int(row[name]) for name in ("forwarded", "dropped", "flow_forwarded", "flow_dropped"))
        )

    async def carrier(self, up: bool) -> int:
        """Take the carrier from both nodes' ends at once, or give it back; returns when it began, in ns."""
        now = time.monotonic_ns()

        def both() -> None:
            for end in self._ends:
                self._namespace.netlink().link("set", index=end, state="up" if up else "down")

        await self._namespace.run(both)
        return now

    @asynccontextmanager
    async def flapping(self, down_s: float, up_s: float) -> AsyncIterator[int]:
        """While open: silent both ways for `down_s`, fine for `up_s`, and so on; yields the first moment.

        Ends fine, whatever phase it is in.
        """
        if min(down_s, up_s) < 0.001:
            raise ConfigError(
                "flap", f"wire {self.spec.name}", f"{down_s} s down, {up_s} s up", "take >= 1 ms each"
            )
        start = self.fault()

        async def flap() -> None:
            while True:
                await asyncio.sleep(down_s)
                self.clear()
                await asyncio.sleep(up_s)
                self.fault()

        task = asyncio.create_task(flap())
        try:
            yield start
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self.clear()
