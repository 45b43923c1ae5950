"""From an event to a recovered incident: every stamp, and everything that is no success."""

import pytest

from mapek.errors import NetlinkError
from mapek.knowledge.encoding import encode
from mapek.model import Entity, Event, Incident, Inquiry, Plan, Suspicion, Symptom
from tests.unit.core.fakes import MS, SECOND, START, B, Effector, Heal, Node, Words, counted, settle, step

MOVE = step("move")


def states(node):
    return [one.state for one in node.decided(Incident)]


@pytest.mark.parametrize("at_once", [True, False], ids=["act_now", "act"])
async def test_an_incident_from_onset_to_recovery(at_once):
    effector, policy = Effector(at_once=at_once), Heal(MOVE)
    if not at_once:
        effector.takes_ns = 5 * MS
    async with Node([effector], [Words()], [policy]) as node:
        node.say("suspect")
        node.say("ill")
        await node.run(SECOND)
        acted = START + effector.takes_ns
        assert node.incident() == Incident(
            1, B, "sick", "recovered", START - 3 * MS, START, START, acted, acted + 2 * MS, "heal", "as told"
        )
        assert states(node) == ["detected", "planned", "acted", "recovered"]
        assert [one.state for one in policy.incidents] == ["planned", "acted", "recovered"]
        proof = node.decided(Inquiry)[-1]
        assert (proof.id, proof.kind, proof.within_ns) == ("plan:1", "probe_route", 500 * MS)
        assert node.loop.incidents.open == ()
        assert [one.id for one in node.loop.incidents.ended] == [1]
        assert effector.done == ["move"]
        assert counted(node.loop, "plans") == {"heal": 1}
        assert node.loop.tally.total("suspicions") == node.loop.tally.total("symptoms") == 1
        assert list(node.loop.tally.counters["plans"]) == [(("outcome", "recovered"), ("policy", "heal"))]
        histogram = node.loop.tally.histograms["recovery_seconds"][(("policy", "heal"),)]
        assert histogram.sum == pytest.approx(0.005 + effector.takes_ns / 1e9)


@pytest.mark.parametrize(
    ("effector", "policy", "outcome", "reason"),
    [
        (Effector(changed=False), Heal(MOVE), "no_op", "the plan changed nothing"),
        (Effector(proof=False), Heal(MOVE), "unrecovered", "no proof within the settling time"),
        (Effector(proof=None), Heal(MOVE), "unrecovered", "no proof within the settling time"),
        (Effector(), Heal(MOVE, expect=None), "unproved", "nothing was expected that could prove it"),
        (
            Effector(),
            Heal(step("move", touchpoint="absent")),
            "failed",
            "move absent: this touchpoint is not open; see /health",
        ),
    ],
    ids=["no-op", "disproved", "never answered", "no proof expected", "no effector"],
)
@pytest.mark.parametrize("at_once", [True, False], ids=["act_now", "act"])
async def test_what_is_no_success(effector, policy, outcome, reason, at_once):
    effector.at_once = at_once
    async with Node([effector], [Words()], [policy]) as node:
        node.say("ill")
        await node.run(2 * SECOND)
        last = node.incident()
        assert (last.state, last.reason, last.recovered_ns) == ("unrecovered", reason, 0)
        assert list(node.loop.tally.counters["plans"]) == [(("outcome", outcome), ("policy", "heal"))]
        assert "recovery_seconds" not in node.loop.tally.histograms
        assert (last.acted_ns > 0) == (outcome not in ("no_op", "failed"))
        assert node.loop.incidents.open == ()


async def test_nobody_looks_for_the_proof():
    effector = Effector(at_once=True)
    effector.accepts = False
    async with Node([effector], [Words()], [Heal(MOVE)]) as node:
        node.say("ill")
        await node.run(MS)
        assert (node.incident().state, node.incident().reason) == (
            "unrecovered",
            "no touchpoint could look for the proof",
        )


async def test_an_overdue_proof_ends_the_incident_when_it_is_due_and_not_before():
    async with Node([Effector(proof=None)], [Words()], [Heal(MOVE)]) as node:
        node.say("ill")
        await node.run(599 * MS)
        assert node.incident().state == "acted"
        await node.run(2 * MS)
        assert node.incident().state == "unrecovered"
        # the proof that comes after all changes nothing
        node.say("inquiry.answer", id="plan:1", ok=True)
        assert node.incident().state == "unrecovered"
        assert node.loop.tally.counters["incidents"] == {
            (("kind", "sick"), ("state", state)): int(state == "unrecovered")
            for state in ("detected", "planned", "acted", "unrecovered")
        }


@pytest.mark.parametrize("at_once", [True, False], ids=["act_now", "act"])
async def test_a_failed_step_undoes_those_before_it_in_reverse(at_once):
    effector = Effector(at_once=at_once)
    effector.fails["three"] = NetlinkError("move", "b/l0", "No route to host", "check the link", code=113)
    before = (step("one", "un-one"), step("two"), step("two-b", "un-two-b"))
    steps = (*before, step("three", "un-three"), step("four"))
    async with Node([effector], [Words()], [Heal(*steps)]) as node:
        said = []
        node.loop.subscribe(said.append)
        node.say("ill")
        await node.run(MS)
        assert effector.done == ["one", "two", "two-b", "un-two-b", "un-one"]
        (failed,) = (one for one in said if isinstance(one, Event))
        why = "move b/l0: No route to host; check the link"
        assert failed.kind == "plan.failed"
        assert failed.fields == {
            "id": "plan:1", "planned_ns": START, "policy": "heal", "why": why, "undone": True
        }  # fmt: skip
        assert (node.incident().state, node.incident().reason) == ("unrecovered", why)
        assert node.incident().planned_ns == START


