"""Small plugins that do as they are told, for tests of the loop in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from mapek.clock import VirtualClock
from mapek.contracts import Analyzer, Policy, Surroundings, Touchpoint
from mapek.knowledge import Knowledge, Path, Peer, Topology
from mapek.loop import Loop
from mapek.model import Applied, Entity, Event, Finding, Incident, Inquiry, Plan, Step, Suspicion, Symptom

MS = 1_000_000
SECOND = 1_000_000_000
START = 10 * SECOND
B = Entity("peer", "b")
PROOF = Inquiry("", B, "probe_route", 500 * MS)


def topology(links: int = 2) -> Topology:
    paths = tuple(Path("b", f"l{k}", ip_address(f"10.0.{k}.2"), preference=k) for k in range(links))
    return Topology("a", (), [Peer("b", (ip_address("10.1.0.2"),), (), paths, b"0123456789abcdef")])


class Effector(Touchpoint):
    """Acts at once or after `takes_ns`; answers probe_route with `proof` after `proof_ns` (None: never)."""

    name = "effector"
    period_ns = 0

    def __init__(self, *, at_once: bool = False, proof: bool | None = True, changed: bool = True) -> None:
        self.at_once, self.proof, self.changed = at_once, proof, changed
        self.takes_ns, self.proof_ns = 0, 2 * MS
        self.done: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.accepts = True
        self.around: Surroundings | None = None
        self.closed = 0

    async def open(self, surroundings: Surroundings) -> None:
        self.around = surroundings

    async def close(self) -> None:
        self.closed += 1

    def _do(self, step: Step) -> Applied:
        assert self.around is not None
        if error := self.fails.get(step.action):
            raise error
        self.done.append(step.action)
        return Applied(self.around.clock.now_ns(), self.changed, step.action)

    def act_now(self, step: Step) -> Applied | None:
        return self._do(step) if self.at_once else None

    async def act(self, step: Step) -> Applied:
        assert self.around is not None
        if self.takes_ns:
            over = asyncio.get_running_loop().create_future()
            clock = self.around.clock
            clock.call_at(clock.now_ns() + self.takes_ns, lambda: over.set_result(None))
            await over
        return self._do(step)

    def ask(self, inquiry: Inquiry) -> bool:
        assert self.around is not None
        if inquiry.kind != "probe_route" or not self.accepts:
            return False
        if self.proof is not None:
            clock, asked = self.around.clock, self.around.clock.now_ns()
            due = asked + self.proof_ns
            answer = Event(due, inquiry.entity, "inquiry.answer", {"id": inquiry.id, "ok": self.proof})
            emit = self.around.emit
            clock.call_at(due, lambda: emit(answer))
        return True


class Words(Analyzer):
    """Finds what the events say: kind "ill", "well", "suspect" or "ask"."""

    name = "words"

    def on_event(self, event: Event, knowledge: Knowledge) -> Iterable[Finding]:
        kind = str(event.fields.get("what", "sick"))
        if event.kind == "ill":
            yield Symptom(event.entity, kind, 1.0, event.time_ns, event.time_ns - 3 * MS)
        elif event.kind == "well":
            yield Symptom(event.entity, kind, 0.0, event.time_ns, event.time_ns, cleared=True)
        elif event.kind == "suspect":
            yield Suspicion(event.time_ns, event.entity, kind)
        elif event.kind == "ask":
            yield Inquiry("words:1", event.entity, kind, MS)
        elif event.kind == "raise":
            raise ValueError("this analyzer always raises here")


class Heal(Policy):
    """Answers each symptom with the plan of `steps`."""

    name = "heal"

    def __init__(
        self, *steps: Step, expect: Inquiry | None = PROOF, touches: tuple[Entity, ...] = ()
    ) -> None:
        self.steps, self.expect, self.touches = steps, expect, touches
        self.heard: list[str] = []
        self.incidents: list[Incident] = []

    def plan(self, symptom: Symptom, knowledge: Knowledge) -> Plan | None:
        return Plan(self.name, symptom.entity, self.steps, self.expect, 500 * MS, self.touches, "as told")

    def cleared(self, symptom: Symptom, knowledge: Knowledge) -> None:
        self.heard.append(f"cleared {symptom.kind}")

    def on_incident(self, incident: Incident, knowledge: Knowledge) -> None:
        self.incidents.append(incident)


class Node:
    """A loop in virtual time and everything that it decided; an async context manager."""

    def __init__(
        self,
        touchpoints: Sequence[Touchpoint] = (),
        analyzers: Sequence[Analyzer] = (),
        policies: Sequence[Policy] = (),
        **options: object,
    ) -> None:
        self.clock = VirtualClock(START)
        self.log: list[tuple[int, object]] = []
        options.setdefault("tap", lambda now, item: self.log.append((now, item)))
        self.loop = Loop(Knowledge(topology()), self.clock, touchpoints, analyzers, policies, **options)  # type: ignore[arg-type]

    async def __aenter__(self) -> Node:
        await self.loop.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.loop.__aexit__(*error)

    async def run(self, ns: int) -> None:
        """Let time pass, timer by timer; tasks run in between."""
        end = self.clock.now_ns() + ns
        await settle()
        while (due := self.clock.next_ns()) is not None and due <= end:
            self.clock.advance_to(due)
            await settle()
        self.clock.advance_to(end)

    def say(self, kind: str, entity: Entity = B, /, **fields: object) -> None:
        self.loop.feed(Event(self.clock.now_ns(), entity, kind, fields))  # type: ignore[arg-type]

    def decided(self, kind: type) -> list[object]:
        return [item for _, item in self.log if isinstance(item, kind)]

    def incident(self) -> Incident:
        """The last state of the last incident."""
        found = self.decided(Incident)[-1]
        assert isinstance(found, Incident)
        return found


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(12):
        await asyncio.sleep(0)


def counted(loop: Loop, name: str) -> dict[str, int]:
    """A counter of the loop by the value of its last label."""
    return {key[-1][1] if key else "": value for key, value in loop.tally.counters.get(name, {}).items()}


def step(action: str, undo: str = "", touchpoint: str = "effector") -> Step:
    return Step(touchpoint, action, {}, Step(touchpoint, undo) if undo else None)
