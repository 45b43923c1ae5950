"""What the loop publishes, as one JSON line or one line for people.

JSON: each object has "type" and "time_ns" (CLOCK_MONOTONIC). Types: ready, suspicion, cleared, symptom,
incident, switch, failed, stopped, dropped. Times of stages that have not come are left out, not zero.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from mapek.bpf.visible import visible
from mapek.model import Event, Finding, Incident, Plan, Step, Suspicion, Symptom
from mapek.tally import stages

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]
Record = dict[str, Json]
Published = Finding | Plan | Incident | Event

_SWITCH: Final = "use_path"
"""The action that moves a peer's traffic (fields: peer, path); others may lay the same path anew."""


class Records:
    """Turns what is published into records; remembers the plans under way, for a switch tells of one.

    Attributes:
        active: the path in use by peer, as far as it is known; kept up to date.
    """

    def __init__(self, active: Mapping[str, str] | None = None) -> None:
        self.active = dict(active or {})
        self._plans: dict[tuple[str, str], Plan] = {}

    def learn(self, facts: Mapping[str, object]) -> None:
        """Take the paths in use of peers not yet known from the loop's shared facts ("active_path/PEER")."""
        for name, path in facts.items():
            kind, _, peer = name.partition("/")
            if kind == "active_path" and path:
                self.active.setdefault(peer, str(path))

    def of(self, published: Published) -> list[Record]:
        """The records for one published object; none for what people and scripts need not see."""
        if isinstance(published, Suspicion):
            return [_suspicion(published)]
        if isinstance(published, Symptom):
            return [_symptom(published)]
        if isinstance(published, Incident):
            return [_incident(published)]
        if isinstance(published, Plan):
            self._plans[published.policy, str(published.entity)] = published
        if isinstance(published, Event) and published.kind in ("plan.acted", "plan.failed"):
            return self._ended(published)
        return []

    def _ended(self, event: Event) -> list[Record]:
        policy = str(event.fields.get("policy", ""))
        plan = self._plans.pop((policy, str(event.entity)), None)
        if event.kind == "plan.failed":
            why = str(event.fields.get("why", ""))
            return [{"type": "failed", "time_ns": event.time_ns, "entity": str(event.entity), "why": why}]
        if plan is None or not event.fields.get("changed"):
            return []
        acked = event.fields.get("acked_ns")
        time_ns = acked if isinstance(acked, int) else event.time_ns
        return [
            {"type": "switch", "time_ns": time_ns, **move, "reason": plan.reason, "policy": policy}
            for step in plan.steps
            if (move := self._move(step))
        ]

    def _move(self, step: Step) -> Record | None:
        if step.action != _SWITCH:
            return None
        peer, path = str(step.fields.get("peer", "")), str(step.fields.get("path", ""))
        before, self.active[peer] = self.active.get(peer, ""), path
        return {"peer": peer, "from": before, "to": path} if before != path else None


def _suspicion(found: Suspicion) -> Record:
    return {
        "type": "cleared" if found.cleared else "suspicion",
        "time_ns": found.time_ns,
        "entity": str(found.entity),
        "kind": found.kind,
    }


def _symptom(found: Symptom) -> Record:
    return {
        "type": "symptom",
        "time_ns": found.detected_ns,
        "entity": str(found.entity),
        "kind": found.kind,
        "score": found.score,
        "onset_ns": found.onset_ns,
        "onset_error_ns": found.onset_error_ns,
        "cleared": found.cleared,
        "evidence": {
            name: list(value) if isinstance(value, tuple) else value for name, value in found.evidence.items()
        },
    }


def _incident(incident: Incident) -> Record:
    stamps = {
        f"{stage}_ns": getattr(incident, f"{stage}_ns")
        for stage in ("onset", "detected", "planned", "acted", "recovered")
    }
    known: Record = {name: stamp for name, stamp in stamps.items() if stamp}
    record: Record = {
        "type": "incident",
        "time_ns": max(stamps.values()),
        "id": incident.id,
        "state": incident.state,
        "entity": str(incident.entity),
        "kind": incident.kind,
        "policy": incident.policy,
        "reason": incident.reason,
        **known,
    }
    for stage, seconds in stages(incident).items():
        record[f"{stage}_ms"] = round(seconds * 1e3, 6)
    if incident.state == "recovered":
        record["mttr_ms"] = round((incident.recovered_ns - incident.onset_ns) / 1e6, 6)
    return record


def json_line(record: Mapping[str, Json]) -> str:
    """One line of JSON; what is not a finite number is null."""
    try:
        return json.dumps(record, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(dict(record)), allow_nan=False, separators=(",", ":"))


def _finite(value: Json) -> Json:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value


def human_line(record: Mapping[str, Json], since_ns: int) -> str:
    """One line for people; the time is in seconds since `since_ns`."""
    time_ns = record.get("time_ns")
    seconds = (time_ns - since_ns) / 1e9 if isinstance(time_ns, int) else 0.0
    return visible(f"{seconds:12.4f}  {record['type']!s:<10} {_words(record)}".rstrip())


def _words(record: Mapping[str, Json]) -> str:
    kind, entity = str(record.get("kind", "")).replace("_", " "), record.get("entity", "")
    match record["type"]:
        case "suspicion":
            return f"{entity}: {kind}?"
        case "cleared":
            return f"{entity}: not {kind}"
        case "symptom":
            return f"{entity}: {kind} is over" if record.get("cleared") else f"{entity}: {kind}"
        case "incident":
            return f"{record['id']} {record['state']}: {entity}, {kind}{_stages(record)}"
        case "switch":
            return (
                f"{record.get('peer', '')}: {record.get('from', '')} -> {record['to']} ({record['reason']})"
            )
        case "failed":
            return f"{entity}: {record['why']}"
        case _:
            return "  ".join(
                f"{name} {_value(value)}" for name, value in record.items() if _told(name, value)
            )


def _stages(record: Mapping[str, Json]) -> str:
    parts = [
        f"{stage} {record[f'{stage}_ms']:.2f}"
        for stage in ("detect", "plan", "act", "verify")
        if f"{stage}_ms" in record
    ]
    if "mttr_ms" in record:
        return f"; MTTR {record['mttr_ms']:.2f} ms ({', '.join(parts)})"
    why = f"; {record['reason']}" if record.get("reason") else ""
    return why + (f" ({', '.join(parts)} ms)" if parts else "")


def _told(name: str, value: Json) -> bool:
    return name not in ("type", "time_ns") and value not in ("", None, [], {})


def _value(value: Json) -> str:
    if isinstance(value, list):
        return ", ".join(str(inner) for inner in value)
    return str(value)
