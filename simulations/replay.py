"""Replays a recording through the very same loop in virtual time, and says whether it decides alike.

Inputs enter in the order and at the time of their arrival. Questions and plans are answered by the
recording: what was asked then gets the answer of then, in its place. What was never asked is *unknown*;
its answer is not made up, and the share of such questions says how far a what-if can be believed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mapek.clock import VirtualClock
from mapek.contracts import Analyzer, Policy
from mapek.errors import RecordingError
from mapek.knowledge import Knowledge
from mapek.knowledge.encoding import encode
from mapek.loop import Loop
from mapek.model import Event, Frame, Incident, Inquiry, Plan
from mapek.simulations.recording import About, Decision, Entry, RecordingReader
from mapek.tally import stages

ANSWERS: Final = frozenset({"inquiry.answer", "plan.acted", "plan.failed", "plan.overdue"})
"""Events that exist only because the loop asked or acted."""

QUESTIONS: Final = 2_000_000
"""Inquiries and plans of one recording at most: they are held in memory."""

_SLICE = 500


@dataclass(frozen=True, slots=True)
class Difference:
    """The first decision that differs: its number, the loop's time, what was decided then and what now."""

    number: int
    now_ns: int
    recorded: str
    replayed: str


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What a replay found.

    Args:
        about: of the recording.
        inputs: fed to the loop; answers to what was not asked are not among them (`withheld`).
        recorded, replayed: how many decisions were made then and now.
        difference: the first one, None if all decisions are alike byte for byte.
        asked, unknown: questions and plans of the replay, and how many of them the recording cannot answer.
        incidents: of the replay, in their last state.
        damage: why the recording ended early; empty if it did not.
        missing: items that the recorder had to leave out.
        seconds: of recorded time.
    """

    about: About
    inputs: int
    withheld: int
    recorded: int
    replayed: int
    difference: Difference | None
    asked: int
    unknown: int
    incidents: tuple[Incident, ...]
    damage: str
    missing: int
    seconds: float

    @property
    def alike(self) -> bool:
        """True if every decision was made again, in the same order, with the same bytes."""
        return self.difference is None

    def plain(self) -> dict[str, object]:
        """As tables for JSON; times of incidents in ms, stages as `mapek.tally.stages` has them."""
        return {
            "node": self.about.topology.node,
            "versions": dict(self.about.versions),
            "seconds": self.seconds,
            "inputs": self.inputs,
            "withheld": self.withheld,
            "decisions": {"recorded": self.recorded, "replayed": self.replayed, "alike": self.alike},
            "difference": None if self.difference is None else {
                "number": self.difference.number,
                "time_ns": self.difference.now_ns,
                "recorded": self.difference.recorded,
                "replayed": self.difference.replayed,
            },
            "questions": {
                "asked": self.asked,
                "unknown": self.unknown,
                "unknown_share": self.unknown / self.asked if self.asked else 0.0,
            },
            "incidents": [_incident(one) for one in self.incidents],
            "damage": self.damage,
            "missing": self.missing,
        }  # fmt: skip


def _incident(one: Incident) -> dict[str, object]:
    recovered = one.state == "recovered"
    return {
        "id": one.id,
        "entity": str(one.entity),
        "kind": one.kind,
        "state": one.state,
        "policy": one.policy,
        "reason": one.reason,
        "mttr_ms": (one.recovered_ns - one.onset_ns) / 1e6 if recovered else None,
        "stages_ms": {name: seconds * 1e3 for name, seconds in stages(one).items()},
    }


class Recorded:
    """The effects of a recording: what was asked and done in it, and which of that came to an end."""

    def __init__(self, reader: RecordingReader) -> None:
        self._questions: dict[str, bytes] = {}
        self._ended: set[str] = set()
        self._plans = 0
        self.last_ns = 0
        for entry in reader:
            self.last_ns = max(self.last_ns, entry.now_ns)
            if isinstance(entry.item, Inquiry):
                # The proof of a plan is asked under the plan's own name.
                self._questions[f"ask {entry.item.id}"] = entry.data
            elif isinstance(entry.item, Plan):
                if entry.item.steps:
                    self._plans += 1
                    self._questions[f"do plan:{self._plans}"] = entry.data
            elif isinstance(entry.item, Event) and entry.item.kind in ANSWERS:
                self._ended.add(f"{_verb(entry.item)} {entry.item.fields.get('id')}")
            if len(self._questions) > QUESTIONS:
                why = f"more than {QUESTIONS} questions"
                raise RecordingError("replay", reader.path, why, "cut it with an MCAP tool")
        self.asked = self.unknown = 0
        self._known: set[str] = set()
        self._passed: set[str] = set()
        self.now_ns: Callable[[], int] = lambda: 0

    def ask(self, inquiry: Inquiry) -> bool:
        """True if the touchpoints of then took the question, or nobody can know."""
        question = f"ask {inquiry.id}"
        self._note(question, encode(inquiry))
        if question not in self._known or question in self._ended:
            return True
        # Asked then and never answered: nobody took it, unless the recording ends before the answer was due.
        return self.now_ns() + inquiry.within_ns >= self.last_ns

    def carry_out(self, plan_id: str, plan: Plan) -> None:
        """Nothing: its end, if it was carried out then, comes with the inputs."""
        self._note(f"do {plan_id}", encode(plan))

    def _note(self, question: str, data: bytes) -> None:
        self.asked += 1
        if self._questions.get(question) == data and question not in self._passed:
            self._known.add(question)
        else:
            self._known.discard(question)
            self.unknown += 1

    def fits(self, item: Event | Frame) -> bool:
        """False for an answer to something that was not asked this time, or not so."""
        if not isinstance(item, Event) or item.kind not in ANSWERS:
            return True
        question = f"{_verb(item)} {item.fields.get('id')}"
        if question not in self._known:
            self._passed.add(question)  # asked later than then, its answer will not come a second time
        return question in self._known


def _verb(event: Event) -> str:
    return "do" if event.kind in ("plan.acted", "plan.failed") else "ask"


class _Comparison:
    """Compares two streams of decisions of which either may run ahead."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0
        self.difference: Difference | None = None
        self._then: deque[tuple[int, str, bytes]] = deque()
        self._now: deque[tuple[int, str, bytes]] = deque()

    def then(self, entry: Entry) -> None:
        self.recorded += 1
        self._compare(self._then, (entry.now_ns, type(entry.item).__name__, entry.data))

    def now(self, now_ns: int, decision: Decision) -> None:
        self.replayed += 1
        self._compare(self._now, (now_ns, type(decision).__name__, encode(decision)))

    def _compare(self, side: deque[tuple[int, str, bytes]], decision: tuple[int, str, bytes]) -> None:
        if self.difference is not None:
            return
        side.append(decision)
        if self._then and self._now:
            then, now = self._then.popleft(), self._now.popleft()
            if then != now:
                number = min(self.recorded, self.replayed)
                self.difference = Difference(number, min(then[0], now[0]), _said(then), _said(now))

    def finish(self, damage: str) -> None:
        """What one side has too many of is a difference; of a damaged recording the end may be missing."""
        if self.difference is not None:
            return
        number = min(self.recorded, self.replayed) + 1
        if self._then:
            self.difference = Difference(number, self._then[0][0], _said(self._then[0]), "nothing")
        elif self._now and not damage:
            self.difference = Difference(number, self._now[0][0], "nothing", _said(self._now[0]))


