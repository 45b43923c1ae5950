"""Demo and bench from end to end with the contender that every CI machine has."""

from __future__ import annotations

import io
import json

import pytest

from mapek.simulations.bench import run_bench
from mapek.simulations.bird import BirdTimers
from mapek.simulations.demo import DemoPlan, run_demo

pytestmark = [pytest.mark.netns, pytest.mark.needs("bird")]


async def test_demo(tmp_path):
    out = io.StringIO()
    plan = DemoPlan(profiles=(), trials=1, gray_s=0.5, quiet_s=0.3)
    assert await run_demo(tmp_path, plan, out=out, peers=(BirdTimers(10, 3),)) == {}
    (peer,) = json.loads((tmp_path / "report.json").read_text())["peers"]
    assert peer["name"] == "BIRD BFD 10 ms x3"
    assert [fault["name"] for fault in peer["faults"]] == [
        "drop_both",
        "drop_ab",
        "drop_ba",
        "loss_30_both",
        "drop_both_ipv6",
    ]
    assert all(fault["recovered"] == 1 for fault in peer["faults"] if "loss" not in fault["name"])
    assert set(peer) == {"name", "faults", "quiet", "agent"}
    for word in ("drop_both #1 on l0: healed, outage", "no fault for 0 s", "detect+plan+act+verify"):
        assert word in out.getvalue()
    (trials,) = json.loads((tmp_path / "trials.json").read_text())
    assert {trial["family"] for trial in trials["trials"]} == {4, 6}
    if (tmp_path / "timeline.png").exists():
        assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
    else:
        assert "no picture: draw" in out.getvalue()


async def test_bench_section(tmp_path):
    out = io.StringIO()
    await run_bench(tmp_path, ["bird-10ms"], trials=1, seconds=1.0, gray_s=0.5, out=out)
    section = json.loads((tmp_path / "bird-10ms.json").read_text())
    assert len(section["raw"]["trials"]) == 5
    assert section["took_s"] > 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["profiles"] == []
    assert report["peers"][0]["faults"] == section["entry"]["faults"]
    assert "BIRD BFD 10 ms x3" in out.getvalue()
