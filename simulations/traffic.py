"""The flow both ways between two nodes, and which wires it takes, found from the wires' own counters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import numpy as np

from mapek.errors import TemporaryError
from mapek.simulations.flow import FIRST_PORT, Flow, FlowWindow
from mapek.simulations.lab import Lab
from mapek.simulations.topology import Family
from mapek.simulations.wire import Wire

_SPAN_S = 0.02  # twenty datagrams decide


class Traffic:
    """Two flows: `there` from a to b, `back` from b to a."""

    def __init__(self, lab: Lab, there: Flow, back: Flow) -> None:
        self._lab, self.there, self.back = lab, there, back

    def windows(self, start_ns: int, end_ns: int) -> tuple[FlowWindow, FlowWindow]:
        """Both directions' judgement of a span that ended at least some milliseconds ago."""
        return self.there.window(start_ns, end_ns), self.back.window(start_ns, end_ns)

    def flowing(self, *, span_s: float = _SPAN_S) -> bool:
        """Whether both directions brought nearly all that was due in the last `span_s` seconds."""
        start = time.monotonic_ns() - int(span_s * 1e9)
        due = 0.75 * span_s * self.there.rate
        return all(len(flow.arrivals(start)) >= due for flow in (self.there, self.back))

    async def settled(self, timeout: float) -> None:
        """Wait until both directions flow; raises TemporaryError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not self.flowing():
            if time.monotonic() > deadline:
                raise TemporaryError(
                    "wait for", f"flow {self.there.direction}", "it does not arrive both ways"
                )
            await asyncio.sleep(0.01)

    async def carrier_of(self, direction: Literal["ab", "ba", "both"]) -> Wire:
        """The wire that carries a direction now; for "both" the one with more of the two together.

        Raises TemporaryError when no wire carries any.
        """
        ways: tuple[Literal["ab", "ba"], ...] = ("ab", "ba") if direction == "both" else (direction,)
        wires = list(self._lab.wires.values())

        def look() -> list[int]:
            return [
                sum(
                    c.flow_forwarded + c.flow_dropped
                    for c in (wire.counts(self._as_laid(wire, way)) for way in ways)
                )
                for wire in wires
            ]

        before = look()
        await asyncio.sleep(_SPAN_S)
        moved = np.array(look()) - np.array(before)
        if moved.max() <= 0:
            raise TemporaryError(
                "find", "the wire that carries the flow", "no wire does", "start the flow first"
            )
        return wires[int(moved.argmax())]

    def arrived_by(self, time_ns: int) -> tuple[str | None, str | None]:
        """The links by which the last datagrams before a moment came, there and back; None where none did."""
        found = []
        for flow in (self.there, self.back):
            before = flow.arrivals(time_ns - 50_000_000)
            before = before[before["arrived_ns"] < time_ns]
            interfaces = self._lab.nodes[flow.target.name].interfaces
            found.append(interfaces.get(int(before["ifindex"][-1])) if len(before) else None)
        return found[0], found[1]

    def _as_laid(self, wire: Wire, way: Literal["ab", "ba"]) -> Literal["ab", "ba"]:
        # "ab" of the traffic runs from `there.source`; a wire may have been laid the other way round.
        if wire.spec.b == self.there.source or wire.spec.a == self.back.source:
            return "ba" if way == "ab" else "ab"
        return way


@asynccontextmanager
async def traffic(
    lab: Lab, a: str = "a", b: str = "b", *, family: Family = 4, rate: int = 1000, number: int = 0
) -> AsyncIterator[Traffic]:
    """Run the flow both ways while open; several at once need different `number`s (0 to 63)."""
    sides = [lab.nodes[name] for name in (a, b)]
    one, other = ((node.spec, node.namespace) for node in sides)
    port = FIRST_PORT + number
    async with (
        Flow(one, other, family=family, rate=rate, port=port) as there,
        Flow(other, one, family=family, rate=rate, port=port) as back,
    ):
        yield Traffic(lab, there, back)
