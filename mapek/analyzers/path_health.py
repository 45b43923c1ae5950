"""path_health: which paths are dead, which lose too much, and is it the path or the peer?

A suspicion is not a verdict. Silence, a gap or a link that went down makes it ask on all paths of the peer at
once (facts of two years of BFD: fast detection alone fails over falsely, confirmation does not):

* no answer here since the first probe of the burst, answers on another path: this path is dead (without an
  alarm of its own watchdog, or in the midst of other inquiries, only when that lasts for 4 ms);
* no answer anywhere: nothing is moved; it asks again with a back-off, and then the peer is gone;
* answers here: not silent. If some are missing, bursts go on until a sequential test against the other paths
  decides, so that loss which befalls all paths alike never moves traffic.

An inquiry that we ran late ourselves is asked again, never judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar, Final

from mapek.analyzers.path_state import Answer, PathState, PeerState, number
from mapek.analyzers.sequential import BurstTest, SlowTest, prepare
from mapek.config.options import take
from mapek.contracts import Analyzer, Options
from mapek.model import Entity, Event, Finding, Frame, Inquiry, Suspicion, Symptom, Value

if TYPE_CHECKING:
    from mapek.knowledge import Knowledge

BURST: Final = 8
"""Probes per path and inquiry."""

MONTH_S: Final = 30 * 86_400
QUIET_BURSTS: Final = 14
"""Bursts in a row without a loss that end an inquiry about it: 112 probes, clean once in 300 at 5 % loss."""

BUSY_NS: Final = 5_000_000
"""An inquiry so soon after burst upon burst finds the machine busy with the probes themselves, which can hide a link's
answers for a moment; so can anything where no watchdog has barked. Then it must stay so for a while."""

BUSY_PATIENCE_NS: Final = 4_000_000

RECOVERY_BURSTS: Final = 3
"""Bursts without a loss that make a dead path well again."""

FAST_REPEATS: Final = 20
SLOW_REPEAT_NS: Final = 20_000_000
GONE_AFTER: Final = 30
"""Unanswered inquiries after which the peer counts as gone."""

MEMORY: Final = 1 / 16
"""Weight of the newest loss in the choice of the path to compare with."""

SECOND_NS: Final = 1_000_000_000

QUICK_BURSTS: Final = 400
LASTING_REPEAT_NS: Final = 10_000_000
"""Loss that so many bursts cannot decide is looked into at this pace, and not at 16 probes a millisecond."""

LOST_NS: Final = 250_000_000
"""An answer that is late by this will not come: nobody took the inquiry, or its touchpoint has closed."""


class PathHealth(Analyzer):
    """Analyzer `path_health`.

    Options:
        grace_ms: how long a burst may take at least; the knob between speed and false verdicts. The grace is
            this or four times the 99th percentile of the slowest path's round trip, whichever is longer.
        false_switches_per_month: budget of the tests on loss, per path, at the highest lasting rate of bursts.
        loss_floor: share of probes lost that the slow test lets pass.
        never_seen_s: after this time a peer that never answered is said to be absent.
    """

    name: ClassVar[str] = "path_health"

    def __init__(self, options: Options) -> None:
        self._grace_ns = int(take(options, "grace_ms", float, 0.5, minimum=0.05, maximum=1000.0) * 1e6)
        budget = take(options, "false_switches_per_month", float, 1.0, minimum=1e-6, maximum=1e6)
        self._burst_alpha = min(budget * LASTING_REPEAT_NS / 1e9 / MONTH_S, 0.1)
        self._slow_alpha = min(budget / MONTH_S, 0.1)
        self._floor = take(options, "loss_floor", float, 0.003, minimum=1e-5, maximum=0.2)
        self._never_seen_ns = int(take(options, "never_seen_s", float, 5.0, minimum=0.1) * 1e9)
        self._peers: dict[str, PeerState] = {}
        self._inquiries = 0
        self._now_ns = 0

    def start(self, knowledge: Knowledge) -> None:
        """Every path begins as unknown."""
        # a steady probe may fall into a burst
        for sent in (BURST, BURST + 1):
            prepare(sent)
        for peer in knowledge.topology.peers.values():
            paths = {path.entity.name: PathState(path.entity) for path in peer.paths}
            self._peers[peer.name] = PeerState(peer.entity, paths)

    def _find(self, entity: Entity, knowledge: Knowledge) -> PeerState | None:
        peer = knowledge.topology.peer_of(entity)
        return self._peers.get(peer.name) if peer else None

    def on_event(self, event: Event, knowledge: Knowledge) -> Iterable[Finding]:
        """Alarms of the kernel raise suspicions, answers settle them."""
        self._now_ns = knowledge.now_ns
        if event.kind == "inquiry.answer":
            if event.fields.get("kind") == "probe_paths" and (peer := self._find(event.entity, knowledge)):
                return self._answered(peer, event)
            return ()
        if event.kind == "link.down" or event.kind == "link.gone":
            return self._link_lost(event, knowledge)
        if event.kind == "tick":
            return self._tick(knowledge)
        if not event.kind.startswith("path.") or (peer := self._find(event.entity, knowledge)) is None:
            return ()
        path = peer.paths[event.entity.name]
        if event.kind == "path.silent":
            return self._silent(peer, path, event.time_ns, number(event, "onset_ns"))
        if event.kind == "path.missing":
            return self._gap(peer, path, event)
        if event.kind == "path.back":
            path.silent, path.ever, path.unanswered_ns = False, True, 0
            return self._back(peer, path)
        if event.kind in ("path.peer_admin_down", "path.peer_up"):
            peer.admin_down = event.kind == "path.peer_admin_down"
        return ()

    # -- suspicions ------------------------------------------------------------------------------------

    def _silent(self, peer: PeerState, path: PathState, time_ns: int, onset_ns: int) -> Iterator[Finding]:
        path.silent, path.onset_ns = True, onset_ns
        if path.state == "dead" or (path.state == "unknown" and not path.ever):
            return
        if not path.suspected:
            path.suspected = True
            yield Suspicion(time_ns, path.entity, "silence")
        yield from self._ask(peer)

    def _gap(self, peer: PeerState, path: PathState, event: Event) -> Iterator[Finding]:
        if path.state != "well" or len(peer.paths) < 2:
            return
        if not path.lossy:
            path.lossy, path.quiet = True, 0
            if path.test is None or path.test.evidence <= 0:
                path.loss_since_ns = number(event, "onset_ns")
            yield Suspicion(event.time_ns, path.entity, "loss")
        yield from self._ask(peer)

    def _link_lost(self, event: Event, knowledge: Knowledge) -> Iterator[Finding]:
        for known in knowledge.topology.paths():
            if known.interface == event.entity.name:
                peer = self._peers[known.peer]
                path = peer.paths[known.entity.name]
                if not path.silent:
                    yield from self._silent(peer, path, event.time_ns, event.time_ns)

    def _back(self, peer: PeerState, path: PathState) -> Iterator[Finding]:
        if path.state in ("dead", "unknown") or peer.gone:
            path.clean = 0
            yield from self._ask(peer)

    # -- inquiries -------------------------------------------------------------------------------------

    def _grace(self, peer: PeerState) -> int:
        return max(self._grace_ns, 4 * max(path.rtt_p99_ns for path in peer.paths.values()))

    def _ask(self, peer: PeerState, delay_ns: int = 0) -> Iterator[Finding]:
        if peer.asking and self._now_ns < peer.due_ns:
            return
        self._inquiries += 1
        peer.asking = f"{self.name}:{self._inquiries}"
        grace = self._grace(peer)
        peer.due_ns = self._now_ns + delay_ns + grace + LOST_NS
        fields: dict[str, Value] = {"count": BURST, "rounds": 2}
        if delay_ns:
            fields["delay_ns"] = delay_ns
        yield Inquiry(peer.asking, peer.entity, "probe_paths", grace, fields)

    def _answered(self, peer: PeerState, event: Event) -> Iterator[Finding]:
        if event.fields["id"] != peer.asking:
            return
        peer.asking = ""
        answer = Answer.of(event)
        if answer.late_ns > self._grace(peer):
            yield from self._ask(peer)
            return
        for name, path in peer.paths.items():
            path.ever = path.ever or bool(answer.ever.get(name))
        alive = [path for name, path in peer.paths.items() if answer.alive(name)]
        if not alive:
            yield from self._nobody(peer, event)
            return
        yield from self._somebody(peer, event)
        busy = answer.asked_ns - peer.bursts_ns < BUSY_NS
        again = False
        for name, path in peer.paths.items():
            if path in alive:
                path.unanswered_ns = 0
                yield from self._lives(path, event, answer.missing(name), answer.round_trip_ns[name])
            elif path.state in ("well", "gray") or (path.state == "unknown" and path.ever and path.silent):
                # A path that answered and fell silent before it was found well is dead too: traffic may be on it.
                path.unanswered_ns = path.unanswered_ns or answer.asked_ns
                patience = BUSY_PATIENCE_NS if busy or not path.silent else 0
                if event.time_ns - path.unanswered_ns >= patience:
                    yield from self._died(path, alive, answer, event)
                else:
                    again = True
        again |= any(path.state in ("dead", "unknown") for path in alive)
        for path in alive:
            if path.lossy and path.state == "well":
                yield from self._weigh(path, alive, answer, event)
                again |= path.lossy
        for path in alive:
            if sent := answer.sent.get(path.entity.name):
                path.missed += (answer.missing(path.entity.name) / sent - path.missed) * MEMORY
        if again:
            peer.bursts_ns = event.time_ns
            yield from self._ask(peer, self._pause(peer))

    def _pause(self, peer: PeerState) -> int:
        """None at first; whoever goes on asking gets a burst each `LASTING_REPEAT_NS` in the long run."""
        earned = max(self._now_ns - peer.paid_ns, 0) / LASTING_REPEAT_NS
        peer.credit, peer.paid_ns = min(peer.credit + earned, QUICK_BURSTS), self._now_ns
        if peer.credit < 1:
            peer.paid_ns += LASTING_REPEAT_NS  # the pause itself earns nothing
            return LASTING_REPEAT_NS
        peer.credit -= 1
        return 0

    def _nobody(self, peer: PeerState, event: Event) -> Iterator[Finding]:
        """No answer on any path: the peer, or we ourselves; moving traffic could only do harm."""
        peer.repeats += 1
        if peer.repeats == GONE_AFTER and not peer.gone:
            peer.gone = True
            for path in peer.paths.values():
                yield from self._settle_suspicion(path, event.time_ns)
            onset = max((path.onset_ns for path in peer.paths.values()), default=0)
            evidence: dict[str, Value] = {"unanswered": peer.repeats, "admin_down": peer.admin_down}
            if not peer.admin_down and any(path.ever for path in peer.paths.values()):
                peer.said = "peer_gone"
                onset = onset or event.time_ns
                yield Symptom(peer.entity, peer.said, 1.0, event.time_ns, onset, evidence=evidence)
        grace = self._grace(peer)
        if peer.repeats <= FAST_REPEATS:
            yield from self._ask(peer, grace)
        elif not peer.gone:
            yield from self._ask(peer, max(SLOW_REPEAT_NS, grace))

    def _somebody(self, peer: PeerState, event: Event) -> Iterator[Finding]:
        peer.repeats, peer.gone = 0, False
        if peer.said:
            said, peer.said = peer.said, ""
            yield Symptom(peer.entity, said, 0.0, event.time_ns, event.time_ns, cleared=True)

    def _lives(self, path: PathState, event: Event, missing: int, round_trip_ns: int) -> Iterator[Finding]:
        path.ever = True
        if not path.rtts_ns:
            # before the first frame that knows, the slowest answer so far stands for the percentile
            path.rtt_p99_ns = max(path.rtt_p99_ns, round_trip_ns)
        yield from self._settle_suspicion(path, event.time_ns)
        if path.state not in ("dead", "unknown"):
            return
        path.clean = path.clean + 1 if not missing else 0
        if path.clean >= RECOVERY_BURSTS and path.rtt_p99_ns:
            dead = path.state == "dead"
            self._well(path)
            if dead:
                yield Symptom(path.entity, "path_dead", 0.0, event.time_ns, event.time_ns, cleared=True)

    def _settle_suspicion(self, path: PathState, time_ns: int) -> Iterator[Finding]:
        if path.suspected:
            path.suspected = False
            yield Suspicion(time_ns, path.entity, "silence", cleared=True)

    def _died(
        self, path: PathState, alive: list[PathState], answer: Answer, event: Event
    ) -> Iterator[Finding]:
        was_gray = path.state == "gray"
        path.state, path.suspected, path.lossy, path.clean = "dead", False, False, 0
        if was_gray:
            yield Symptom(path.entity, "path_gray", 0.0, event.time_ns, event.time_ns, cleared=True)
        evidence: dict[str, Value] = {"alive": self._usable(alive)}
        # found out while asking about another path, its silence has no alarm of its own yet
        onset = path.onset_ns if path.silent else answer.last_answer_ns.get(path.entity.name, 0)
        yield Symptom(path.entity, "path_dead", 1.0, event.time_ns, onset or event.time_ns, evidence=evidence)

    @staticmethod
    def _usable(alive: list[PathState]) -> tuple[str, ...]:
        """Paths with positive evidence; those known to lose only when there is no other."""
        good = tuple(path.entity.name for path in alive if path.state == "well" and not path.lossy)
        return good or tuple(path.entity.name for path in alive)

    def _weigh(
        self, path: PathState, alive: list[PathState], answer: Answer, event: Event
    ) -> Iterator[Finding]:
        """One more burst for the test of this path's loss against the best other path's."""
        # whatever they were called before: that they answer now is what counts
        others = [other for other in alive if other is not path]
        name = path.entity.name
        if not others:
            path.lossy = False
            yield Suspicion(event.time_ns, path.entity, "loss", cleared=True)
            return
        best = min(others, key=lambda other: other.missed)
        rival = best.entity.name
        here = answer.missing(name)
        path.test = path.test or BurstTest(self._burst_alpha)
        worse = path.test.update(here, answer.sent[name], answer.missing(rival), answer.sent[rival])
        path.quiet = 0 if here else path.quiet + 1
        if worse:
            yield from self._turned_gray(path, [best], event.time_ns, path.test.evidence)
        elif path.quiet >= QUIET_BURSTS or path.test.evidence <= -2.0:
            path.lossy, path.loss_since_ns = False, 0
            path.test.reset()
            yield Suspicion(event.time_ns, path.entity, "loss", cleared=True)

    def _turned_gray(
        self, path: PathState, better: list[PathState], time_ns: int, score: float, error_ns: int = 0
    ) -> Iterator[Finding]:
        path.state, path.lossy = "gray", False
        if path.test:
            path.test.reset()
        onset, path.loss_since_ns = path.loss_since_ns or time_ns, 0
        evidence: dict[str, Value] = {"alive": self._usable(better)}
        yield Symptom(path.entity, "path_gray", score, time_ns, onset, error_ns, evidence=evidence)

    # -- by time ---------------------------------------------------------------------------------------

    def on_frame(self, frame: Frame, knowledge: Knowledge) -> Iterable[Finding]:
        """Once a second: round trips, losses too small for bursts, and alarms that were lost."""
        self._now_ns = knowledge.now_ns
        if frame.schema.sensor != "link_watch":
            return ()
        return self._counted(frame, knowledge)

    def _counted(self, frame: Frame, knowledge: Knowledge) -> Iterator[Finding]:
        names = [metric.name for metric in frame.schema.gauges]
        rtt, loss = names.index("round_trip_p99"), names.index("window_loss")
        silent, age = names.index("silent"), names.index("answer_age")
        counters = [metric.name for metric in frame.schema.counters]
        answered, lost, late = (counters.index(name) for name in ("answered", "lost", "late"))
        deltas: dict[str, tuple[int, int]] = {}
        for row, entity in enumerate(frame.entities):
            peer = self._find(entity, knowledge)
            if peer is None or not frame.valid[row]:
                continue
            path = peer.paths[entity.name]
            answer_age = float(frame.gauges[row, age])
            path.ever = path.ever or answer_age == answer_age
            heard = int(frame.counters[row, answered]) > path.answered
            path.answered = int(frame.counters[row, answered])
            if frame.gauges[row, silent]:
                if not path.silent:
                    since = frame.time_ns - (int(answer_age * 1e9) if answer_age == answer_age else 0)
                    yield from self._silent(peer, path, frame.time_ns, since)
            elif heard and (path.silent or path.state == "dead"):
                path.silent, path.unanswered_ns = False, 0
                yield from self._back(peer, path)
            p99 = float(frame.gauges[row, rtt])
            if p99 == p99:
                path.rtts_ns.append(int(p99 * 1e9))
                path.rtt_p99_ns = sorted(path.rtts_ns)[(len(path.rtts_ns) - 1) // 2]
            # a late answer takes a loss back
            unanswered = int(frame.counters[row, lost]) - int(frame.counters[row, late])
            now = (int(frame.counters[row, answered]), unanswered)
            if path.counted is not None and now[0] >= path.counted[0]:
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

    def _well(self, path: PathState) -> None:
        path.state, path.clean, path.lossy, path.suspected = "well", 0, False, False
        # what was lost until now is no evidence against what comes
        path.test, path.slow, path.counted = None, None, None
        path.loss_since_ns = path.slow_since_ns = 0
        path.missed = path.lost = 0.0

    def _slow(self, peer: PeerState, deltas: dict[str, tuple[int, int]], time_ns: int) -> Iterator[Finding]:
        """Steady probes of the last second, for losses too small to show in bursts."""
        paths = peer.paths.values()
        well = [p for p in paths if p.state == "well" and not p.silent and p.entity.name in deltas]
        if len(well) < 2:
            return
        for path in well:
            ok, lost = deltas[path.entity.name]
            rivals = [other for other in well if other is not path]
            best = min(rivals, key=lambda other: other.lost)
            rival_ok, rival_lost = deltas[best.entity.name]
            path.slow = path.slow or SlowTest(self._slow_alpha, self._floor)
            worse = path.slow.update(lost, ok + lost, rival_lost, rival_ok + rival_lost)
            if path.slow.evidence <= 0 or not path.slow_since_ns:
                path.slow_since_ns = time_ns
            if worse:
                score, path.loss_since_ns = path.slow.evidence, path.slow_since_ns
                path.slow.reset()
                yield from self._turned_gray(path, [best], time_ns, score, SECOND_NS)
        for path in well:
            ok, lost = deltas[path.entity.name]
            if ok + lost:
                path.lost += (lost / (ok + lost) - path.lost) * MEMORY

    def _tick(self, knowledge: Knowledge) -> Iterator[Finding]:
        now = knowledge.now_ns
        for peer in self._peers.values():
            peer.first_ns = peer.first_ns or now
            if peer.gone:
                yield from self._ask(peer)
                continue
            paths = peer.paths.values()
            if not any(path.ever for path in paths):
                if now - peer.first_ns > self._never_seen_ns and not peer.admin_down:
                    peer.gone, peer.said = True, "peer_never_seen"
                    yield Symptom(peer.entity, peer.said, 1.0, now, peer.first_ns)
            # a suspicion that came while another inquiry ran, or an answer that never came
            elif (
                any(path.state in ("well", "gray") and (path.silent or path.lossy) for path in paths)
                or all(path.silent for path in paths)
            ):  # fmt: skip
                yield from self._ask(peer)
