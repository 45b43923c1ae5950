"""What every policy keeps to: see `check_policy`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mapek.contracts import Policy
from mapek.knowledge import Knowledge, Topology
from mapek.knowledge.encoding import decode, encode
from mapek.model import Event, Frame, Input, Plan, Symptom
from mapek.testing.inputs import some_incidents, some_inputs, some_symptoms, some_topology
from mapek.testing.purity import pure


def check_policy(
    make: Callable[[], Policy],
    symptoms: Iterable[Symptom] | None = None,
    inputs: Iterable[Input] | None = None,
    topology: Topology | None = None,
    *,
    plans: bool = False,
) -> None:
    """Raise AssertionError if the policies that `make` makes break the contract.

    They have a name, see nothing but symptoms, events and knowledge, plan the same for the same, put up with
    strangers, and their plans can be recorded: they name themselves, have steps of plain values, and a
    settling time where they expect something.

    Args:
        make: makes a new one, the same each time.
        symptoms: what it should also answer, after all inputs.
        inputs: what it should see before.
        topology: of those.
        plans: it must have a plan for at least one of `symptoms`, or because of one of `inputs`.
    """
    topology = topology or some_topology()
    given, ill = list(inputs or ()), list(symptoms or ())
    for these, those in ((given, ill), (some_inputs(topology), some_symptoms(topology))):
        first, second = _run(make, these, those, topology), _run(make, these, those, topology)
        assert first == second, f"{make().name} planned otherwise for the same"
        if those is ill and plans:
            assert first, f"{make().name} had no plan"


def _run(
    make: Callable[[], Policy], inputs: list[Input], symptoms: list[Symptom], topology: Topology
) -> list[bytes]:
    policy, knowledge = make(), Knowledge(topology)
    assert isinstance(policy.name, str), "a policy has a name"
    assert policy.name, "a policy has a name"
    found: list[bytes] = []
    with pure(f"policy {policy.name}"):
        policy.start(knowledge)
    for item in inputs:
        knowledge.now_ns = item.time_ns
        if isinstance(item, Frame):
            knowledge.take(item)
        elif isinstance(item, Event):
            with pure(f"policy {policy.name}"):
                plan = policy.on_event(item, knowledge)
            found += _checked(policy, plan)
    for symptom in symptoms:
        knowledge.now_ns = max(knowledge.now_ns, symptom.detected_ns)
        with pure(f"policy {policy.name}"):
            plan = policy.plan(symptom, knowledge)
        found += _checked(policy, plan)
        with pure(f"policy {policy.name}"):
            for incident in some_incidents(policy.name, symptom.entity):
                policy.on_incident(incident, knowledge)
    return found


def _checked(policy: Policy, plan: object) -> list[bytes]:
    if plan is None:
        return []
    assert isinstance(plan, Plan), f"{policy.name} planned {plan!r}, which is no plan"
    data = encode(plan)
    assert encode(decode(Plan, data)) == data, f"{plan!r} does not survive a recording"
    assert plan.policy == policy.name, f"a plan of {policy.name} says that it is of {plan.policy}"
    for step in plan.steps:
        assert step.touchpoint, f"{step!r} has no touchpoint"
        assert step.action, f"{step!r} has no action"
    if plan.expect is not None:
        assert plan.settle_ns > 0, f"{plan!r} expects something in no time"
        assert plan.expect.kind, f"{plan!r} expects nothing in particular"
    return [data]
