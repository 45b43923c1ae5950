"""What is told of replays: nothing that was not measured, and no success that was none."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mapek.errors import FeatureError
from mapek.knowledge.topology import Topology
from mapek.model import Entity, Incident, IncidentState
from mapek.simulations.recording import About
from mapek.simulations.replay import ReplayReport
from mapek.simulations.replayed import Replayed, document, draw, mttr_ms, table

MS = 1_000_000
PATH = Entity("path", "b/l0")


def _incident(number: int, state: IncidentState, stamps: tuple[int, ...]) -> Incident:
    onset, detected, planned, acted, recovered = (stamp * MS for stamp in stamps)
    return Incident(number, PATH, "path_dead", state, onset, detected, planned, acted, recovered, "p")


HEALED = _incident(1, "recovered", (100, 102, 103, 104, 106))
PASSED = _incident(2, "recovered", (200, 210, 0, 0, 900))
LOST = _incident(3, "unrecovered", (1000, 1002, 1003, 1004, 0))


def _replayed(*incidents: Incident) -> Replayed:
    report = ReplayReport(About(Topology("a")), 9, 0, 5, 5, None, 4, 1, incidents, "", 0, 2.0)
    return Replayed("x.mcap", "fast", 50 * MS, report, (101 * MS,))


def test_what_passed_without_an_action_is_no_success():
    (profile,) = json.loads(json.dumps(document([_replayed(HEALED, PASSED, LOST)])))["profiles"]
    faults = {fault["name"]: fault for fault in profile["faults"]}
    assert (faults["path_dead"]["trials"], faults["path_dead"]["recovered"]) == (2, 1)
    assert faults["path_dead"]["mttr_ms"]["max"] == 6.0
    assert faults["path_dead"]["stages_ms"] == {"detect": 2.0, "plan": 1.0, "act": 1.0, "verify": 2.0}
    assert faults["path_dead_passed"]["mttr_ms"]["p50"] == 700.0
    assert faults["path_dead_passed"]["stages_ms"]["act"] is None
    assert set(faults["path_dead"]["outage_ms"].values()) == {None}
    assert profile["questions"] == {"asked": 4, "unknown": 1}


def test_only_what_recovered_has_an_mttr():
    assert [mttr_ms(one) for one in (HEALED, PASSED, LOST)] == [6.0, 700.0, None]


def test_table():
    lines = table([_replayed(HEALED, LOST)]).splitlines()
    assert len(lines) == 2
    assert lines[1].split() == "x.mcap (fast) path_dead 1/2 6.00 / 6.00 2.00 + 1.00 + 1.00 + 2.00".split()


@pytest.mark.parametrize("incidents", [(), (HEALED,), (HEALED, PASSED, LOST)])
def test_picture(incidents: tuple[Incident, ...], tmp_path: Path):
    pytest.importorskip("matplotlib")
    draw([_replayed(*incidents)], tmp_path / "deep/timeline.png")
    assert (tmp_path / "deep/timeline.png").read_bytes().startswith(b"\x89PNG")


def test_no_picture_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(FeatureError, match=r"pip install mapek\[plot\]"):
        draw([_replayed(HEALED)], tmp_path / "timeline.png")
