"""link_watch: is each path to each peer alive, and what does it lose? Asked and answered in the kernel.

Probes are STAMP packets (RFC 8762) that the peer's XDP program sends back. Silence and gaps arrive as events
from the kernel's ring buffer, inquiries are bursts of probes on all paths of a peer; what they mean is for an
analyzer to say. Costs one thread, one wake-up per probe interval, and about 1 kB of traffic per ten probes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np

from mapek.clock import wall_ns
from mapek.config.options import take
from mapek.contracts import Options, Status, Surroundings, Touchpoint, Variant
from mapek.errors import AttachError, DegradedError, MapekError
from mapek.model import Entity, Event, Frame, Inquiry, Metric, Schema
from mapek.sensors.detachments import COUNTED, Detachments
from mapek.sensors.guard import Guard, Held
from mapek.sensors.inquiries import PathInquiry, RouteInquiry, rounds_of
from mapek.sensors.link_watch_kernel import NO_INTERFACE, VARIANTS, Attachment, Kernel
from mapek.sensors.link_watch_layout import (
    ANSWER,
    BACK,
    COUNTERS,
    GAPS,
    MISSING,
    PEER_RESTART,
    PEER_STATE,
    PORT,
    RTT_BUCKETS,
    SILENT,
    WATCH,
    Alarm,
)
from mapek.sensors.link_watch_paths import PathTable
from mapek.sensors.named import absent, named
from mapek.sensors.probe_port import ProbePort
from mapek.sensors.prober import Batches, Prober, Target
from mapek.supervision import together

if TYPE_CHECKING:
    from mapek.knowledge.topology import Path, Topology

log = logging.getLogger("mapek")

ALARM_BURST: Final = 50
ALARMS_PER_SECOND: Final = 20
"""A lossy path that nobody uses would wake the agent hundreds of times a second."""

GOODBYES: Final = 3
"""Probes that announce AdminDown: one may be lost."""

_HELP = {
    "sent": "Probes sent.",
    "answered": "Probes answered.",
    "lost": "Probes without an answer while 64 more were sent; some come late: loss = lost - late.",
    "late": "Probes that were counted as lost and then answered.",
    "duplicates": "Answers that came twice.",
    "rejected": "Answers forged, of another session or too late.",
    "forward_lost": "Probes lost on the way to the peer, between two answers.",
    "reverse_lost": "Answers lost on the way back, between two answers.",
    "reflected": "The peer's probes that we answered.",
    "forged": "The peer's probes with a wrong signature.",
    "replayed": "The peer's probes seen before.",
    "limited": "The peer's probes above the rate that we answer.",
    "stalls": "Watchdog timers that ran late: the machine stood still.",
    "ring_drops": "Alarms lost because the ring buffer was full.",
}

SCHEMA = Schema(
    "link_watch",
    "path",
    counters=tuple(Metric(name, "", _HELP[name]) for name in COUNTERS),
    gauges=(
        Metric("silent", "", "1 while the watchdog hears nothing."),
        Metric("answer_age", "seconds", "Since the last answer; NaN before the first."),
        Metric("round_trip_p99", "seconds", "Of the last 512 probes; NaN before 16 answers."),
        Metric(
            "window_loss",
            "ratio",
            "Share of the last 512 settled probes without an answer, from the first that had one on.",
        ),
        Metric("peer_admin_down", "", "1 after the peer's agent said that it stops."),
    ),
    histograms=(
        Metric(
            "round_trip",
            "seconds",
            "Round trip of each answered probe.",
            bounds=tuple(2.0 ** (k + 1) / 1e9 for k in range(RTT_BUCKETS - 1)),
        ),
    ),
)


@dataclass(slots=True)
class _Budget:
    """Alarms that a path may still raise; what it last said."""

    left: float = ALARM_BURST
    silent: bool = False


class LinkWatch(Touchpoint):
    """Touchpoint `link_watch`.

    Options:
        interval_ms: between two probes of a path; 1 in the fast profile, 10 in the default one.
        mode: "auto" (XDP by the driver, else tc), "native", "generic" or "tc".
        wait: go on without an interface that is missing, until it comes.
        pin: let the reflector outlive the agent (needs a bpffs): "yes", "no", or "auto" for where it can be.
        reply_rate: probes of one peer path answered a second.
        timer: "auto", or "user" for the detection that kernels before 5.15 get.
        port: UDP port of all reflectors, ours and the peers'.
        stateful: number the replies to unauthenticated peers ourselves, instead of repeating their numbers.
        reattach: put back what somebody takes off an interface behind our back, at most five times in ten minutes.

    Needs kernel 5.10, CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON.
    """

    name: ClassVar[str] = "link_watch"
    counted: ClassVar[Mapping[str, str]] = {
        **COUNTED,
        **{name: f"{word} All paths." for name, word in _HELP.items()},
    }
    variants: ClassVar[tuple[Variant, ...]] = VARIANTS

    def __init__(self, options: Options) -> None:
        self.interval_ns = int(take(options, "interval_ms", float, 10.0, minimum=0.2, maximum=60_000) * 1e6)
        mode = take(options, "mode", str, "auto", choices=("auto", "native", "generic", "tc"))
        self._wait = take(options, "wait", bool, False)
        pin = take(options, "pin", str, "auto", choices=("auto", "yes", "no"))
        reply_rate = take(options, "reply_rate", int, 40_000, minimum=1)
        timer = self.wanted_variant = take(options, "timer", str, "auto", choices=("auto", "user"))
        port = self._port = take(options, "port", int, PORT, minimum=1, maximum=65535)
        stateful = take(options, "stateful", bool, False)
        reattach = take(options, "reattach", bool, True)
        self._kernel = Kernel(
            mode=mode,
            pin=pin,
            reply_rate=reply_rate,
            timer=timer,
            port=port,
            stateful=stateful,
            alarm=self._alarm,
        )
        self._prober = Prober(self.interval_ns, port)
        self._around: Surroundings | None = None
        self._paths: list[Path] = []
        self._entities: tuple[Entity, ...] = ()
        self._budgets: list[_Budget] = []
        self._table: PathTable | None = None
        self._attached: dict[str, Attachment] = {}
        self._detachments = Detachments(self.name, "watch", reattach, self._reattach)
        self._missing: dict[str, MapekError] = {}
        self._turn = asyncio.Lock()
        """An interface that comes back is heard of several times; it must get one stamper only."""
        self._asked: dict[str, PathInquiry | RouteInquiry] = {}
        self._targets: dict[int, Target] = {}
        self._served = False
        """Has a loop run with it? A start that was refused must leave nothing attached."""
        self._bursts: dict[tuple[str, str, int], Batches] = {}
        """Prepared once per peer: encoding them takes longer than sending them."""

    def shortfalls(self, topology: Topology) -> tuple[str, ...]:
        missing = absent("watch", named((), topology), NO_INTERFACE)
        if missing and not self._wait:
            raise missing[0]
        words = (*map(str, missing), self._kernel.unpinned("every interface"))
        return tuple(word for word in words if word)

    async def open(self, surroundings: Surroundings) -> None:
        """Load, attach to every interface of every path, begin to probe.

        Raises:
            AttachError: no interface of any path is there (or, without `wait`, one is missing).
            PrivilegeError, FeatureError, VerifierError: as `mapek.bpf.load`.
            ConfigError: somebody goes by another port already.
        """
        # First of all: whoever opens later goes by it, even where the rest of this fails.
        surroundings.shared(ProbePort).say(self._port)
        self._around = surroundings
        topology = surroundings.knowledge.topology
        self._paths = list(topology.paths())
        self._entities = tuple(path.entity for path in self._paths)
        self._budgets = [_Budget() for _ in self._paths]
        routed = [(peer, address) for peer in topology.peers.values() for address in peer.addresses]
        self._table = await self._kernel.open(self._paths, routed, self.interval_ns)
        self._table.set_clock(wall_ns() - surroundings.clock.now_ns())
        # Together: most of it is waiting, for the kernel's grace periods and for its verifier.
        await together(self._attach(name) for name in dict.fromkeys(path.interface for path in self._paths))
        if self._missing and (not self._wait or not self._attached):
            raise next(iter(self._missing.values()))
        for index, target in self._kernel.routed_targets(topology.addresses).items():
            self._targets[index] = target
        self._probe_on()
        self._detachments.open(surroundings)
        await surroundings.shared(Guard).join(self, surroundings)
        if not self._kernel.timers:
            self._look()

    def capabilities(self, opened: bool) -> frozenset[str]:
        """Besides those of its variants CAP_SYS_NICE until the thread that sends runs: it takes the loop's priority."""
        nice = frozenset[str]() if self._prober.probing else frozenset(("CAP_SYS_NICE",))
        return super().capabilities(opened) | nice

    async def _attach(self, interface: str) -> None:
        """Attach to one interface, or note why it cannot be now."""
        assert self._around is not None
        try:
            attachment = await self._kernel.attach(interface, self._around)
        except (AttachError, DegradedError) as error:
            self._missing[interface] = error
            return
        self._missing.pop(interface, None)
        self._attached[interface] = attachment
        self._targets.update(attachment.targets)
        now = await self._kernel.ifindex(interface)
        if now != attachment.ifindex and self._attached.get(interface) is attachment:
            # It went while we attached: nothing that told of it was heard.
            self._lose(interface)
            if now:
                self._around.spawn(self._reattach(Entity("link", interface, now)))

    def _lose(self, interface: str) -> None:
        why = AttachError("watch", interface, "the interface is gone", "it is watched again when it is back")
        self._missing[interface] = why
        log.warning("%s", why)

    def _probe_on(self) -> None:
        self._bursts.clear()
        self._prober.keep_probing(
            [t for index, t in sorted(self._targets.items()) if index < len(self._paths)]
        )

    async def close(self) -> None:
        """Say AdminDown to the peers, stop probing, detach; a pinned reflector goes on answering."""
        if self._around is not None:
            self._around.shared(Guard).leave(self)
        self._detachments.close()
        for asked in list(self._asked.values()):
            asked.cancel()
        self._asked.clear()
        if self._table is not None and self._targets:
            self._table.announce_admin_down()
            batches = self._prober.prepare(list(self._targets.values()), GOODBYES)
            self._prober.send(batches)
        self._prober.close()
        self._table = None
        # Forgotten only after it is off: whoever is cancelled in between is closed once more.
        await self._kernel.close(self._attached, keep=self._served)
        self._attached.clear()
        self._targets.clear()
        self._missing.clear()
        self._served = False

    def on_event(self, event: Event) -> None:
        """Re-attach to an interface that came back; listen for gaps on the paths that traffic takes."""
        back = event.kind in ("link.up", "link.new", "address.new")
        if back and self._around is not None and self._is_stale(event.entity):
            self._around.spawn(self._reattach(event.entity))
        elif event.kind == "link.gone" and event.entity.name in self._attached:
            self._lose(event.entity.name)
        elif event.kind == "path.active":
            self._listen()

    def held(self) -> list[Held]:
        """What should stand, for `Guard`."""
        there = [one for name, one in self._attached.items() if name not in self._missing]
        if self._turn.locked():
            return []
        return [Held(Entity("link", one.interface, one.ifindex), it) for one in there for it in one.handles()]

    def lost(self, held: Held, how: str) -> None:
        """Somebody took it off."""
        self._missing[held.link.name] = self._detachments.lost(held.link, how)

    def _is_stale(self, link: Entity) -> bool:
        if self._detachments.stays_off(link):
            return False
        known = self._attached.get(link.name)
        return link.name in self._missing or (known is not None and known.ifindex != link.generation)

    async def _reattach(self, link: Entity) -> None:
        async with self._turn:
            if not self._is_stale(link):
                return
            known = self._attached.pop(link.name, None)
            if known is not None:
                for index in known.targets:
                    self._targets.pop(index, None)
                self._probe_on()
                for index in known.targets:
                    self._prober.failed.pop(index, None)
                await self._kernel.detach(known)
            await self._attach(link.name)
            self._probe_on()
            if link.name in self._missing:
                self._detachments.failed(link)
            elif (one := self._attached.get(link.name)) is not None:
                self._detachments.back(Entity("link", link.name, one.ifindex))

    def _listen(self) -> None:
        """Gaps matter on the active path only; silence on all that have alarms left."""
        assert self._around is not None
        if self._table is None:
            return
        facts = self._around.knowledge.facts
        for index, path in enumerate(self._paths):
            active = facts.get(f"active_path/{path.peer}") == path.entity.name
            awake = active or self._budgets[index].left >= 1
            self._table.set_flags(index, (WATCH if awake else 0) | (GAPS if active else 0), WATCH | GAPS)

    def _alarm(self, alarm: Alarm) -> None:
        around, table = self._around, self._table
        if around is None or table is None:
            return
        if alarm.path >= len(self._paths):
            if alarm.kind == ANSWER:
                for asked in tuple(self._asked.values()):
                    asked.answered(alarm)
            return
        entity, budget = self._entities[alarm.path], self._budgets[alarm.path]
        if alarm.kind == SILENT:
            self._spend(alarm.path)
            if budget.silent:
                return  # said by `_refill` while the path was muted
            budget.silent = True
            fields = {"onset_ns": alarm.onset_ns, "seq": alarm.seq, "outstanding": alarm.count}
            around.emit(Event(alarm.time_ns, entity, "path.silent", fields))
        elif alarm.kind == BACK:
            budget.silent = False
            around.emit(
                Event(alarm.time_ns, entity, "path.back", {"sent_ns": alarm.onset_ns, "seq": alarm.seq})
            )
        elif alarm.kind == MISSING:
            around.clock.call_at(around.clock.now_ns() + self.interval_ns, lambda: self._rearm(alarm.path))
            fields = {"onset_ns": alarm.onset_ns, "seq": alarm.seq, "count": alarm.count}
            around.emit(Event(alarm.time_ns, entity, "path.missing", fields))
        elif alarm.kind == PEER_STATE:
            kind = "path.peer_admin_down" if alarm.count else "path.peer_up"
            around.emit(Event(alarm.time_ns, entity, kind))
        elif alarm.kind == PEER_RESTART:
            around.emit(Event(alarm.time_ns, entity, "path.peer_restarted"))

    def _rearm(self, index: int) -> None:
        if self._table is not None:
            self._table.rearm_gaps(index)

    def _spend(self, index: int) -> None:
        self._budgets[index].left -= 1
        if self._budgets[index].left < 1:
            self._listen()

    def _refill(self, now_ns: int) -> None:
        """Once a second: give alarms back, and say what was missed while a path was muted."""
        assert self._around is not None
        assert self._table is not None
        for index, budget in enumerate(self._budgets):
            muted = budget.left < 1
            budget.left = min(ALARM_BURST, budget.left + ALARMS_PER_SECOND)
            if not muted:
                continue
            silent = self._table.is_silent(index, now_ns)
            if silent != budget.silent:
                budget.silent = silent
                onset = self._table.last_answered_sent_ns(index)
                kind = "path.silent" if silent else "path.back"
                fields = (
                    {"onset_ns": onset, "seq": 0, "outstanding": 0}
                    if silent
                    else {"sent_ns": onset, "seq": 0}
                )
                self._around.emit(Event(now_ns, self._entities[index], kind, fields))
        self._listen()

    def _look(self) -> None:
        """The watchdog of kernels without bpf_timer: a look at every path on a tick of a quarter of an interval."""
        around, table = self._around, self._table
        if around is None or table is None:
            return
        now = around.clock.now_ns()
        for index in range(len(self._paths)):
            if found := table.newly_silent(index, now):
                self._alarm(found)
        around.clock.call_at(now + max(self.interval_ns // 4, 250_000), self._look)

    def schema(self) -> Schema:
        return SCHEMA

    def read(self) -> Frame | None:
        """One row per path, from memory shared with the kernel: no system call."""
        if self._around is None or self._table is None:
            return None
        now = self._around.clock.now_ns()
        self._served = True
        self._refill(now)
        self._table.set_clock(wall_ns() - now)
        counters, gauges, buckets = self._table.read(now, len(self._paths))
        for index, path in enumerate(self._paths):
            if not self._prober.unreachable(index) or path.interface in self._missing:
                continue
            self._prober.failed.pop(index, None)
        valid = np.ones(len(self._paths), dtype=np.bool_)
        return Frame(now, SCHEMA, self._entities, counters, gauges, valid, (buckets,))

    def ask(self, inquiry: Inquiry) -> bool:
        """Kinds "probe_paths" (a burst on all paths of a peer) and "probe_route" (as any packet would go)."""
        around, table = self._around, self._table
        if around is None or table is None:
            return False
        peer = around.knowledge.topology.peer_of(inquiry.entity)
        if peer is None:
            return False
        times = 1
        if inquiry.kind == "probe_paths":
            indices = [i for i, path in enumerate(self._paths) if path.peer == peer.name]
            times = rounds_of(inquiry)[0]
        elif inquiry.kind == "probe_route":
            indices = [
                i for i, owner in self._kernel.routed.items() if owner == peer.name and i in self._targets
            ]
        else:
            return False
        if not indices:
            return False
        key = (inquiry.kind, peer.name, times)
        batches = self._bursts.get(key)
        if batches is None:
            there = [self._targets[i] for i in indices if i in self._targets]
            batches = self._bursts[key] = self._prober.prepare(there, times)
        asked: PathInquiry | RouteInquiry
        if inquiry.kind == "probe_paths":
            asked = PathInquiry(
                inquiry, self._entities, indices, batches, table, self._prober, around, self._asked.pop
            )
        else:
            asked = RouteInquiry(inquiry, indices, batches, self._prober, around, self._asked.pop)
        self._asked[inquiry.id] = asked
        asked.begin()
        return True

    def status(self) -> Status:
        counts = self._detachments.counts()
        if self._table is not None:
            counts.update(self._table.totals(len(self._paths)))
        degraded = [str(error) for error in self._missing.values()] + self._kernel.degraded
        degraded += [one.why for one in self._attached.values() if one.why]
        for index, path in enumerate(self._paths):
            if why := self._prober.unreachable(index):
                degraded.append(f"probe {path.entity.name}: {why}; check the interface and its address")
        there = {name: one for name, one in self._attached.items() if name not in self._missing}
        attached = {name: self._kernel.mode(one) for name, one in there.items()}
        return Status(bool(self._attached), attached, tuple(degraded), counts)
