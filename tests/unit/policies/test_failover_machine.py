"""path_health and link_failover in the real loop, under any sequence of faults that hypothesis thinks of.

Whatever happens, traffic goes to no path that did not answer, voluntary returns keep the hold-down, and once
the trouble is over everything is well again and the next fault is found at once.
"""

from __future__ import annotations

import asyncio
import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mapek.clock import VirtualClock
from mapek.loop import Loop
from mapek.model import Entity, Event, Frame, Inquiry, Plan, Suspicion
from mapek.policies.link_failover import LinkFailover
from tests.unit.analyzers.peer_bench import MS, SECOND, START, Bench

HOLD_S, HOLD_MAX_S = 2, 8


class Town(Bench):
    """The bench with a whole loop in it, which moves the traffic of peer b."""

    def _begin(self) -> None:
        self.clock = VirtualClock(START)
        self.active = ""
        self.plans_fail = False
        self.plan_takes_ns = 0
        self.moves: list[tuple[int, str, Plan, int]] = []
        """(time, path, plan, age of the path's last answer)."""
        self.open_suspicions: set[tuple[Entity, str]] = set()
        policy = LinkFailover({"hold_down_s": HOLD_S, "hold_down_max_s": HOLD_MAX_S})
        self.loop = Loop(
            self.knowledge, self.clock, (), [self.health], [policy], effects=self, tap=self._tap, replay=True
        )
        asyncio.run(self.loop.__aenter__())

    def _input(self, item: Event | Frame) -> None:
        self.clock.advance_to(self.now_ns)
        self.loop.feed(item)

    def _tap(self, now_ns: int, item: object) -> None:
        if isinstance(item, Suspicion):
            key = (item.entity, item.kind)
            (self.open_suspicions.discard if item.cleared else self.open_suspicions.add)(key)

    def ask(self, inquiry: Inquiry) -> bool:
        if inquiry.kind == "probe_route":
            ok = bool(self.active) and not self.wires[self.active].dead
            self.at(MS, lambda: self.tell("inquiry.answer", inquiry.entity, id=inquiry.id, ok=ok))
            return True
        if not self.refuses:
            self.at(int(inquiry.fields.get("delay_ns", 0)), lambda: self._burst(inquiry))
        return not self.refuses

    def carry_out(self, plan_id: str, plan: Plan) -> None:
        path = str(plan.steps[0].fields["path"])
        wire = self.wires[path]
        age = 0 if not wire.dead else self.now_ns - wire.last_answer_ns
        self.moves.append((self.now_ns, path, plan, age))
        fails, planned = self.plans_fail, self.now_ns

        def end() -> None:
            fields = {"id": plan_id, "planned_ns": planned, "policy": plan.policy}
            if fails:
                self.tell("plan.failed", plan.entity, **fields, why="as told", undone=True)
                return
            changed, self.active = self.active != path, path
            self.tell("path.active", Entity("path", path), peer="b", before="")
            self.tell("plan.acted", plan.entity, **fields, acked_ns=self.now_ns, changed=changed, detail="")

        if self.plan_takes_ns:
            self.at(self.plan_takes_ns, end)
        else:
            end()


LINKS = st.sampled_from(["l0", "l1", "l2"])


class Faults(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 3))
    def begin(self, seed: int) -> None:
        self.town = Town(3, seed, known=True)
        self.town.run(2000)
        assert self.town.active == "b/l0"
        self.judged = 0

    @rule(link=LINKS, alarm=st.booleans())
    def die(self, link: str, alarm: bool) -> None:
        self.town.die(link, alarm=alarm)

    @rule(link=LINKS, alarm=st.booleans())
    def live(self, link: str, alarm: bool) -> None:
        if self.town.wires[f"b/{link}"].dead:
            self.town.live(link, alarm=alarm)

    @rule(link=LINKS, share=st.sampled_from([0.0, 0.02, 0.3]))
    def lose(self, link: str, share: float) -> None:
        self.town.lose(**{link: share})

    @rule(link=LINKS)
    def gap(self, link: str) -> None:
        self.town.gaps(link, 0.1)

    @rule(link=LINKS, kind=st.sampled_from(["link.down", "link.up", "link.gone", "link.new"]))
    def link_event(self, link: str, kind: str) -> None:
        self.town.tell(kind, Entity("link", link, 1))

    @rule(kind=st.sampled_from(["nexthop.gone", "route.gone", "nexthop.differs"]))
    def meddle(self, kind: str) -> None:
        self.town.tell(kind, Entity("peer", "b"))

    @rule(link=LINKS, kind=st.sampled_from(["peer_admin_down", "peer_up", "peer_restarted"]))
    def neighbour(self, link: str, kind: str) -> None:
        self.town.path(kind, link)

    @rule(what=st.sampled_from(["refuses", "forgets", "plans_fail"]), on=st.booleans())
    def break_something(self, what: str, on: bool) -> None:
        setattr(self.town, what, on)

    @rule(late_ms=st.sampled_from([1, 20, 300]))
    def stall(self, late_ms: int) -> None:
        self.town.late_ns = late_ms * MS

    @rule(takes_ms=st.sampled_from([0, 1, 50]))
    def slow_plans(self, takes_ms: int) -> None:
        self.town.plan_takes_ns = takes_ms * MS

    @rule(ms=st.sampled_from([0.2, 1, 3, 30, 400, 2500]))
    def wait(self, ms: float) -> None:
        self.town.run(ms)

    @invariant()
    def traffic_goes_only_where_answers_came_from(self) -> None:
        for _, path, plan, age_ns in self.town.moves[self.judged :]:
            if plan.steps[0].action == "use_path":
                # a verdict's burst lasts half a millisecond, our own stall aside; a frame may be a second old
                assert age_ns <= (310 * MS if plan.urgent else 3 * SECOND), (path, plan.reason, age_ns)
        self.judged = len(self.town.moves)

    @invariant()
    def nothing_raises(self) -> None:
        assert self.town.loop.supervision.failures == {}

    def teardown(self) -> None:
        town = getattr(self, "town", None)
        if town is None:
            return
        returns = [at for at, _, plan, _ in town.moves if "preferred" in plan.reason]
        assert all(b - a >= HOLD_S * SECOND for a, b in itertools.pairwise(returns))
        town.refuses = town.forgets = town.plans_fail = False
        town.late_ns = town.plan_takes_ns = 0
        town.path("peer_up", "l0")
        for link in ("l0", "l1", "l2"):
            town.lose(**{link: 0.0})
            town.live(link, alarm=False)
        town.run(20_000 + 2 * HOLD_MAX_S * 1000)
        assert town.state == dict.fromkeys(("l0", "l1", "l2"), "well")
        assert town.active == "b/l0"
        town.run(HOLD_MAX_S * 1000)
        before = len(town.moves)
        town.die("l0")
        town.run(3)
        assert town.active == "b/l1"
        assert [(path, plan.urgent) for _, path, plan, _ in town.moves[before:]] == [("b/l1", True)]
        self.nothing_raises()


TestFaults = Faults.TestCase
TestFaults.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
