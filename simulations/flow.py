"""The measured flow: numbered datagrams at a steady pace between two nodes, judged by their arrivals.

An outage is the longest gap between two arrivals, by the receiver's kernel stamps: what an application
would have felt. How late sender and reader were is measured beside it, so that a gap of their making can be
told.
"""

from __future__ import annotations

import asyncio
from asyncio.subprocess import Process
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mapek.simulations.netns import Namespace
from mapek.simulations.process import end, start_child
from mapek.simulations.shared_ring import ARRIVED_TYPE, SENT_TYPE, Records, SharedRing
from mapek.simulations.topology import Family, NodeSpec

FIRST_PORT = 47808  # lab_wire.h counts what goes to these ports apart
_CAPACITY = 1 << 19  # at 1 kHz more than eight minutes


@dataclass(frozen=True)
class FlowWindow:
    """What one direction of the flow went through between two moments.

    `outage_ms` is the longest gap between arrivals, in ms, with its ends in `gap_ns`; `recovered` says
    whether anything arrived after that gap. `sent` and `lost` count datagrams sent within the window.
    `changes` counts how often the arriving interface changed. Latenesses are the worst of the window, in
    ms.
    """

    direction: str
    outage_ms: float
    gap_ns: tuple[int, int]
    recovered: bool
    sent: int
    lost: int
    changes: int
    sender_late_ms: float
    reader_late_ms: float

    @property
    def lost_percent(self) -> float:
        """Share of the datagrams that never arrived."""
        return 100.0 * self.lost / self.sent if self.sent else 0.0


def longest_gap(arrived_ns: NDArray[np.uint64], start_ns: int, end_ns: int) -> tuple[int, int, bool]:
    """Ends of the longest silence within a window, and whether an arrival ended it.

    `arrived_ns` is sorted. The window's own edges bound the silence before the first and after the last
    arrival.
    """
    inside = arrived_ns[(arrived_ns >= start_ns) & (arrived_ns <= end_ns)].astype(np.int64)
    edges = np.concatenate((np.array([start_ns], np.int64), inside, np.array([end_ns], np.int64)))
    gaps = np.diff(edges)
    worst = int(np.argmax(gaps))
    return int(edges[worst]), int(edges[worst + 1]), worst + 1 < len(edges) - 1


class Flow:
    """One direction, from `source` to `target`; running between open and close."""

    def __init__(
        self,
        source: tuple[NodeSpec, Namespace],
        target: tuple[NodeSpec, Namespace],
        *,
        family: Family = 4,
        rate: int = 1000,
        port: int = FIRST_PORT,
        priority: int = 50,
    ) -> None:
        (self.source, self._from), (self.target, self._to) = source, target
        self.family, self.rate, self.port, self.priority = family, rate, port, priority
        self.direction = f"{self.source.name}>{self.target.name}"
        self.sent = SharedRing(f"sent-{self.direction}", SENT_TYPE, _CAPACITY)
        self.arrived = SharedRing(f"arrived-{self.direction}", ARRIVED_TYPE, _CAPACITY)
        self._processes: list[Process] = []

    async def open(self) -> Self:
        """Start receiver, then sender."""
        here, there = self.source.loopback(self.family), self.target.loopback(self.family)
        receive = (self._to.pid, there, self.port, self.priority, self.arrived.fd)
        period_ns = 1_000_000_000 // self.rate
        send = (self._from.pid, here, there, self.port, period_ns, self.priority, self.sent.fd)
        try:
            self._processes.append(await start_child("flow_receive", *receive, pass_fds=(self.arrived.fd,)))
            self._processes.append(await start_child("flow_send", *send, pass_fds=(self.sent.fd,)))
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """End both processes; what they measured is gone too. Closing twice is fine."""
        processes, self._processes = self._processes, []
        await asyncio.gather(*(end(process, grace=1.0) for process in processes))
        self.sent.close()
        self.arrived.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def arrivals(self, start_ns: int) -> Records:
        """Arrivals (`ARRIVED_TYPE`) from `start_ns` on, in order of arrival."""
        return self.arrived.since("arrived_ns", start_ns)

    def last_arrival(self) -> Records:
        """The newest arrival: an array of one, or of none."""
        return self.arrived.records(self.arrived.count - 1, self.arrived.count)

    def window(self, start_ns: int, end_ns: int) -> FlowWindow:
        """Judge start..end; call it a little after `end_ns`, when what was on the wire has arrived."""
        sent = self.sent.since("sent_ns", start_ns)
        sent = sent[sent["sent_ns"] < end_ns]
        arrived = self.arrivals(start_ns)
        low, high, recovered = longest_gap(np.sort(arrived["arrived_ns"]), start_ns, end_ns)
        from_window = np.unique(
            arrived["sent_ns"][(arrived["sent_ns"] >= start_ns) & (arrived["sent_ns"] < end_ns)]
        )
        ways = arrived[arrived["arrived_ns"] <= end_ns]
        ways = ways[np.argsort(ways["number"], kind="stable")]["ifindex"]
        seen = arrived[arrived["arrived_ns"] <= end_ns]["read_us"]
        return FlowWindow(
            self.direction,
            (high - low) / 1e6,
            (low, high),
            recovered,
            len(sent),
            max(0, len(sent) - len(from_window)),
            int(np.count_nonzero(ways[1:] != ways[:-1])),
            float(sent["late_ns"].max()) / 1e6 if len(sent) else 0.0,
            float(seen.max()) / 1e3 if len(seen) else 0.0,
        )