async def test_an_undo_that_fails_is_said_and_the_others_are_undone():
    effector = Effector()
    effector.fails = {"three": RuntimeError("broken"), "un-two": OSError("broken too")}
    steps = (step("one", "un-one"), step("two", "un-two"), step("three"))
    async with Node([effector], [Words()], [Heal(*steps)]) as node:
        node.say("ill")
        await node.run(MS)
        assert effector.done == ["one", "two", "un-one"]
        failed = next(item for _, item in node.log if isinstance(item, Event) and item.kind == "plan.failed")
        assert (failed.fields["undone"], failed.fields["why"]) == (False, "RuntimeError: broken")
        assert counted(node.loop, "plugin_failures") == {"effector": 1}


async def test_the_first_steps_at_once_and_the_rest_in_a_task():
    class Mixed(Effector):
        def act_now(self, step):
            return None if step.action == "slow" else self._do(step)

    effector = Mixed()
    effector.takes_ns = MS
    async with Node([effector], [Words()], [Heal(step("a"), step("slow"), step("b"))]) as node:
        node.say("ill")
        assert effector.done == ["a"]
        await node.run(SECOND)
        assert effector.done == ["a", "slow", "b"]
        assert node.incident().state == "recovered"
        assert node.incident().acted_ns == START + 2 * MS


async def test_a_plan_without_steps_is_said_and_not_carried_out():
    effector = Effector()
    async with Node([effector], [Words()], [Heal()]) as node:
        node.say("ill")
        await node.run(SECOND)
        assert [plan.reason for plan in node.decided(Plan)] == ["as told"]
        assert (effector.done, node.loop.tally.total("plans")) == ([], 0)
        assert states(node) == ["detected"]
        node.say("well")
        last = node.incident()
        assert (last.state, last.policy, last.reason) == ("recovered", "none", "well again without an action")


async def test_clearing_ends_no_incident_that_is_being_repaired():
    effector = Effector(proof=False)
    policy = Heal(MOVE)
    async with Node([effector], [Words()], [policy]) as node:
        node.say("ill")
        await settle()
        node.say("well")
        assert node.incident().state == "acted"
        assert policy.heard == ["cleared sick"]
        await node.run(SECOND)
        assert node.incident().state == "unrecovered"


async def test_the_same_symptom_again_is_the_same_incident_and_another_is_another():
    async with Node([Effector(proof=None)], [Words()], [Heal()]) as node:
        node.say("ill")
        node.say("ill")
        node.say("ill", what="worse")
        node.say("ill", Entity("peer", "c"))
        assert [one.id for one in node.loop.incidents.open] == [1, 2, 3]


async def test_the_first_policy_with_an_answer_is_asked():
    class Nothing(Heal):
        name = "nothing"

        def plan(self, symptom, knowledge):
            self.heard.append(symptom.kind)
            return None

    nothing = Nothing()
    async with Node([Effector()], [Words()], [nothing, Heal(MOVE)]) as node:
        node.say("ill")
        await node.run(SECOND)
        assert nothing.heard == ["sick"]
        assert (nothing.incidents, node.incident().policy) == ([], "heal")


async def test_a_voluntary_plan_starts_no_incident():
    class Tidy(Heal):
        def on_event(self, event, knowledge):
            return self.plan(Symptom(B, "", 0, 0, 0), knowledge) if event.kind == "tidy" else None

    effector = Effector()
    async with Node([effector], [Words()], [Tidy(MOVE)]) as node:
        node.say("tidy")
        await node.run(SECOND)
        assert effector.done == ["move"]
        assert node.decided(Incident) == []
        assert list(node.loop.tally.counters["plans"]) == [(("outcome", "recovered"), ("policy", "heal"))]


async def test_a_plan_that_touches_what_another_changes_waits_for_it():
    effector = Effector()
    effector.takes_ns = 10 * MS
    c = Entity("peer", "c")
    policy = Heal(step("one"), touches=(B,))
    async with Node([effector], [Words()], [policy]) as node:
        node.say("ill")
        policy.steps = (step("two"),)
        node.say("ill", what="worse")
        policy.steps, policy.touches = (step("other"),), (c,)
        node.say("ill", c)
        await node.run(11 * MS)
        assert effector.done == ["one", "other"]
        await node.run(SECOND)
        assert effector.done == ["one", "other", "two"]
        assert [one.acted_ns - START for one in node.loop.incidents.ended] == [10 * MS, 10 * MS, 20 * MS]


async def test_an_inquiry_nobody_takes_does_no_harm():
    async with Node([Effector()], [Words()]) as node:
        node.say("ask", what="what is the weather")
        node.say("suspect")
        assert [type(one) for one in node.decided(object)[-2:]] == [Event, Suspicion]
        assert node.loop.tally.total("inquiries") == 1


async def test_the_same_inputs_are_the_same_decisions_byte_for_byte():
    async def run():
        effector = Effector()
        effector.takes_ns = MS
        async with Node([effector], [Words()], [Heal(MOVE, step("more", "less"))]) as node:
            for number in range(20):
                node.say("ill", what=f"kind {number % 3}")
                if number == 7:
                    effector.fails["more"] = RuntimeError("now and then")
                if number == 12:
                    effector.fails.clear()
                await node.run(200 * MS)
                node.say("well", what=f"kind {number % 3}")
            return b"\n".join(b"%d " % now + encode(item) for now, item in node.log)

    one, two = await run(), await run()
    assert one == two
    assert one.count(b"unrecovered") > 3
