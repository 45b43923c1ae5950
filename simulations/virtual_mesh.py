"""A node and its peers in virtual time: the real loop, link_watch and policies over simulated links.

Only what lies below link_watch is replaced, its kernel programs, its sockets and the links, and netlink by a
table of routes: alarms, budgets and inquiries are those of the real sensor. An hour of 1 kHz probes with 1 %
loss on two paths takes seconds, because it jumps from loss to loss. Nothing is ever late here: stalls, jitter
and queues are for the lab.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final, Literal, Self

import numpy as np

from mapek.clock import Callback, Timer, VirtualClock
from mapek.contracts import Analyzer, Policy, Surroundings, Touchpoint
from mapek.errors import PermanentError
from mapek.knowledge import Knowledge, Path, Peer, Topology
from mapek.loop import Loop, Tap
from mapek.model import Applied, Entity, Event, Frame, Plan, Step
from mapek.sensors.link_watch_layout import ANSWERS, Alarm
from mapek.simulations.radio import Link, Loss, Uniforms
from mapek.simulations.virtual_kernel import VirtualLinkWatch, VirtualTable
from mapek.simulations.virtual_path import VirtualPath

if TYPE_CHECKING:
    from mapek.loop import Decision

RTT_NS: Final = 60_000
"""Of a probe on a veth pair, as the lab measures it."""

NETLINK_NS: Final = 30_000
"""From a plan to the kernel's acknowledgement."""

WAKE_NS: Final = 15_000
"""From the kernel's alarm to the loop at least; `LATE_NS` more on average."""

LATE_NS: Final = 20_000
"""By which the loop's timers are late on average (exponential), as a timerfd on a quiet node is."""

NO_LOSS: Final = Loss()


@dataclass(frozen=True, slots=True)
class VirtualLink:
    """How the link below one path behaves."""

    forward: Loss = NO_LOSS
    backward: Loss = NO_LOSS
    rtt_ns: int = RTT_NS


class _LateClock:
    """The loop's view of virtual time: its timers come a little late, as those of a real node do.

    Without that, inquiries stay in step with the steady probes for ever, which no real node does.
    """

    def __init__(self, clock: VirtualClock, late_ns: Callable[[], int]) -> None:
        self._clock, self._late_ns = clock, late_ns
        self.now_ns = clock.now_ns

    def call_at(self, due_ns: int, callback: Callback) -> Timer:
        return self._clock.call_at(max(due_ns, self._clock.now_ns()) + self._late_ns(), callback)

    def close(self) -> None:
        self._clock.close()


class VirtualRoutes(Touchpoint):
    """Touchpoint `netlink` of a virtual node: one route per peer, moved at once and never refused."""

    name: ClassVar[str] = "netlink"
    kind: ClassVar[Literal["sensor", "effector"]] = "effector"
    period_ns = 0

    def __init__(self) -> None:
        self.active: dict[str, str] = {}
        self.moves: list[tuple[int, str, str]] = []
        """(time, peer, path) of each change."""
        self._around: Surroundings | None = None

    async def open(self, surroundings: Surroundings) -> None:
        """Begin without a route."""
        self._around = surroundings

    async def act(self, step: Step) -> Applied:
        """ "use_path" and "hold", as the real one."""
        around = self._around
        assert around is not None
        peer, path = str(step.fields.get("peer")), str(step.fields.get("path"))
        if (
            step.action not in ("use_path", "hold")
            or around.knowledge.topology.path(Entity("path", path)) is None
        ):
            raise PermanentError(
                step.action, f"{peer} over {path}", "no such action or path", "mend the policy"
            )
        before = self.active.get(peer, "")
        now = around.clock.now_ns() + NETLINK_NS
        if before != path:
            self.moves.append((now, peer, path))
        self.active[peer] = path
        around.emit(Event(now, Entity("path", path), "path.active", {"peer": peer, "before": before}))
        return Applied(now, before != path, f"{before or 'nothing'} -> {path}")


