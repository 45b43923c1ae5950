"""robust_z: finds what is far out, keeps to its budget on noise, and knows what it cannot know."""

import numpy as np
import pytest

from mapek.analyzers.robust_z import LEAST, RobustZ, robust_z
from mapek.errors import ConfigError
from mapek.knowledge import Knowledge, Topology
from mapek.model import Entity, Frame, Metric, Schema

SCHEMA = Schema("s", "link", counters=(Metric("packets_total"),), gauges=(Metric("load"), Metric("heat")))
SECOND = 1_000_000_000
LEARN = {"window": 60, "warm_up": 30, "calibration": 100}
READY = 30 + 100


class Node:
    """An analyzer and what feeds it, one frame a second."""

    def __init__(self, options=None, period_ns=SECOND):
        self.analyzer = RobustZ({"sensor": "s", **LEARN, **(options or {})})
        self.knowledge, self.at, self.period_ns = Knowledge(Topology("n")), 0, period_ns
        self.total = 0

    def feed(self, load, heat=0.0, rate=100.0, entities=("a",), valid=None):
        n = len(entities)
        self.at += 1
        self.total += int(rate)
        frame = Frame(
            self.at * self.period_ns,
            SCHEMA,
            tuple(Entity("link", name) for name in entities),
            np.full((n, 1), self.total, np.uint64),
            np.column_stack([np.full(n, load), np.full(n, heat)]),
            np.array([True] * n if valid is None else valid),
        )
        self.knowledge.take(frame)
        return list(self.analyzer.on_frame(frame, self.knowledge))


def test_a_jump_is_found_with_its_onset_and_ends_when_it_is_over():
    rng, node = np.random.default_rng(1), Node()
    quiet = [one for _ in range(READY + 100) for one in node.feed(10 + rng.normal(), rng.normal())]
    assert quiet == []
    found = [(node.at, one) for _ in range(10) for one in node.feed(40 + rng.normal(), rng.normal())]
    ((detected, symptom),) = found
    assert symptom.onset_ns == (READY + 101) * SECOND
    assert symptom.onset_error_ns == SECOND
    assert symptom.detected_ns == detected * SECOND
    assert symptom.evidence["metric"] == "load"
    assert symptom.evidence["metrics"] == ("load",)
    assert symptom.score > 15
    assert symptom.evidence["limit"] >= LEAST
    ended = [one for _ in range(20) for one in node.feed(10 + rng.normal(), rng.normal())]
    assert [one.cleared for one in ended] == [True]


def test_rates_are_scored_as_well():
    rng, node = np.random.default_rng(1), Node()
    for _ in range(READY + 50):
        assert node.feed(rng.normal(), rng.normal(), 1000 + rng.normal(0, 10)) == []
    found = [one for _ in range(8) for one in node.feed(rng.normal(), rng.normal(), 0)]
    assert [one.evidence["metric"] for one in found] == ["packets_total"]


@pytest.mark.parametrize("draw", ["normal", "exponential", "laplace"])
def test_noise_keeps_to_the_budget_of_false_alarms(draw):
    budget, hours = 20.0, 40
    rng = np.random.default_rng(5)
    node = Node({"false_alarms_per_day": budget, "calibration": 300, "metrics": ["load"]}, 10 * SECOND)
    alarms = 0
    for value in getattr(rng, draw)(size=360 * hours).tolist():
        alarms += sum(not one.cleared for one in node.feed(value))
    expected = budget * hours / 24
    assert alarms <= expected + 4 * expected**0.5
    assert node.analyzer._series.in_a_row() >= 2


def test_a_constant_that_changes_is_an_anomaly_and_one_that_does_not_is_none():
    node = Node()
    assert [one for _ in range(READY + 200) for one in node.feed(0.0)] == []
    found = [one for _ in range(10) for one in node.feed(1.0)]
    assert [one.cleared for one in found] == [False]
    assert LEAST < found[0].score <= 1e6


def test_nothing_is_said_before_the_calibration_is_over():
    rng, node = np.random.default_rng(1), Node()
    found = [
        one for at in range(READY - 5) for one in node.feed(rng.normal() + (1000 if at % 40 > 30 else 0))
    ]
    assert found == []


def test_what_is_unknown_is_no_evidence():
    rng, node = np.random.default_rng(1), Node()
    for _ in range(READY + 60):
        node.feed(rng.normal(), rng.normal(), 100 + rng.normal())
    assert [one for _ in range(30) for one in node.feed(1e9, valid=[False])] == []
    assert [one for _ in range(30) for one in node.feed(float("nan"), rng.normal(), 100)] == []


def test_a_lasting_change_becomes_normal():
    rng, node = np.random.default_rng(1), Node({"metrics": ["load"]})
    for _ in range(READY + 60):
        node.feed(rng.normal())
    found = [one.cleared for _ in range(200) for one in node.feed(50 + rng.normal())]
    assert found == [False, True]


def test_entities_that_come_later_learn_for_themselves():
    rng, node = np.random.default_rng(1), Node()
    for _ in range(READY + 20):
        node.feed(rng.normal(), rng.normal(), 100 + rng.normal())
    both = ("a", "b")
    early = [
        one for _ in range(20) for one in node.feed(rng.normal(), rng.normal(), 100 + rng.normal(), both)
    ]
    assert early == []
    for _ in range(READY + 50):
        node.feed(rng.normal(), rng.normal(), 100 + rng.normal(), both)
    found = [one.entity.name for _ in range(8) for one in node.feed(90.0, rng.normal(), 100, both)]
    assert sorted(found) == ["a", "b"]


def test_a_slot_that_changes_hands_starts_anew():
    node, rng = Node({"metrics": ["load"]}), np.random.default_rng(2)
    ring_limit = None
    for _ in range(READY + 20):
        node.feed(rng.normal(), entities=("a",))
    ring_limit = node.knowledge.history.ring("s")._limit
    crowd = tuple(f"c{n}" for n in range(ring_limit))
    assert [one for _ in range(5) for one in node.feed(500.0, entities=crowd)] == []


def test_the_score_is_that_of_the_paper():
    window = np.array([[1.0, 5, 0], [2, 5, 0], [3, 5, 0], [4, 5, 0], [5, 5, 9]])
    # spread 1.4826; all alike; more than half alike: 1.2533 times the mean deviation of 1.8
    scores = robust_z(np.array([6.0, 5.0, 9.0]), window)
    assert scores.tolist() == pytest.approx([3 / 1.4826, 0.0, 9 / (1.2533 * 1.8)])
    assert np.isnan(robust_z(np.array([np.nan]), window[:, :1]))[0]
    assert np.isnan(robust_z(np.array([1.0]), np.full((3, 1), np.nan)))[0]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "sensor: is missing"),
        ({"sensor": "s", "window": 4}, "window: is 4"),
        ({"sensor": "s", "window": 20, "warm_up": 30}, "warm_up: is 30, longer than the window"),
        ({"sensor": "s", "false_alarms_per_day": 0}, "false_alarms_per_day"),
        ({"sensor": "s", "calibration": 5000}, "calibration"),
    ],
)
def test_wrong_options_are_one_clear_line(options, why):
    with pytest.raises(ConfigError, match=why):
        RobustZ(options)


def test_other_sensors_and_unknown_metrics_are_left_alone():
    node = Node({"metrics": ["nonsense"]})
    assert [one for _ in range(300) for one in node.feed(1.0)] == []
    other = Node({"sensor": "other"})
    assert other.feed(1.0) == []
