"""What stands for link_watch's kernel programs, maps and sockets in virtual time.

The real touchpoint runs above it, alarms, budgets, inquiries and all; these have as many of the methods of
`Kernel`, `PathTable` and `Prober` as it uses, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from mapek.bpf.standing import Standing
from mapek.clock import VirtualClock
from mapek.contracts import Surroundings
from mapek.knowledge import Knowledge, Path, Peer
from mapek.sensors.link_watch import LinkWatch
from mapek.sensors.link_watch_layout import COUNTERS, RTT_BUCKETS, WATCH, Alarm
from mapek.sensors.prober import Target
from mapek.simulations.virtual_path import KNOWN_AFTER, VirtualPath

_IFINDEX: Final = 1
"""Of every interface: nothing is told apart by it."""


class Below(Protocol):
    """Who owns the virtual paths."""

    knowledge: Knowledge

    def lay(
        self, paths: list[Path], routed: list[str], interval_ns: int, alarm: Callable[[Alarm], None]
    ) -> VirtualTable:
        """Make the paths; the routed ones follow the route of their peer."""
        ...

    def probe(self, indices: Iterable[int]) -> None:
        """Begin steady probes."""
        ...

    def burst(self, index: int, count: int) -> None:
        """Send `count` probes on a path now."""
        ...

    def stop(self) -> None:
        """Send nothing any more."""
        ...


class VirtualTable:
    """What `PathTable` is to the real kernel's maps."""

    def __init__(self, paths: Sequence[VirtualPath], clock: VirtualClock) -> None:
        self._paths, self._clock = paths, clock
        self.count = len(paths)

    def set_clock(self, wall_ns: int) -> None:
        """Only unauthenticated packets tell the time, and in here there are none."""

    def set_flags(self, index: int, flags: int, mask: int) -> None:
        path = self._paths[index]
        path.flags = path.flags & ~mask | flags

    def announce_admin_down(self) -> None:
        for path in self._paths:
            path.flags &= ~WATCH

    def next_seq(self, index: int) -> int:
        return self._paths[index].sent(self._clock.now_ns()) + 1

    def last_answer_ns(self, index: int) -> int:
        return self._paths[index].last_answer_ns(self._clock.now_ns())

    def last_answered_sent_ns(self, index: int) -> int:
        return self._paths[index].last_answered_sent_ns(self._clock.now_ns())

    def ever_answered(self, index: int) -> bool:
        return self._paths[index].answered(self._clock.now_ns()) > 0

    def answered_between(self, index: int, first: int, end: int) -> int:
        return self._paths[index].answered_between(first, end, self._clock.now_ns())

    def round_trip_ns(self, index: int) -> int:
        path = self._paths[index]
        return path.rtt_ns if path.answered(self._clock.now_ns()) else 0

    def rearm_gaps(self, index: int) -> None:
        self._paths[index].missing = False

    def is_silent(self, index: int, now_ns: int) -> bool:
        return self._paths[index].is_silent(now_ns)

    def totals(self, count: int) -> dict[str, int]:
        counters = self.read(self._clock.now_ns(), count)[0]
        return {name: int(counters[:, column].sum()) for column, name in enumerate(COUNTERS)}

    def read(
        self, now_ns: int, count: int
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float64], npt.NDArray[np.uint64]]:
        counters = np.zeros((count, len(COUNTERS)), np.uint64)
        gauges = np.full((count, 5), np.nan)
        buckets = np.zeros((count, RTT_BUCKETS), np.uint64)
        for row, path in enumerate(self._paths[:count]):
            path.settle_silence(now_ns)
            answered = path.answered(now_ns)
            known: Mapping[str, int] = {
                "sent": path.sent(now_ns),
                "answered": answered,
                "lost": path.left_window(now_ns),
                "forward_lost": path.forward_lost,
                "reverse_lost": path.backward_lost,
            }
            counters[row] = [known.get(name, 0) for name in COUNTERS]
            gauges[row, 0] = path.silent
            if answered:
                gauges[row, 1] = (now_ns - path.last_answer_ns(now_ns)) / 1e9
            if answered >= KNOWN_AFTER:
                gauges[row, 2] = path.rtt_ns / 1e9
            gauges[row, 3] = path.window_loss(now_ns)
            gauges[row, 4] = 0
            buckets[row, path.rtt_ns.bit_length() - 1] = answered
        return counters, gauges, buckets


@dataclass(slots=True)
class _Attachment:
    ifindex: int
    targets: dict[int, Target]
    why: str = ""

    def handles(self) -> list[Standing]:
        """Nothing that anybody could take off."""
        return []


class _Kernel:
    """What `Kernel` is to the real one."""

    def __init__(self, mesh: Below, alarm: Callable[[Alarm], None]) -> None:
        self._mesh, self._alarm = mesh, alarm
        self.timers = True
        self.degraded: list[str] = []
        self.routed: dict[int, str] = {}
        self._paths: list[Path] = []

    async def open(
        self, paths: list[Path], routed: list[tuple[Peer, object]], interval_ns: int
    ) -> VirtualTable:
        self._paths = paths
        self.routed = {len(paths) + at: peer.name for at, (peer, _) in enumerate(routed)}
        return self._mesh.lay(paths, [peer.name for peer, _ in routed], interval_ns, self._alarm)

    async def attach(self, interface: str, around: Surroundings) -> _Attachment:
        mine = {at: path for at, path in enumerate(self._paths) if path.interface == interface}
        return _Attachment(
            _IFINDEX, {at: Target(at, _IFINDEX, path.address, path.address) for at, path in mine.items()}
        )

    async def ifindex(self, interface: str) -> int:
        return _IFINDEX

    def routed_targets(self, local_addresses: Iterable[object]) -> dict[int, Target]:
        peers = self._mesh.knowledge.topology.peers
        addresses = {index: peers[name].addresses[0] for index, name in self.routed.items()}
        return {index: Target(index, 0, address, address) for index, address in addresses.items()}

    def mode(self, one: _Attachment) -> str:
        return "virtual"

    async def detach(self, one: _Attachment, *, keep: bool = False) -> None:
        """There is nothing to take off."""

    async def close(self, attached: Mapping[str, _Attachment], *, keep: bool) -> None:
        self._mesh.stop()


class _Prober:
    """What `Prober` is to real sockets."""

    def __init__(self, mesh: Below) -> None:
        self._mesh = mesh
        self.failed: dict[int, int] = {}

    def prepare(self, targets: Sequence[Target], times: int = 1) -> list[tuple[int, int]]:
        return [(target.path, times) for target in targets]

    def send(self, batches: list[tuple[int, int]]) -> int:
        for index, times in batches:
            self._mesh.burst(index, times)
        return sum(times for _, times in batches)

    def keep_probing(self, targets: Sequence[Target]) -> None:
        self._mesh.probe([target.path for target in targets])

    def unreachable(self, path: int) -> str:
        return ""

    def close(self) -> None:
        self._mesh.stop()


class VirtualLinkWatch(LinkWatch):
    """link_watch over simulated links; its options are those of the real one."""

    def __init__(self, mesh: Below, options: Mapping[str, object]) -> None:
        super().__init__(options)
        below: Any = (_Kernel(mesh, self._alarm), _Prober(mesh))  # the same methods, as far as they are used
        self._kernel, self._prober = below
