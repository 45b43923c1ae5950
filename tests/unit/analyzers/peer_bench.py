"""A peer whose paths die, lose and come back on command, around one PathHealth in virtual time.

It answers inquiries as link_watch does and raises the kernel's alarms; everything that the analyzer finds is
kept with its time. Times in tests are milliseconds after the start.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address

import numpy as np

from mapek.analyzers.path_health import PathHealth
from mapek.knowledge import Knowledge, Path, Peer, Topology
from mapek.model import Entity, Event, Finding, Frame, Inquiry, Metric, Schema, Suspicion, Symptom, Value

MS = 1_000_000
START = 1_000_000_000_000
SECOND = 1_000_000_000
PROBES = 100
"""Steady probes a second."""

SCHEMA = Schema(
    "link_watch",
    "path",
    counters=(Metric("answered"), Metric("lost"), Metric("late")),
    gauges=(Metric("silent"), Metric("answer_age"), Metric("round_trip_p99"), Metric("window_loss")),
)
NODE = Entity("node", "a")


def topology(links: int) -> Topology:
    paths = tuple(Path("b", f"l{k}", ip_address(f"10.0.{k}.2"), preference=k) for k in range(links))
    return Topology("a", (), [Peer("b", (ip_address("10.1.0.2"),), (), paths, b"0123456789abcdef")])


@dataclass
class Wire:
    loss: float = 0.0
    dead: bool = False
    silent: bool = False
    answered: int = 0
    lost: int = 0
    late: int = 0
    delayed: float = 0.0
    """Share of probes answered only after they were counted as lost, in the same second."""
    last_answer_ns: int = 0
    window: list[tuple[int, int]] = field(default_factory=list)


class Bench:
    """Args: links: how many paths; options: of the analyzer; seed: of the losses."""

    def __init__(self, links: int = 2, seed: int = 0, known: bool = True, **options: object) -> None:
        self.health = PathHealth(options)
        self.knowledge = Knowledge(topology(links))
        self.wires = {f"b/l{k}": Wire() for k in range(links)}
        self.now_ns = START
        self.found: list[tuple[float, Finding]] = []
        self.chance = np.random.default_rng(seed)
        self.refuses = self.forgets = False
        """Whether inquiries are taken at all; whether their answers get lost."""
        self.late_ns = 0
        self.frames = True
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self._begin()
        self.at(SECOND // 2, self._second)
        if known:
            self.run(1000)
            assert {path.state for path in self._peer().paths.values()} == {"well"}
            self.found.clear()
            self.zero_ns = self.now_ns
        else:
            self.zero_ns = START

    def _begin(self) -> None:
        self.health.start(self.knowledge)

    def _input(self, item: Event | Frame) -> None:
        self.knowledge.now_ns = self.now_ns
        if isinstance(item, Event):
            self._take(self.health.on_event(item, self.knowledge))
        else:
            self._take(self.health.on_frame(item, self.knowledge))

    def _peer(self):
        return self.health._peers["b"]

    @property
    def state(self) -> dict[str, str]:
        return {name[2:]: path.state for name, path in self._peer().paths.items()}

    @property
    def asking(self) -> str:
        return self._peer().asking

    # -- time

    def at(self, after_ns: int, call: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._agenda, (self.now_ns + int(after_ns), self._count, call))

    def run(self, ms: float) -> Bench:
        end = self.now_ns + int(ms * MS)
        while self._agenda and self._agenda[0][0] <= end:
            self.now_ns, _, call = heapq.heappop(self._agenda)
            call()
        self.now_ns = end
        return self

    def _second(self) -> None:
        for wire in self.wires.values():
            lost = PROBES if wire.dead else int(self.chance.binomial(PROBES, wire.loss))
            wire.answered += PROBES - lost
            late = int(self.chance.binomial(PROBES - lost, wire.delayed)) if wire.delayed else 0
            wire.lost += lost + late
            wire.late += late
            wire.window = [*wire.window[-4:], (PROBES - lost, lost)]
            if lost < PROBES:
                wire.last_answer_ns = self.now_ns - 3 * MS
        if self.frames:
            self.feed_frame()
        self.tell("tick", NODE)
        self.at(SECOND, self._second)

    def feed_frame(self, **changes: object) -> None:
        rows = len(self.wires)
        gauges = np.full((rows, 4), np.nan)
        for row, wire in enumerate(self.wires.values()):
            age = (self.now_ns - wire.last_answer_ns) / 1e9 if wire.last_answer_ns else np.nan
            good, bad = sum(a for a, _ in wire.window), sum(b for _, b in wire.window)
            rtt = 1e-4 if wire.answered >= 16 else np.nan
            gauges[row] = wire.silent, age, rtt, bad / (good + bad) if good + bad else np.nan
        counters = np.array([[w.answered, w.lost, w.late] for w in self.wires.values()], np.uint64)
        entities = tuple(Entity("path", name) for name in self.wires)
        valid = changes.pop("valid", np.ones(rows, np.bool_))
        self._input(Frame(self.now_ns, SCHEMA, entities, counters, gauges, valid))  # type: ignore[arg-type]

    # -- what goes in and comes out

    def tell(self, kind: str, entity: Entity, /, **fields: Value) -> None:
        self._input(Event(self.now_ns, entity, kind, fields))

    def path(self, kind: str, link: str, /, **fields: Value) -> None:
        self.tell(f"path.{kind}", Entity("path", f"b/{link}"), **fields)

    def _take(self, found) -> None:
        for one in tuple(found):
            self.found.append(((self.now_ns - self.zero_ns) / MS, one))
            if isinstance(one, Inquiry) and not self.refuses:
                self.at(int(one.fields.get("delay_ns", 0)), lambda one=one: self._burst(one))

    def _burst(self, inquiry: Inquiry) -> None:
        asked = self.now_ns
        late, self.late_ns = self.late_ns, 0

        def answer() -> None:
            if self.forgets:
                return
            self.tell("inquiry.answer", inquiry.entity, **self.answer(inquiry, asked, late))

        self.at(inquiry.within_ns + late, answer)

    def answer(self, inquiry: Inquiry, asked_ns: int, late_ns: int = 0) -> dict[str, Value]:
        answered = []
        for wire in self.wires.values():
            got = 0 if wire.dead else 8 - int(self.chance.binomial(8, wire.loss))
            if got:
                wire.last_answer_ns = self.now_ns
            answered.append(got)
        return {
            "id": inquiry.id,
            "kind": "probe_paths",
            "asked_ns": asked_ns,
            "late_ns": late_ns,
            "paths": tuple(self.wires),
            "sent": (8,) * len(self.wires),
            "answered": tuple(answered),
            "last_answer_ns": tuple(wire.last_answer_ns for wire in self.wires.values()),
            "round_trip_ns": tuple(100_000 if wire.last_answer_ns else 0 for wire in self.wires.values()),
            "ever": tuple(wire.last_answer_ns > 0 for wire in self.wires.values()),
        }

    # -- what befalls the paths

    def die(self, *links: str, alarm: bool = True) -> None:
        """Silent from now on; the watchdog says so a millisecond later."""
        for link in links:
            wire = self.wires[f"b/{link}"]
            if not wire.dead and wire.loss < 1:
                wire.last_answer_ns = self.now_ns - MS // 10
            wire.dead = True
            if alarm:
                self.at(MS, lambda link=link, onset=self.now_ns: self._bark(link, onset))

    def _bark(self, link: str, onset_ns: int) -> None:
        wire = self.wires[f"b/{link}"]
        if wire.dead and not wire.silent:
            wire.silent = True
            self.path("silent", link, onset_ns=onset_ns, seq=1, outstanding=1)

    def live(self, *links: str, alarm: bool = True) -> None:
        for link in links:
            wire = self.wires[f"b/{link}"]
            wire.dead, was, wire.silent = False, wire.silent, False
            wire.last_answer_ns = self.now_ns
            if alarm and was:
                self.path("back", link, sent_ns=self.now_ns, seq=9)

    def lose(self, **share: float) -> None:
        for link, loss in share.items():
            self.wires[f"b/{link}"].loss = loss

    def gaps(self, link: str, seconds: float, every_ms: float = 10) -> None:
        """Steady probes on the active path: each second of lost ones raises "missing"."""
        wire, end = self.wires[f"b/{link}"], self.now_ns + int(seconds * SECOND)

        def probe() -> None:
            if not wire.dead and self.chance.random() < wire.loss:
                self.path("missing", link, onset_ns=self.now_ns - 2 * MS, seq=1, count=1)
            if self.now_ns < end:
                self.at(int(every_ms * MS), probe)

        probe()

    # -- what was found

    def said(self) -> list[str]:
        """Suspicions and symptoms in words, with a minus where they are cleared."""
        words = []
        for _, one in self.found:
            if not isinstance(one, Inquiry):
                words.append(f"{'-' if one.cleared else ''}{one.kind} {one.entity.name.removeprefix('b/')}")
        return words

    def symptoms(self, kind: str = "") -> list[Symptom]:
        found = [one for _, one in self.found if isinstance(one, Symptom) and not one.cleared]
        return [one for one in found if not kind or one.kind == kind]

    def when(self, kind: str) -> float:
        """Milliseconds at which the last finding of this kind came."""
        return [ms for ms, one in self.found if not isinstance(one, Inquiry) and one.kind == kind][-1]

    def inquiries(self) -> int:
        return sum(isinstance(one, Inquiry) for _, one in self.found)

    def suspects(self) -> list[Suspicion]:
        return [one for _, one in self.found if isinstance(one, Suspicion)]
