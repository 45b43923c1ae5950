"""Plan: asks the policies, in the order of the configuration, and takes the first answer."""

from __future__ import annotations

from collections.abc import Iterable

from mapek.contracts import Policy
from mapek.knowledge import Knowledge
from mapek.model import Event, Incident, Plan, Symptom
from mapek.supervision import Supervision


class Planner:
    """The policies of one loop."""

    def __init__(self, policies: Iterable[Policy], knowledge: Knowledge, supervision: Supervision) -> None:
        self._policies = tuple(policies)
        self._knowledge, self._supervision = knowledge, supervision

    def start(self) -> None:
        for policy in self._policies:
            self._supervision.call(policy.name, None, policy.start, self._knowledge)

    def answer(self, symptom: Symptom) -> Plan | None:
        """The first plan that a policy has for `symptom`."""
        for policy in self._policies:
            plan = self._supervision.call(policy.name, None, policy.plan, symptom, self._knowledge)
            if plan is not None:
                return plan
        return None

    def cleared(self, symptom: Symptom) -> None:
        """Let every policy know that a symptom is over."""
        for policy in self._policies:
            self._supervision.call(policy.name, None, policy.cleared, symptom, self._knowledge)

    def volunteered(self, event: Event) -> list[Plan]:
        """Plans that policies have because of `event` and without a symptom."""
        plans = []
        for policy in self._policies:
            if plan := self._supervision.call(policy.name, None, policy.on_event, event, self._knowledge):
                plans.append(plan)
        return plans

    def unproved(self, plan: Plan) -> Plan | None:
        """What the policy of `plan` wants done when its proof did not come."""
        for policy in self._policies:
            if policy.name == plan.policy:
                return self._supervision.call(policy.name, None, policy.unproved, plan, self._knowledge)
        return None

    def tell(self, incident: Incident) -> None:
        """Let the policy of `incident` know how it goes."""
        for policy in self._policies:
            if policy.name == incident.policy:
                self._supervision.call(policy.name, None, policy.on_incident, incident, self._knowledge)
