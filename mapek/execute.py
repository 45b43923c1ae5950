"""Execute: carries out plans through the touchpoints, and says what came of them as events.

"plan.acted" (planned_ns, acked_ns, changed) or "plan.failed" (why, undone) enter the loop like any input,
so a recording holds them and a replay needs no effector. The journal is told before the first step and
after the last; its disk is never waited for: what a crash loses of it is found by reading the kernel back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Protocol

from mapek.clock import Clock
from mapek.contracts import Touchpoint
from mapek.errors import DegradedError, MapekError
from mapek.model import Applied, Event, Inquiry, Plan, Step, Value
from mapek.monitor import Watched
from mapek.supervision import Supervision


class Effects(Protocol):
    """What the loop does to the world: really, or from a recording."""

    def ask(self, inquiry: Inquiry) -> bool:
        """Begin to answer `inquiry`; False when nobody can."""
        ...

    def carry_out(self, plan_id: str, plan: Plan) -> None:
        """Begin to carry out `plan`; its end comes as an event "plan.acted" or "plan.failed" with that id."""
        ...


class PlanLog(Protocol):
    """What Execute needs of the journal."""

    def intent(self, plan_id: str, plan: Plan, time_ns: int) -> None: ...

    def result(self, plan_id: str, ok: bool, detail: str, time_ns: int) -> None: ...


class Execute:
    """Effects on the real touchpoints."""

    def __init__(
        self,
        watched: Mapping[str, Watched],
        clock: Clock,
        supervision: Supervision,
        journal: PlanLog,
        feed: Callable[[Event], None],
    ) -> None:
        self._watched, self._clock, self._supervision = watched, clock, supervision
        self._journal, self._feed = journal, feed
        self._tasks: dict[asyncio.Task[None], Plan] = {}
        self._stopped = False

    def ask(self, inquiry: Inquiry) -> bool:
        return any(
            self._supervision.call(name, False, watched.touchpoint.ask, inquiry)
            for name, watched in self._watched.items()
            if watched.open
        )

    def carry_out(self, plan_id: str, plan: Plan) -> None:
        """Steps that can be done at once are done here and now; the first that cannot begins a task.

        A plan that touches what another one is still changing waits for it. After `stop` none is begun.
        """
        if self._stopped:
            return
        planned_ns = self._clock.now_ns()
        self._journal.intent(plan_id, plan, planned_ns)
        applied: list[Applied] = []
        before = self._in_the_way(plan) if self._tasks else []
        if before:
            self._begin(self._carry_on(plan_id, plan, planned_ns, applied, None, before), plan)
            return
        error: Exception | None = None
        try:
            for step in plan.steps:
                at_once = self._supervision.timed(step.touchpoint, self._owner(step).act_now, step)
                if at_once is None:
                    break
                applied.append(at_once)
        except Exception as raised:
            error = raised
        if error is None and len(applied) == len(plan.steps):
            self._acted(plan_id, plan, planned_ns, applied)
            return
        self._begin(self._carry_on(plan_id, plan, planned_ns, applied, error), plan)

    def _begin(self, work: Coroutine[None, None, None], plan: Plan) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = plan
        task.add_done_callback(self._tasks.pop)

    def _in_the_way(self, plan: Plan) -> list[asyncio.Task[None]]:
        wanted = set(plan.touches)
        return [task for task, other in self._tasks.items() if wanted.intersection(other.touches)]

    async def _carry_on(
        self,
        plan_id: str,
        plan: Plan,
        planned_ns: int,
        applied: list[Applied],
        error: Exception | None,
        before: Sequence[asyncio.Task[None]] = (),
    ) -> None:
        if before:
            await asyncio.wait(before)
        done = list(plan.steps[: len(applied)])
        try:
            if error is not None:
                raise error
            for step in plan.steps[len(applied) :]:
                applied.append(await self._act(step))
                done.append(step)
        except Exception as error:
            why = str(error) if isinstance(error, MapekError) else f"{type(error).__name__}: {error}"
            undone = await self._undo(done)
            failure: dict[str, Value] = {
                "id": plan_id,
                "planned_ns": planned_ns,
                "policy": plan.policy,
                "why": why,
                "undone": undone,
            }
            self._feed(Event(self._clock.now_ns(), plan.entity, "plan.failed", failure))
            self._journal.result(plan_id, False, why, self._clock.now_ns())
            return
        self._acted(plan_id, plan, planned_ns, applied)

    def _acted(self, plan_id: str, plan: Plan, planned_ns: int, applied: list[Applied]) -> None:
        fields: dict[str, Value] = {
            "id": plan_id,
            "planned_ns": planned_ns,
            "policy": plan.policy,
            "acked_ns": max((one.acked_ns for one in applied), default=self._clock.now_ns()),
            "changed": any(one.changed for one in applied),
            "detail": "; ".join(one.detail for one in applied if one.detail),
        }
        self._feed(Event(self._clock.now_ns(), plan.entity, "plan.acted", fields))
        self._journal.result(plan_id, True, str(fields["detail"]), self._clock.now_ns())

    def _owner(self, step: Step) -> Touchpoint:
        watched = self._watched.get(step.touchpoint)
        if watched is None or not watched.open:
            raise DegradedError(step.action, step.touchpoint, "this touchpoint is not open", "see /health")
        return watched.touchpoint

    async def _act(self, step: Step) -> Applied:
        return await self._supervision.run(step.touchpoint, self._owner(step).act(step))

    async def _undo(self, done: list[Step]) -> bool:
        """Undo what was done, the last first; True if all of it is undone."""
        complete = True
        for step in reversed(done):
            try:
                if step.undo is not None:
                    await self._act(step.undo)
            except Exception as error:
                self._supervision.failed(step.touchpoint, error)
                complete = False
        return complete

    async def stop(self) -> None:
        """Let what has begun come to its end: a half-done plan is worse than a late stop."""
        self._stopped = True
        await asyncio.gather(*self._tasks, return_exceptions=True)
