"""The loop: every input goes through Analyze, Plan and Execute, in the order of its arrival.

`feed` is the only entry. An input is worked off at once, in the callback that brought it, without a task
switch, since that is what a repair in a fraction of a millisecond needs; what an input causes (an answer that
is already there) queues behind it. Publishing to subscribers waits until the actions are under way.

The loop decides on its inputs alone and stamps them itself, so the same inputs with the same stamps lead to
the same decisions: that is what a replay relies on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from mapek.analyze import Analyze
from mapek.clock import Clock, Timer
from mapek.contracts import Analyzer, Policy, Touchpoint
from mapek.errors import MapekError
from mapek.execute import Effects, Execute, PlanLog
from mapek.incident import Incidents
from mapek.knowledge import Knowledge
from mapek.model import (
    Entity,
    Event,
    Finding,
    Frame,
    Incident,
    IncidentState,
    Input,
    Inquiry,
    Plan,
    Suspicion,
)
from mapek.monitor import Monitor
from mapek.plan import Planner
from mapek.supervision import Supervision
from mapek.tally import Tally

QUEUE = 4096
TICK_NS = 1_000_000_000
FIRST_TICK_NS = 250_000_000
PROOF_LATE_NS = 100_000_000
"""A touchpoint that has not answered this long after the settling time never will."""

Decision = Finding | Plan | Incident
Published = Decision | Event
Subscriber = Callable[[Published], None]
Tap = Callable[[int, Input | Decision], None]
"""Sees every input and every decision in order, with the loop's stamp: what a recorder needs."""


class NoJournal:
    """Remembers nothing."""

    def intent(self, plan_id: str, plan: Plan, time_ns: int) -> None:
        """Forget it."""

    def result(self, plan_id: str, ok: bool, detail: str, time_ns: int) -> None:
        """Forget it."""

    def incident(self, incident: Incident, time_ns: int) -> None:
        """Forget it."""


class Journal(PlanLog, Protocol):
    """What the loop needs of a journal; `mapek.knowledge.journal` has the durable one."""

    def incident(self, incident: Incident, time_ns: int) -> None: ...


@dataclass(slots=True)
class _Repair:
    """A plan under way."""

    plan: Plan
    incident: int | None = None
    acked_ns: int = 0
    overdue: Timer | None = None