@dataclass(slots=True)
class VirtualMesh:
    """One node with its loop, in virtual time; an async context manager.

    Args:
        topology: whom it watches.
        analyzers, policies: real ones, new.
        links: by path name; a path without an entry loses nothing.
        options: of link_watch.
        seed: of everything random.
        tap: sees inputs and decisions, as the loop's.

    >>> async def switches(loss: float) -> int:
    ...     from mapek.analyzers.path_health import PathHealth
    ...     from mapek.policies.link_failover import LinkFailover
    ...     links = {"b/l0": VirtualLink(Loss(loss)), "b/l1": VirtualLink(Loss(loss))}
    ...     async with VirtualMesh(two_links(), [PathHealth({})], [LinkFailover({})], links) as mesh:
    ...         await mesh.run(60.0)
    ...         return len(mesh.routes.moves) - 1  # the first is the beginning
    >>> asyncio.run(switches(0.001))
    0
    """

    topology: Topology
    analyzers: Sequence[Analyzer]
    policies: Sequence[Policy]
    links: Mapping[str, VirtualLink] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)
    seed: int = 0
    tap: Tap | None = None
    clock: VirtualClock = field(init=False)
    knowledge: Knowledge = field(init=False)
    routes: VirtualRoutes = field(init=False)
    loop: Loop = field(init=False)
    paths: list[VirtualPath] = field(init=False)
    _routed: dict[int, str] = field(init=False)
    _planned: bool = field(init=False)
    _uniform: Uniforms = field(init=False)

    def __post_init__(self) -> None:
        self.clock = VirtualClock(1_000_000_000)
        self.knowledge = Knowledge(self.topology)
        self.routes = VirtualRoutes()
        self.paths, self._routed, self._planned = [], {}, False
        self._uniform = Uniforms(np.random.default_rng(self.seed))
        watch = VirtualLinkWatch(self, self.options)
        self.loop = Loop(
            self.knowledge,
            _LateClock(self.clock, self._late_ns),
            [watch, self.routes],
            self.analyzers,
            self.policies,
            tap=self._saw,
        )

    def _late_ns(self) -> int:
        return int(-math.log(self._uniform()) * LATE_NS)

    async def __aenter__(self) -> Self:
        await self.loop.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.loop.__aexit__(*error)

    def _saw(self, now_ns: int, item: Frame | Event | Decision) -> None:
        if isinstance(item, Plan):
            self._planned = True
        if self.tap:
            self.tap(now_ns, item)

    async def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        steps = 0
        clock, end = self.clock, self.clock.now_ns() + int(seconds * 1e9)
        while (due := clock.next_ns()) is not None and due <= end:
            # Plans are carried out by tasks: time stands still until they have run.
            clock.advance_to(due)
            steps += 1
            if steps % 10_000 == 0:
                await asyncio.sleep(0)  # the loop's publishing waits for it
            if self._planned:
                self._planned = False
                for _ in range(8):
                    await asyncio.sleep(0)
        clock.advance_to(end)
        await asyncio.sleep(0)

    def lay(
        self, paths: list[Path], routed: list[str], interval_ns: int, alarm: Callable[[Alarm], None]
    ) -> VirtualTable:
        """Make the paths; the routed ones follow the route of their peer."""

        def wake(one: Alarm) -> None:
            self.clock.call_at(one.time_ns + WAKE_NS + self._late_ns(), lambda: alarm(one))

        for index, path in enumerate(paths):
            how = self.links.get(path.entity.name, VirtualLink())
            link = Link(how.forward, how.backward, self._uniform)
            self.paths.append(VirtualPath(index, link, self.clock, interval_ns, how.rtt_ns, wake))
        for index, peer in enumerate(routed, start=len(paths)):
            link = Link(Loss(), Loss(), self._uniform)
            routed_path = VirtualPath(index, link, self.clock, 0, RTT_NS, wake)
            routed_path.flags = ANSWERS
            self.paths.append(routed_path)
            self._routed[index] = peer
        return VirtualTable(self.paths, self.clock)

    def probe(self, indices: Iterable[int]) -> None:
        """Begin steady probes, each path a little later than the one before."""
        for index in indices:
            self.paths[index].start(self.clock.now_ns() + 10_000 * (index + 1))

    def burst(self, index: int, count: int) -> None:
        """Send `count` probes on a path now, or the way that the peer's route takes."""
        path = self.paths[index]
        if (peer := self._routed.get(index)) is not None:
            through = self._of(self.routes.active.get(peer, ""))
            if through is None:
                return
            path.link, path.rtt_ns = through.link, through.rtt_ns
        path.burst(count)

    def _of(self, name: str) -> VirtualPath | None:
        names = [path.entity.name for path in self.topology.paths()]
        return self.paths[names.index(name)] if name in names else None

    def fail(self, path: str, *, forward: bool = True, backward: bool = True) -> None:
        """From now on everything is lost on `path`, in the directions named, and nothing in the others."""
        found = self._named(path)
        found.link.forward.silent, found.link.backward.silent = forward, backward
        found.changed()

    def heal(self, path: str) -> None:
        """End what `fail` began."""
        self.fail(path, forward=False, backward=False)

    def lose(self, path: str, forward: Loss = NO_LOSS, backward: Loss = NO_LOSS) -> None:
        """From now on `path` loses like this."""
        found, now = self._named(path), self.clock.now_ns()
        found.link.forward.change(forward, now)
        found.link.backward.change(backward, now)
        found.changed()

    def _named(self, path: str) -> VirtualPath:
        found = self._of(path)
        if found is None:
            raise ValueError(f"there is no path {path}")
        return found

    def stop(self) -> None:
        """Send nothing any more."""
        for path in self.paths:
            path.stop()


def two_links(links: int = 2) -> Topology:
    """Node "a" with one peer "b" over `links` links "l0", "l1", ..."""
    from ipaddress import ip_address, ip_network

    paths = tuple(
        Path("b", f"l{k}", ip_address(f"10.0.{k}.2"), ip_address(f"10.0.{k}.1"), k) for k in range(links)
    )
    peer = Peer("b", (ip_address("10.1.0.2"),), (ip_network("10.1.0.2/32"),), paths, b"0123456789abcdef")
    return Topology("a", [ip_address("10.1.0.1")], [peer])
