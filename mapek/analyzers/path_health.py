"""path_health: which paths are dead, which lose too much, and is it the path or the peer?

A suspicion is not a verdict. Silence, a gap or a link that went down makes it ask on all paths of the peer at
once (facts of two years of BFD: fast detection alone fails over falsely, confirmation does not):

* no answer here since the first probe of the burst, answers on another path: this path is dead;
* no answer anywhere: nothing is moved; it asks again with a back-off, and then the peer is gone;
* answers here: not silent. If some are missing, bursts go on until a sequential test against the other paths
  decides, so that loss which befalls all paths alike never moves traffic.

An inquiry that we ran late ourselves is asked again, never judged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from mapek.analyzers.sequential import BurstTest, SlowTest, prepare
from mapek.config.options import take
from mapek.contracts import Analyzer, Options
from mapek.model import Entity, Event, Finding, Frame, Inquiry, Suspicion, Symptom, Value

if TYPE_CHECKING:
    from mapek.knowledge import Knowledge

State = Literal["unknown", "well", "dead", "gray"]

BURST: Final = 8
"""Probes per path and inquiry."""

MONTH_S: Final = 30 * 86_400
QUIET_BURSTS: Final = 14
"""Bursts in a row without a loss that end an inquiry about loss: 112 probes, which 5 % loss survives once in 300."""

FRAMES: Final = 9
"""Frames whose round trips the grace goes by."""

RECOVERY_BURSTS: Final = 3
"""Bursts without a loss that make a dead path well again."""

FAST_REPEATS: Final = 20
SLOW_REPEAT_NS: Final = 20_000_000
IDLE_REPEAT_NS: Final = 1_000_000_000
GONE_AFTER: Final = 30
"""Unanswered inquiries after which the peer counts as gone."""


@dataclass(slots=True)
class _PathState:
    entity: Entity
    state: State = "unknown"
    silent: bool = False
    onset_ns: int = 0
    """Of the present silence: send time of the last answered probe."""
    rtt_p99_ns: int = 0
    """Median of the last frames' values: one second of a machine that stalls must not slow the next verdicts."""
    rtts_ns: deque[int] = field(default_factory=lambda: deque(maxlen=FRAMES))
    loss_since_ns: int = 0
    test: BurstTest | None = None
    slow: SlowTest | None = None
    lossy: bool = False
    """A gap was seen and is being looked into."""
    quiet: int = 0
    clean: int = 0
    counted: tuple[int, int] | None = None
    suspected: bool = False


@dataclass(slots=True)
class _PeerState:
    entity: Entity
    paths: dict[str, _PathState]
    asking: str = ""
    asked_for: int = 0
    repeats: int = 0
    gone: bool = False
    admin_down: bool = False
    first_ns: int = 0


@dataclass(frozen=True, slots=True)
class _Answer:
    """An event "inquiry.answer" of kind "probe_paths", by path name."""

    asked_ns: int
    late_ns: int
    sent: Mapping[str, int] = field(default_factory=dict)
    answered: Mapping[str, int] = field(default_factory=dict)
    last_answer_ns: Mapping[str, int] = field(default_factory=dict)
    ever: Mapping[str, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, event: Event) -> _Answer:
        def numbers(name: str) -> Sequence[int]:
            value = event.fields[name]
            return [int(one) for one in value] if isinstance(value, tuple) else []

        value = event.fields["paths"]
        names = [str(one) for one in value] if isinstance(value, tuple) else []

        def table(name: str) -> dict[str, int]:
            return dict(zip(names, numbers(name), strict=True))

        ever = {name: bool(seen) for name, seen in table("ever").items()}
        late, asked = event.fields["late_ns"], event.fields["asked_ns"]
        assert isinstance(late, int) and isinstance(asked, int)
        return cls(asked, late, table("sent"), table("answered"), table("last_answer_ns"), ever)

    def missing(self, name: str) -> int:
        return self.sent.get(name, 0) - self.answered.get(name, 0)

    def alive(self, name: str) -> bool:
        return self.answered.get(name, 0) > 0 or self.last_answer_ns.get(name, 0) >= self.asked_ns


