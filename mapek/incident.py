"""The life of an incident: onset, detected, planned, acted, recovered, each with the stamp of its evidence.

An incident ends when it is recovered, when its settling time is over without proof, or when its symptom
clears by itself; nothing else ends it, and a plan that changed nothing does not advance it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

from mapek.model import Entity, Incident, IncidentState, Symptom

KEPT = 256
"""Ended incidents kept in memory; the journal keeps the rest."""


class Incidents:
    """The open incidents by entity and kind, and the last ended ones.

    Args:
        publish: called with every new state of an incident.
    """

    def __init__(self, publish: Callable[[Incident], None]) -> None:
        self._publish = publish
        self._count = 0
        self._open: dict[int, Incident] = {}
        self.ended: deque[Incident] = deque(maxlen=KEPT)

    @property
    def open(self) -> tuple[Incident, ...]:
        return tuple(self._open.values())

    def begin(self, symptom: Symptom) -> Incident:
        """A new incident for `symptom`, or the open one that it repeats."""
        for known in self._open.values():
            if known.entity == symptom.entity and known.kind == symptom.kind:
                return known
        self._count += 1
        incident = Incident(
            self._count, symptom.entity, symptom.kind, "detected", symptom.onset_ns, symptom.detected_ns
        )
        self._open[incident.id] = incident
        self._publish(incident)
        return incident

    def get(self, number: int) -> Incident | None:
        """The open incident of this id."""
        return self._open.get(number)

    def advance(
        self, number: int, state: IncidentState, at_ns: int, policy: str = "", reason: str = ""
    ) -> None:
        """Note that an open incident came to `state` at `at_ns`; an ended or unknown one is left alone."""
        known = self._open.get(number)
        if known is None:
            return
        now = replace(known, state=state, policy=policy or known.policy, reason=reason or known.reason)
        if state == "planned":
            now = replace(now, planned_ns=at_ns)
        elif state == "acted":
            now = replace(now, acted_ns=at_ns)
        elif state == "recovered":
            now = replace(now, recovered_ns=at_ns)
        if state in ("recovered", "unrecovered"):
            del self._open[number]
            self.ended.append(now)
        else:
            self._open[number] = now
        self._publish(now)

    def clear(self, entity: Entity, kind: str, at_ns: int) -> None:
        """The symptom went away: what nobody acted upon is recovered, but no policy takes the credit for it."""
        for known in list(self._open.values()):
            if known.entity == entity and known.kind == kind and known.state == "detected":
                self.advance(
                    known.id, "recovered", at_ns, policy="none", reason="well again without an action"
                )
