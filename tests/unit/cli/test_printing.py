"""What the loop publishes, as JSON lines that the lab reads and as lines for people."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from mapek.cli.printing import Published, Record, Records, human_line, json_line
from mapek.model import Entity, Event, Incident, Inquiry, Plan, Step, Suspicion, Symptom
from mapek.simulations.agent import parse_event

PATH, PEER = Entity("path", "b/l0"), Entity("peer", "b")
SYMPTOM = Symptom(PATH, "path_dead", 9.5, 2_000_000, 1_000_000, 10, {"missing": 8, "seen": (1, 2)})
INCIDENT = Incident(
    7,
    PATH,
    "path_dead",
    "recovered",
    1_000_000,
    2_500_000,
    2_600_000,
    2_700_000,
    4_000_000,
    "link_failover",
    "dead",
)
PLAN = Plan(
    "link_failover", PEER, (Step("netlink", "use_path", {"peer": "b", "path": "b/l1"}),), None, 1, reason="dead"
)  # fmt: skip
ACTED = Event(
    30, PEER, "plan.acted", {"id": "plan:1", "policy": "link_failover", "acked_ns": 29, "changed": True}
)

TABLE = [
    (
        Suspicion(5, PATH, "silent"),
        {"type": "suspicion", "time_ns": 5, "entity": "path b/l0", "kind": "silent"},
        "suspicion  path b/l0: silent?",
    ),
    (
        Suspicion(5, PATH, "silent", cleared=True),
        {"type": "cleared", "time_ns": 5, "entity": "path b/l0", "kind": "silent"},
        "cleared    path b/l0: not silent",
    ),
    (
        SYMPTOM,
        {
            "type": "symptom",
            "time_ns": 2_000_000,
            "entity": "path b/l0",
            "kind": "path_dead",
            "score": 9.5,
            "onset_ns": 1_000_000,
            "onset_error_ns": 10,
            "cleared": False,
            "evidence": {"missing": 8, "seen": [1, 2]},
        },
        "symptom    path b/l0: path dead",
    ),
    (
        INCIDENT,
        {
            "type": "incident",
            "time_ns": 4_000_000,
            "id": 7,
            "state": "recovered",
            "entity": "path b/l0",
            "kind": "path_dead",
            "policy": "link_failover",
            "reason": "dead",
            "onset_ns": 1_000_000,
            "detected_ns": 2_500_000,
            "planned_ns": 2_600_000,
            "acted_ns": 2_700_000,
            "recovered_ns": 4_000_000,
            "detect_ms": 1.5,
            "plan_ms": 0.1,
            "act_ms": 0.1,
            "verify_ms": 1.3,
            "mttr_ms": 3.0,
        },
        "incident   7 recovered: path b/l0, path dead; MTTR 3.00 ms (detect 1.50, plan 0.10, act 0.10, verify 1.30)",
    ),
    (
        replace(INCIDENT, state="detected", planned_ns=0, acted_ns=0, recovered_ns=0, policy="", reason=""),
        {
            "type": "incident",
            "time_ns": 2_500_000,
            "id": 7,
            "state": "detected",
            "entity": "path b/l0",
            "kind": "path_dead",
            "policy": "",
            "reason": "",
            "onset_ns": 1_000_000,
            "detected_ns": 2_500_000,
            "detect_ms": 1.5,
        },
        "incident   7 detected: path b/l0, path dead (detect 1.50 ms)",
    ),
    (
        Event(8, PEER, "plan.failed", {"id": "plan:1", "why": "no route"}),
        {"type": "failed", "time_ns": 8, "entity": "peer b", "why": "no route"},
        "failed     peer b: no route",
    ),
]


@pytest.mark.parametrize(("published", "record", "line"), TABLE, ids=lambda value: type(value).__name__)
def test_one_published_object(published: Published, record: dict[str, Any], line: str) -> None:
    (made,) = Records().of(published)
    assert made == record
    assert json.loads(json_line(made)) == record
    assert human_line(made, 0).split(maxsplit=1)[1] == line
    assert "\n" not in json_line(made)


@pytest.mark.parametrize("published", [row[0] for row in TABLE])
def test_the_lab_understands_each_line(published: Published) -> None:
    (made,) = Records().of(published)
    event = parse_event("a", json_line(made).encode())
    assert event is not None
    assert event.time_ns == made["time_ns"]


def test_a_switch_is_a_plan_that_the_kernel_carried_out() -> None:
    records = Records()
    records.learn({"active_path/b": "b/l0", "active_path/c": "", "other": 1})
    assert records.of(PLAN) == []
    (switch,) = records.of(ACTED)
    assert switch == {
        "type": "switch",
        "time_ns": 29,
        "peer": "b",
        "from": "b/l0",
        "to": "b/l1",
        "reason": "dead",
        "policy": "link_failover",
    }
    assert human_line(switch, 0).endswith("switch     b: b/l0 -> b/l1 (dead)")
    assert records.of(ACTED) == []  # once
    records.of(PLAN)
    assert records.of(ACTED) == []  # the same path laid anew is no switch


def test_a_plan_that_changed_nothing_is_no_switch() -> None:
    records = Records()
    records.of(PLAN)
    assert records.of(replace(ACTED, fields={**ACTED.fields, "changed": False})) == []


def test_questions_are_not_printed() -> None:
    assert Records().of(Inquiry("i:1", PEER, "probe_paths", 1)) == []


def test_what_json_cannot_say_is_null() -> None:
    record: Record = {"type": "x", "time_ns": 1, "values": [float("nan"), 1.0], "score": float("inf")}
    assert json.loads(json_line(record)) == {"type": "x", "time_ns": 1, "values": [None, 1.0], "score": None}


def test_time_is_in_seconds_since_the_start() -> None:
    assert human_line({"type": "stopped", "time_ns": 3_500_000_000}, 1_000_000_000) == "      2.5000  stopped"