class PathHealth(Analyzer):
    """Analyzer `path_health`.

    Options:
        grace_ms: how long a burst may take at least; the knob between speed and false verdicts. The grace is
            this or four times the 99th percentile of the slowest path's round trip, whichever is longer.
        false_switches_per_month: budget of the tests on loss, per path, at the highest rate of bursts.
        loss_floor: share of probes lost that the slow test lets pass.
        never_seen_s: after this time a peer that never answered is said to be absent.
    """

    name: ClassVar[str] = "path_health"

    def __init__(self, options: Options) -> None:
        self._grace_ns = int(take(options, "grace_ms", float, 0.5, minimum=0.05, maximum=1000.0) * 1e6)
        budget = take(options, "false_switches_per_month", float, 1.0, minimum=1e-6, maximum=1e6)
        self._burst_alpha = min(budget * self._grace_ns / 1e9 / MONTH_S, 0.1)
        self._slow_alpha = min(budget / MONTH_S, 0.1)
        self._floor = take(options, "loss_floor", float, 0.003, minimum=1e-5, maximum=0.2)
        self._never_seen_ns = int(take(options, "never_seen_s", float, 5.0, minimum=0.1) * 1e9)
        self._peers: dict[str, _PeerState] = {}
        self._inquiries = 0

    def start(self, knowledge: Knowledge) -> None:
        # a steady probe may fall into a burst
        for sent in (BURST, BURST + 1):
            prepare(sent)
        for peer in knowledge.topology.peers.values():
            paths = {path.entity.name: _PathState(path.entity) for path in peer.paths}
            self._peers[peer.name] = _PeerState(peer.entity, paths)

    def _find(self, entity: Entity, knowledge: Knowledge) -> _PeerState | None:
        peer = knowledge.topology.peer_of(entity)
        return self._peers.get(peer.name) if peer else None

    def on_event(self, event: Event, knowledge: Knowledge) -> Iterable[Finding]:
        if event.kind == "inquiry.answer":
            if event.fields.get("kind") == "probe_paths" and (peer := self._find(event.entity, knowledge)):
                return self._answered(peer, event, knowledge)
            return ()
        if event.kind == "link.down" or event.kind == "link.gone":
            return self._link_lost(event, knowledge)
        if event.kind == "tick":
            return self._tick(knowledge)
        if not event.kind.startswith("path.") or (peer := self._find(event.entity, knowledge)) is None:
            return ()
        path = peer.paths[event.entity.name]
        if event.kind == "path.silent":
            return self._silent(peer, path, event.time_ns, _number(event, "onset_ns"), knowledge)
        if event.kind == "path.missing":
            return self._gap(peer, path, event, knowledge)
        if event.kind == "path.back":
            path.silent = False
            return self._back(peer, path)
        if event.kind in ("path.peer_admin_down", "path.peer_up"):
            peer.admin_down = event.kind == "path.peer_admin_down"
        return ()

    # -- suspicions ------------------------------------------------------------------------------------

    def _silent(
        self, peer: _PeerState, path: _PathState, time_ns: int, onset_ns: int, knowledge: Knowledge
    ) -> Iterator[Finding]:
        path.silent, path.onset_ns = True, onset_ns
        if path.state in ("unknown", "dead"):
            return
        if not path.suspected:
            path.suspected = True
            yield Suspicion(time_ns, path.entity, "silence")
        yield from self._ask(peer)

    def _gap(
        self, peer: _PeerState, path: _PathState, event: Event, knowledge: Knowledge
    ) -> Iterator[Finding]:
        if path.state != "well" or len(peer.paths) < 2:
            return
        if not path.lossy:
            path.lossy, path.quiet = True, 0
            if path.test is None or path.test.evidence <= 0:
                path.loss_since_ns = _number(event, "onset_ns")
            yield Suspicion(event.time_ns, path.entity, "loss")
        yield from self._ask(peer)

    def _link_lost(self, event: Event, knowledge: Knowledge) -> Iterator[Finding]:
        for known in knowledge.topology.paths():
            if known.interface == event.entity.name:
                peer = self._peers[known.peer]
                path = peer.paths[known.entity.name]
                if not path.silent:
                    yield from self._silent(peer, path, event.time_ns, event.time_ns, knowledge)

    def _back(self, peer: _PeerState, path: _PathState) -> Iterator[Finding]:
        if path.state in ("dead", "unknown") or peer.gone:
            path.clean = 0
            yield from self._ask(peer)

    # -- inquiries -------------------------------------------------------------------------------------

    def _grace(self, peer: _PeerState) -> int:
        return max(self._grace_ns, 4 * max(path.rtt_p99_ns for path in peer.paths.values()))

    def _ask(self, peer: _PeerState, delay_ns: int = 0) -> Iterator[Finding]:
        if peer.asking:
            return
        self._inquiries += 1
        peer.asking = f"{self.name}:{self._inquiries}"
        fields: dict[str, Value] = {"count": BURST, "rounds": 2}
        if delay_ns:
            fields["delay_ns"] = delay_ns
        yield Inquiry(peer.asking, peer.entity, "probe_paths", self._grace(peer), fields)

    def _answered(self, peer: _PeerState, event: Event, knowledge: Knowledge) -> Iterator[Finding]:
        if event.fields["id"] != peer.asking:
            return
        peer.asking = ""
        answer = _Answer.of(event)
        if answer.late_ns > self._grace(peer):
            yield from self._ask(peer)
            return
        alive = [path for name, path in peer.paths.items() if answer.alive(name)]
        if not alive:
            yield from self._nobody(peer, event)
            return
        yield from self._somebody(peer, event)
        again = False
        for name, path in peer.paths.items():
            if path in alive:
                yield from self._lives(path, event, answer.missing(name))
            elif path.state in ("well", "gray"):
                yield from self._died(peer, path, alive, event)
        again |= any(path.state == "dead" and path in alive for path in peer.paths.values())
        for path in alive:
            if path.lossy and path.state == "well":
                yield from self._weigh(path, peer, alive, answer, event)
                again |= path.lossy
        if again:
            yield from self._ask(peer)

    def _nobody(self, peer: _PeerState, event: Event) -> Iterator[Finding]:
        """No answer on any path: the peer, or we ourselves; moving traffic could only do harm."""
        peer.repeats += 1
        if peer.repeats == GONE_AFTER and not peer.gone:
            peer.gone = True
            for path in peer.paths.values():
                yield from self._settle_suspicion(path, event.time_ns)
            onset = max((path.onset_ns for path in peer.paths.values()), default=0)
            evidence: dict[str, Value] = {"unanswered": peer.repeats, "admin_down": peer.admin_down}
            if not peer.admin_down and any(path.state != "unknown" for path in peer.paths.values()):
                yield Symptom(peer.entity, "peer_gone", 1.0, event.time_ns, onset or event.time_ns, evidence=evidence)
        grace = self._grace(peer)
        if peer.repeats <= FAST_REPEATS:
            yield from self._ask(peer, grace)
        elif not peer.gone:
            yield from self._ask(peer, max(SLOW_REPEAT_NS, grace))

    def _somebody(self, peer: _PeerState, event: Event) -> Iterator[Finding]:
        peer.repeats = 0
        if peer.gone:
            peer.gone = False
            for kind in ("peer_gone", "peer_never_seen"):
                yield Symptom(peer.entity, kind, 0.0, event.time_ns, event.time_ns, cleared=True)

    def _lives(self, path: _PathState, event: Event, missing: int) -> Iterator[Finding]:
        if path.suspected and path.state == "well":
            yield from self._settle_suspicion(path, event.time_ns)
        if path.state not in ("dead", "unknown"):
            return
        path.clean = path.clean + 1 if not missing else 0
        if path.clean >= RECOVERY_BURSTS and path.rtt_p99_ns:
            dead = path.state == "dead"
            self._well(path)
            if dead:
                yield Symptom(path.entity, "path_dead", 0.0, event.time_ns, event.time_ns, cleared=True)

    def _settle_suspicion(self, path: _PathState, time_ns: int) -> Iterator[Finding]:
        if path.suspected:
            path.suspected = False
            yield Suspicion(time_ns, path.entity, "silence", cleared=True)

    def _died(
        self, peer: _PeerState, path: _PathState, alive: list[_PathState], event: Event
    ) -> Iterator[Finding]:
        was_gray = path.state == "gray"
        path.state, path.suspected, path.lossy, path.clean = "dead", False, False, 0
        if was_gray:
            yield Symptom(path.entity, "path_gray", 0.0, event.time_ns, event.time_ns, cleared=True)
        evidence: dict[str, Value] = {"alive": self._usable(alive)}
        onset = path.onset_ns or event.time_ns
        yield Symptom(path.entity, "path_dead", 1.0, event.time_ns, onset, evidence=evidence)

    @staticmethod
    def _usable(alive: list[_PathState]) -> tuple[str, ...]:
        """Paths with positive evidence; those known to lose only when there is no other."""
        good = tuple(path.entity.name for path in alive if path.state == "well" and not path.lossy)
        return good or tuple(path.entity.name for path in alive)

    def _weigh(
        self, path: _PathState, peer: _PeerState, alive: list[_PathState], answer: _Answer, event: Event
    ) -> Iterator[Finding]:
        """One more burst for the test of this path's loss against the best other path's."""
        # whatever the others were like before: what they answer now is what counts
        others = [other for other in alive if other is not path]
        name = path.entity.name
        if not others:
            path.lossy = False
            yield Suspicion(event.time_ns, path.entity, "loss", cleared=True)
            return
        best = min(others, key=lambda other: answer.missing(other.entity.name))
        rival = best.entity.name
        here = answer.missing(name)
        path.test = path.test or BurstTest(self._burst_alpha)
        worse = path.test.update(here, answer.sent[name], answer.missing(rival), answer.sent[rival])
        path.quiet = 0 if here else path.quiet + 1
        if worse:
            yield from self._turned_gray(path, [best], event.time_ns, path.test.evidence)
        elif path.quiet >= QUIET_BURSTS or path.test.evidence <= -2.0:
            path.lossy = False
            path.test.reset()
            yield Suspicion(event.time_ns, path.entity, "loss", cleared=True)

    def _turned_gray(
        self, path: _PathState, better: list[_PathState], time_ns: int, score: float
    ) -> Iterator[Finding]:
        path.state, path.lossy = "gray", False
        if path.test:
            path.test.reset()
        onset = path.loss_since_ns or time_ns
        evidence: dict[str, Value] = {"alive": self._usable(better)}
        yield Symptom(path.entity, "path_gray", score, time_ns, onset, evidence=evidence)

    # -- by time ---------------------------------------------------------------------------------------

    def on_frame(self, frame: Frame, knowledge: Knowledge) -> Iterable[Finding]:
        if frame.schema.sensor != "link_watch":
            return ()
        return self._counted(frame, knowledge)

    def _counted(self, frame: Frame, knowledge: Knowledge) -> Iterator[Finding]:
        names = [metric.name for metric in frame.schema.gauges]
        rtt, loss = names.index("round_trip_p99"), names.index("window_loss")
        counters = [metric.name for metric in frame.schema.counters]
        answered, lost = counters.index("answered"), counters.index("lost")
        deltas: dict[str, tuple[int, int]] = {}
        for row, entity in enumerate(frame.entities):
            peer = self._find(entity, knowledge)
            if peer is None:
                continue
            path = peer.paths[entity.name]
            p99 = float(frame.gauges[row, rtt])
            if p99 == p99:
                path.rtts_ns.append(int(p99 * 1e9))
                path.rtt_p99_ns = sorted(path.rtts_ns)[(len(path.rtts_ns) - 1) // 2]
            now = (int(frame.counters[row, answered]), int(frame.counters[row, lost]))
            if path.counted is not None and now[0] >= path.counted[0]:
                # a late answer takes a loss back
                deltas[entity.name] = (now[0] - path.counted[0], max(now[1] - path.counted[1], 0))
            path.counted = now
            if path.state == "unknown" and path.rtt_p99_ns and not path.silent:
                self._well(path)
            elif path.state == "gray" and float(frame.gauges[row, loss]) <= self._floor and not path.silent:
                path.clean += 1
                if path.clean >= RECOVERY_BURSTS:
                    self._well(path)
                    yield Symptom(entity, "path_gray", 0.0, frame.time_ns, frame.time_ns, cleared=True)
            elif path.state == "gray":
                path.clean = 0
        for peer in self._peers.values():
            yield from self._slow(peer, deltas, frame.time_ns)

    def _well(self, path: _PathState) -> None:
        path.state, path.clean, path.lossy, path.suspected = "well", 0, False, False
        # what was lost until now is no evidence against what comes
        path.test, path.slow, path.counted = None, None, None

    def _slow(self, peer: _PeerState, deltas: dict[str, tuple[int, int]], time_ns: int) -> Iterator[Finding]:
        """Steady probes of the last second, for losses too small to show in bursts."""
        well = [p for p in peer.paths.values() if p.state == "well" and not p.silent and p.entity.name in deltas]
        if len(well) < 2:
            return
        for path in well:
            ok, lost = deltas[path.entity.name]
            rivals = [other for other in well if other is not path]
            best = min(rivals, key=lambda other: deltas[other.entity.name][1])
            rival_ok, rival_lost = deltas[best.entity.name]
            path.slow = path.slow or SlowTest(self._slow_alpha, self._floor)
            if path.slow.update(lost, ok + lost, rival_lost, rival_ok + rival_lost):
                path.loss_since_ns = path.loss_since_ns or time_ns
                path.slow.reset()
                yield from self._turned_gray(path, [best], time_ns, 1.0)

    def _tick(self, knowledge: Knowledge) -> Iterator[Finding]:
        now = knowledge.now_ns
        for peer in self._peers.values():
            peer.first_ns = peer.first_ns or now
            if peer.gone:
                yield from self._ask(peer)
                continue
            unknown = all(path.state == "unknown" for path in peer.paths.values())
            if unknown and now - peer.first_ns > self._never_seen_ns:
                peer.gone = True
                yield Symptom(peer.entity, "peer_never_seen", 1.0, now, peer.first_ns)
            # an alarm that the ring lost, or a suspicion that came while another inquiry ran
            elif any(path.silent and path.state in ("well", "gray") for path in peer.paths.values()):
                yield from self._ask(peer)


def _number(event: Event, name: str) -> int:
    value = event.fields[name]
    return value if isinstance(value, int) else 0