class Loop:
    """One autonomic loop. An async context manager: entering opens everything, leaving closes it.

    Args:
        knowledge: shared by all phases.
        clock: real or virtual.
        touchpoints, analyzers, policies: the plugins, each asked in this order.
        journal: told of intents, results and incidents.
        effects: what answers inquiries and carries out plans; by default the touchpoints.
        tap: see `Tap`.
        state_dir: the agent's own directory, for the touchpoints.
        replay: the inputs bring their own ticks and ends of plans; time is virtual, nothing is deferred.
    """

    def __init__(
        self,
        knowledge: Knowledge,
        clock: Clock,
        touchpoints: Iterable[Touchpoint] = (),
        analyzers: Iterable[Analyzer] = (),
        policies: Iterable[Policy] = (),
        *,
        journal: Journal | NoJournal | None = None,
        effects: Effects | None = None,
        tap: Tap | None = None,
        tally: Tally | None = None,
        replay: bool = False,
        state_dir: Path | None = None,
    ) -> None:
        self.knowledge, self.clock = knowledge, clock
        self.tally = tally or Tally()
        self.journal = journal or NoJournal()
        self.supervision = Supervision(clock, self.tally)
        self.monitor = Monitor(touchpoints, clock, knowledge, self.supervision, self.feed, state_dir)
        self._analyze = Analyze(analyzers, knowledge, self.supervision)
        self._planner = Planner(policies, knowledge, self.supervision)
        self._execute = Execute(self.monitor.watched, clock, self.supervision, self.journal, self.feed)
        self._effects: Effects = effects or self._execute
        self.incidents = Incidents(self._changed)
        self._tap = tap
        self._subscribers: list[Subscriber] = []
        self._queue: deque[tuple[int, Input]] = deque()
        self._working = False
        self._outbox: list[Published] = []
        self._plans = 0
        self._repairs: dict[str, _Repair] = {}
        self._node = Entity("node", knowledge.topology.node)
        self._replay = replay
        self._tick: Timer | None = None
        self.ticked_ns = 0
        """When a tick last went through all phases, by the loop's clock; 0 before the first. One comes each second."""
        self.failed_at_start: dict[str, MapekError] = {}

    async def __aenter__(self) -> Self:
        self._analyze.start()
        self._planner.start()
        try:
            self.failed_at_start = await self.monitor.start()
        except BaseException:
            await self.monitor.stop()
            raise
        if not self._replay:
            self._next_tick(self.clock.now_ns() + FIRST_TICK_NS)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._tick:
            self._tick.cancel()
        try:
            await self._execute.stop()
        finally:
            await self.monitor.stop()
        for repair in self._repairs.values():
            if repair.overdue:
                repair.overdue.cancel()
        self._flush()

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber` with each decision, and with plan.acted and plan.failed; returns what ends it."""
        self._subscribers.append(subscriber)
        return lambda: self._subscribers.remove(subscriber) if subscriber in self._subscribers else None

    def feed(self, item: Input) -> None:
        """Take an input in; from the event loop's thread only."""
        if len(self._queue) >= QUEUE:
            self.tally.count("queue_drops", {"queue": "inputs"})
            return
        self._queue.append((self.clock.now_ns(), item))
        if self._working:
            return
        self._working = True
        try:
            while self._queue:
                now_ns, item = self._queue.popleft()
                try:
                    self._work(now_ns, item)
                except Exception as error:
                    # an input that breaks its contract must not take those behind it along
                    self.supervision.failed("loop", error)
        finally:
            self._working = False
        self._publish_later()

    def _work(self, now_ns: int, item: Input) -> None:
        knowledge = self.knowledge
        knowledge.now_ns = now_ns
        if self._tap:
            self.supervision.call("tap", None, self._tap, now_ns, item)
        if isinstance(item, Frame):
            self.tally.count("inputs", {"type": "frame"})
            if not self.supervision.call(item.schema.sensor, False, self._take, item):
                return
        else:
            self.tally.count("inputs", {"type": "event"})
            self._progress(item)
        for finding in self._analyze.findings(item):
            self._found(finding)
        if isinstance(item, Event):
            for plan in self._planner.volunteered(item):
                self._begin(plan)
            self.monitor.heard(item)
            if item.kind == "tick":
                self.ticked_ns = now_ns

    def _take(self, frame: Frame) -> bool:
        self.knowledge.take(frame)
        return True

    def _decided(self, decision: Decision) -> None:
        if self._tap:
            self.supervision.call("tap", None, self._tap, self.knowledge.now_ns, decision)
        self._outbox.append(decision)

    def _found(self, finding: Finding) -> None:
        self._decided(finding)
        if isinstance(finding, Inquiry):
            self.tally.count("inquiries", {"kind": finding.kind})
            self._effects.ask(finding)
        elif isinstance(finding, Suspicion):
            name = "cleared_suspicions" if finding.cleared else "suspicions"
            self.tally.count(name, {"kind": finding.kind})
        elif finding.cleared:
            self._planner.cleared(finding)
            self.incidents.clear(finding.entity, finding.kind, finding.detected_ns)
        else:
            # act first: the books are kept while the kernel already works
            plan = self._planner.answer(finding)
            repair = self._begin(plan) if plan else None
            self.tally.count("symptoms", {"kind": finding.kind})
            incident = self.incidents.begin(finding)
            if repair is not None:
                repair.incident = incident.id

    def _begin(self, plan: Plan) -> _Repair | None:
        if not plan.steps:
            # a policy that says why nothing is to be done
            self._decided(plan)
            return None
        self._plans += 1
        plan_id = f"plan:{self._plans}"
        repair = self._repairs[plan_id] = _Repair(plan)
        self._decided(plan)
        self._effects.carry_out(plan_id, plan)
        return repair

    def _progress(self, event: Event) -> None:
        """Move the repair on that `event` tells of."""
        if event.kind == "inquiry.answer":
            self._proof(str(event.fields["id"]), event)
        elif event.kind in ("plan.acted", "plan.failed"):
            plan_id = str(event.fields["id"])
            if repair := self._repairs.get(plan_id):
                self._acted(plan_id, repair, event)
        elif event.kind == "plan.overdue":
            self._proof(str(event.fields["id"]), event)

    def _acted(self, plan_id: str, repair: _Repair, event: Event) -> None:
        self._outbox.append(event)
        policy = repair.plan.policy
        if repair.incident is not None:
            # only now: the stamp comes with the event, so that a replay has the same one
            planned_ns = int(event.fields["planned_ns"])  # type: ignore[arg-type]
            self.incidents.advance(repair.incident, "planned", planned_ns, policy, repair.plan.reason)
        if event.kind == "plan.failed":
            self._end(plan_id, repair, "failed", event.time_ns, str(event.fields["why"]))
            return
        if not event.fields["changed"]:
            self._end(plan_id, repair, "no_op", event.time_ns, "the plan changed nothing")
            return
        repair.acked_ns = int(event.fields["acked_ns"])  # type: ignore[arg-type]
        if repair.incident is not None:
            self.incidents.advance(repair.incident, "acted", repair.acked_ns, policy)
        expect = repair.plan.expect
        if expect is None:
            self._end(plan_id, repair, "unproved", event.time_ns, "nothing was expected that could prove it")
            return
        asked = Inquiry(plan_id, expect.entity, expect.kind, repair.plan.settle_ns, expect.fields)
        self._decided(asked)
        due = self.clock.now_ns() + repair.plan.settle_ns + PROOF_LATE_NS
        overdue = Event(due, repair.plan.entity, "plan.overdue", {"id": plan_id, "ok": False})
        if not self._replay:
            repair.overdue = self.clock.call_at(due, lambda: self.feed(overdue))
        if not self._effects.ask(asked):
            self._end(plan_id, repair, "unproved", event.time_ns, "no touchpoint could look for the proof")

    def _proof(self, plan_id: str, event: Event) -> None:
        repair = self._repairs.get(plan_id)
        if repair is None:
            return
        if event.fields.get("ok"):
            self._end(plan_id, repair, "recovered", event.time_ns, "")
        else:
            self._end(plan_id, repair, "unrecovered", event.time_ns, "no proof within the settling time")
            if plan := self._planner.unproved(repair.plan):
                self._begin(plan)

    def _end(self, plan_id: str, repair: _Repair, outcome: str, at_ns: int, why: str) -> None:
        del self._repairs[plan_id]
        if repair.overdue:
            repair.overdue.cancel()
        self.tally.count("plans", {"policy": repair.plan.policy, "outcome": outcome})
        if repair.incident is not None:
            state: IncidentState = "recovered" if outcome == "recovered" else "unrecovered"
            self.incidents.advance(repair.incident, state, at_ns, repair.plan.policy, why)

    def _changed(self, incident: Incident) -> None:
        self.tally.incident(incident)
        self.journal.incident(incident, self.clock.now_ns())
        self._decided(incident)
        self._planner.tell(incident)

    def _publish_later(self) -> None:
        if not self._outbox:
            return
        if self._replay:
            self._flush()
            return
        # twice: a task that was created just now runs in between
        soon = asyncio.get_running_loop().call_soon
        soon(soon, self._flush)

    def _flush(self) -> None:
        out, self._outbox = self._outbox, []
        for published in out:
            for subscriber in tuple(self._subscribers):
                self.supervision.call("subscriber", None, subscriber, published)

    def _next_tick(self, due_ns: int) -> None:
        def tick() -> None:
            self.tally.observe("tick_lateness_seconds", None, (self.clock.now_ns() - due_ns) / 1e9)
            self.feed(Event(due_ns, self._node, "tick"))
            self._next_tick(max(due_ns + TICK_NS, self.clock.now_ns()))

        self._tick = self.clock.call_at(due_ns, tick)
