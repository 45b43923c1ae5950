"""The report's form, the table, the joined bench report, and the picture."""

from __future__ import annotations

import json

import pytest

from mapek.errors import ConfigError, FeatureError
from mapek.simulations.bench import joined, run_bench, sections, slow
from mapek.simulations.campaign import CampaignResult, Series, SeriesResult
from mapek.simulations.faults import DROP_BOTH
from mapek.simulations.latencies import latencies
from mapek.simulations.picture import draw
from mapek.simulations.report import campaign_entry, raw, report, table, write_json
from tests.unit.simulations.results import campaign, trial


def test_form(tmp_path):
    write_json(tmp_path / "deep" / "report.json", report({"fast": campaign()}, [campaign("BIRD")]))
    read = json.loads((tmp_path / "deep" / "report.json").read_text())
    (ours,), (peer,) = read["profiles"], read["peers"]
    assert ours["profile"] == "fast"
    assert peer["name"] == "BIRD"
    drop, loss = ours["faults"]
    assert drop == {
        "name": "drop_both",
        "trials": 3,
        "recovered": 3,
        "outage_ms": {"p50": 3.0, "p95": 3.9, "p99": 3.98, "max": 4.0},
        "stages_ms": {"detect": 2.0, "plan": 0.1, "act": 0.1, "verify": 0.8},
    }
    assert (loss["trials"], loss["recovered"], loss["path_changes"]) == (2, 1, 1)
    assert loss["traffic_lost_percent"] == {"p50": 0.2, "p95": 0.2, "max": 0.2}
    assert ours["quiet"] == {"seconds": 8.0, "hogs": 0, "suspicions": 3, "failovers": 0}
    assert ours["agent"] == {"pss_mb": 30.0, "rss_mb": 40.0, "cpu_percent": 1.25}
    assert ours["spells"] == [{"seconds": 8.0, "hogs": 2, "suspicions": 3, "failovers": 1, "fault": None}]
    assert {key: peer[key] for key in peer if key != "name"} == {
        key: ours[key] for key in ours if key != "profile"
    }


def test_no_results_are_no_numbers():
    entry = campaign_entry(CampaignResult("x", (), (), ()))
    assert entry == {"faults": []}


def test_raw_keeps_every_trial_and_every_failure():
    read = json.loads(json.dumps(raw(campaign())))
    assert len(read["trials"]) == 4
    assert read["failed"] == ["wait for flow: it does not arrive"]
    assert read["trials"][0]["stages"][0]["node"] == "a"


def test_table_names_everything():
    text = table([campaign()])
    for word in ("mapek fast", "drop_both", "3/3", "3.0 / 3.9 / 4.0", "loss_30_both", "1/2", "beside hogs"):
        assert word in text


def test_latencies():
    found = latencies(campaign())
    assert found["suspicion_to_verdict"]["p50"] == pytest.approx(1.0)
    assert found["verdict_to_acknowledged"]["max"] == pytest.approx(0.2)


def test_joined_sections(tmp_path):
    whole = campaign()
    for name, series, spells in (
        ("silence-fast", whole.series[:1], ()),
        ("gray-fast", whole.series[1:], whole.spells),
    ):
        entry = campaign_entry(CampaignResult("mapek fast", series, spells, ()))
        write_json(tmp_path / f"{name}.json", {"name": "mapek fast", "profile": "fast", "entry": entry})
    write_json(tmp_path / "bird-1ms.json", {"name": "BIRD", "profile": None, "entry": campaign_entry(whole)})
    read = joined(tmp_path, ["silence-fast", "quiet-fast", "gray-fast", "bird-1ms"])
    assert read == json.loads(json.dumps(report({"fast": whole}, [campaign("BIRD")])))


def test_slow_trials_are_listed():
    assert slow(campaign()) == ""
    late = SeriesResult(Series(DROP_BOTH, 1), (trial(DROP_BOTH, 0, 7.5),), ())
    assert "7.5 ms (a>b)" in slow(CampaignResult("x", (late,), (), ()))


async def test_unknown_section(tmp_path):
    with pytest.raises(ConfigError, match="no section nonsense; take from silence-fast"):
        await run_bench(tmp_path, ["nonsense"])


def test_sections_hold_the_promised_counts():
    known = sections()
    assert {series.trials for series in known["silence-fast"].series if series.family == 4} == {30}
    assert known["hogs-default"].series[0].hogs
    assert [(spell.seconds, spell.hogs) for spell in known["quiet-fast"].spells][:2] == [
        (120, False),
        (120, True),
    ]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_picture(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"x.{suffix}"
    draw([campaign(), campaign("mapek default")], path)
    start = path.read_bytes()[:400]
    assert start.startswith(b"\x89PNG") if suffix == "png" else b"<svg" in path.read_bytes()
    assert path.stat().st_size > 20_000


def test_picture_of_nothing(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(FeatureError, match="nothing to draw"):
        draw([], tmp_path / "x.png")