def _said(decision: tuple[int, str, bytes]) -> str:
    now_ns, kind, data = decision
    return f"{kind} at {now_ns}: {data.decode('utf-8', 'replace')}"


def _feed(loop: Loop, entry: Entry, path: Path) -> None:
    assert isinstance(entry.item, (Frame, Event))
    try:
        loop.feed(entry.item)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        # Plugins are supervised: it is the loop itself that misses what all events of that kind have.
        why = f"an input at {entry.now_ns} is not what it says ({type(error).__name__}: {error})"
        raise RecordingError("replay", path, why, "record anew") from error


async def replay(
    path: Path,
    analyzers: Iterable[Analyzer],
    policies: Iterable[Policy],
    *,
    show: Callable[[int, Decision], None] | None = None,
) -> ReplayReport:
    """Feed the recording at `path` to a loop of `analyzers` and `policies`, which must be new.

    Args:
        show: called with each decision of the replay and the loop's time, in order.

    Raises:
        RecordingError: it is no recording, or of another form. A damaged one is replayed up to the damage.
    """
    reader = RecordingReader(path)
    effects = Recorded(reader)
    comparison = _Comparison()
    last: dict[int, Incident] = {}

    def tap(now_ns: int, item: Frame | Event | Decision) -> None:
        if isinstance(item, (Frame, Event)):
            return
        comparison.now(now_ns, item)
        if isinstance(item, Incident):
            last[item.id] = item
        if show:
            show(now_ns, item)

    knowledge = Knowledge(reader.about.topology)
    begin_ns = next((entry.now_ns for entry in reader), 0)
    clock = VirtualClock(begin_ns)
    effects.now_ns = clock.now_ns
    loop = Loop(knowledge, clock, (), analyzers, policies, effects=effects, tap=tap, replay=True)
    inputs = withheld = 0
    async with loop:
        for number, entry in enumerate(reader):
            if number % _SLICE == 0:
                await asyncio.sleep(0)
            clock.advance_to(entry.now_ns)
            if isinstance(entry.item, (Frame, Event)):
                if effects.fits(entry.item):
                    inputs += 1
                    _feed(loop, entry, path)
                else:
                    withheld += 1
            else:
                comparison.then(entry)
    comparison.finish(reader.damage)
    seconds = (effects.last_ns - begin_ns) / 1e9
    return ReplayReport(
        reader.about, inputs, withheld, comparison.recorded, comparison.replayed, comparison.difference,
        effects.asked, effects.unknown, tuple(last.values()), reader.damage, reader.missing, seconds,
    )  # fmt: skip
