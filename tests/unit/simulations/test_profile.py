"""What an A/B tells: its comparisons, their words and JSON, and the picture."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mapek.bpf.run_stats import Runs
from mapek.errors import ConfigError, FeatureError, PermanentError
from mapek.plugins import SENSORS, available
from mapek.simulations.profile import picture, words
from mapek.simulations.profile.result import Result
from mapek.simulations.profile.subjects import SUBJECTS, Subject, subject
from mapek.simulations.profile.switch import Share

FLOW = {"cpu_ns": 700.0, "p50_ns": 4000.0, "p99_ns": 9000.0}


def result(
    sensor: str = "xdp_counter", rounds: int = 20, *, over: float = 60.0, noise: float = 3.0
) -> Result:
    """`over` ns more a packet with the sensor, 20 with an empty program; p50 the same; p99 all noise."""
    found, chance = Result(subject(sensor), 7), np.random.default_rng(1)
    more = {"without": 0.0, "empty": 20.0, "with": over, "others": over / 2}
    metrics = FLOW if found.subject.load == "flow" else {"read_ns": 300.0, "getppid_ns": 200.0}
    for _ in range(rounds):
        found.rounds.append(
            {
                setting: {
                    name: base
                    + (more[setting] if name in ("cpu_ns", "read_ns", "getppid_ns") else 0.0)
                    + chance.normal(0, 3000.0 if name == "p99_ns" else noise)
                    for name, base in metrics.items()
                }
                for setting in found.subject.settings
            }
        )
    found.shares = [Share("dispatcher", 1.0, Runs(400_000, 7680)), Share("seldom", 0.001, Runs(900, 8))]
    found.seconds, found.complete = 20.0, True
    return found


def test_a_flow_is_compared_with_and_without_and_beside_an_empty_program():
    told = result().comparisons()
    assert [(one.metric, one.a, one.b, one.found.verdict) for one in told] == [
        ("cpu_ns", "without", "with", "more"),
        ("cpu_ns", "empty", "with", "more"),
        ("p50_ns", "without", "with", "none"),
        ("p99_ns", "without", "with", "not measured"),
    ]
    assert told[0].found.difference == pytest.approx(60, abs=4)
    assert told[1].found.difference == pytest.approx(40, abs=4)


def test_calls_are_compared_watched_and_of_another_process():
    told = [(one.metric, one.a, one.b) for one in result("syscall_latency").comparisons()]
    assert told == [
        ("read_ns", "without", "with"),
        ("read_ns", "without", "others"),
        ("read_ns", "empty", "with"),
        ("getppid_ns", "without", "with"),
    ]


def test_the_table_has_no_number_for_noise():
    text = words.text(result(), 24.0)
    assert max(map(len, text.splitlines())) <= 100
    title, _, cpu, beside, p50, p99, *rest = text.splitlines()
    assert title == "xdp_counter: 20 rounds in 20 s, seed 7"
    assert "  +60 ns  " in cpu or "+59 ns" in cpu or "+61 ns" in cpu
    assert "beside an empty program" in beside
    assert "no difference" in p50
    assert "not measured" in p99
    assert rest == [
        "  program dispatcher: 1.00 runs a packet, 52 ns a run by bpf_stats",
        "  program seldom: 0.00 runs a packet, 8 runs by bpf_stats",
        "  the empty program: 24 ns a run by bpf_stats, which times itself too",
        "not measured: too few rounds, or an interval with 0 in it, too wide to decide; take more --seconds.",
    ]


def test_what_was_cut_short_says_so():
    cut = result(rounds=3)
    cut.complete = False
    text = words.text(cut)
    assert "3 rounds in 20 s, cut short, seed 7" in text
    assert "+60" not in text
    assert text.count("too few rounds\n") == 4
    cut.rounds.clear()
    assert words.text(cut).endswith("not one round was done.")
    assert cut.json()["comparisons"] == []


def test_json_holds_what_it_takes_to_judge_again():
    document = json.loads(json.dumps(result().json()))
    assert set(document) == {
        "sensor", "load", "options", "seed", "seconds", "interrupted", "programs", "comparisons", "samples"
    }  # fmt: skip
    assert document["programs"] == [
        {"name": "dispatcher", "runs_each": 1.0, "runs": 7680, "ns_per_run": 52.08},
        {"name": "seldom", "runs_each": 0.001, "runs": 8, "ns_per_run": None},
    ]
    first, *_, last = document["comparisons"]
    assert set(first) == {
        "metric", "a", "b", "pairs", "a_median", "a_p5_p95", "b_median", "b_p5_p95", "verdict", "difference",
        "interval", "decides",
    }  # fmt: skip
    samples = document["samples"]
    differences = np.array(samples["with"]["cpu_ns"]) - np.array(samples["without"]["cpu_ns"])
    assert first["difference"] == pytest.approx(np.median(differences))
    assert first["interval"] == sorted(differences)[5:15:9]
    assert last["verdict"] == "not measured"
    assert last["difference"] is None


@pytest.mark.parametrize("sensors", [("xdp_counter",), ("xdp_counter", "syscall_latency", "net_events")])
def test_the_picture_is_one(tmp_path, sensors):
    path = tmp_path / "ab.png"
    picture.draw([result(name) for name in sensors], path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_said_before(tmp_path, monkeypatch):
    with pytest.raises(PermanentError, match=r"name it \.png"):
        picture.check(tmp_path / "ab.txt")
    with pytest.raises(PermanentError, match="there is no such folder"):
        picture.check(tmp_path / "none" / "ab.png")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(FeatureError, match=r"pip install mapek\[plot\]"):
        picture.check(tmp_path / "ab.png")


def test_every_subject_is_a_sensor_and_takes_options():
    assert set(SUBJECTS) <= set(available(SENSORS))
    assert subject("net_events", {"packets": False}).options == {"packets": False}
    assert subject("xdp_counter") == Subject("xdp_counter", "flow", "xdp")
    with pytest.raises(
        ConfigError, match="measure psi: no sensor with a program of its own; take from xdp_counter"
    ):
        subject("psi")
