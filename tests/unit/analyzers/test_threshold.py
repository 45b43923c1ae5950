"""threshold: beyond for long enough, back for long enough, and nothing for what is unknown."""

import numpy as np
import pytest

from mapek.analyzers.threshold import Threshold
from mapek.errors import ConfigError
from mapek.knowledge import Knowledge, Topology
from mapek.model import Entity, Frame, Metric, Schema

A, B = Entity("link", "a"), Entity("link", "b")
SCHEMA = Schema(
    "s",
    "link",
    counters=(
        Metric("receive", "packets", labels=(("family", "ipv4"),)),
        Metric("receive", "packets", labels=(("family", "ipv6"),)),
        Metric("receive", "bytes", labels=(("family", "ipv4"),)),
    ),
    gauges=(Metric("load"),),
)
SECOND = 1_000_000_000


def run(options, rows, *, counters=None, valid=None, period_s=1, entities=(A,)):
    analyzer, knowledge = Threshold({"sensor": "s", **options}), Knowledge(Topology("n"))
    analyzer.start(knowledge)
    found = []
    for at, row in enumerate(rows):
        row = np.atleast_1d(np.array(row, float))
        n = len(entities)
        frame = Frame(
            (at + 1) * period_s * SECOND,
            SCHEMA,
            entities,
            np.array([(counters or {}).get(at, [0, 0, 0])] * n, np.uint64),
            row.reshape(n, 1),
            np.array([True] * n if valid is None else [valid[at]] * n),
        )
        knowledge.take(frame)
        found += analyzer.on_frame(frame, knowledge)
    return [
        (one.cleared, one.detected_ns // SECOND, one.onset_ns // SECOND, one.entity.name) for one in found
    ]


@pytest.mark.parametrize(
    ("options", "rows", "expected"),
    [
        ({"above": 5}, [1, 6, 7, 4], [(False, 2, 2), (True, 4, 4)]),
        ({"above": 5}, [5, 5, 5], []),
        ({"below": 5}, [6, 4, 3, 5], [(False, 2, 2), (True, 4, 4)]),
        ({"above": 5, "clear": 2}, [6, 4, 3, 2, 4], [(False, 1, 1), (True, 4, 4)]),
        ({"below": 5, "clear": 8}, [4, 6, 7, 8], [(False, 1, 1), (True, 4, 4)]),
        ({"above": 5, "hold_s": 2}, [6, 6, 1, 6, 6, 6, 1, 6, 1, 1, 1], [(False, 6, 4), (True, 11, 9)]),
        ({"above": 5, "hold_s": 2, "clear_hold_s": 0}, [6, 6, 6, 1], [(False, 3, 1), (True, 4, 4)]),
        ({"above": 5, "hold_s": 2}, [6, float("nan"), 6, 1], [(False, 3, 1)]),
        ({"above": 5}, [float("nan")] * 4, []),
        ({"above": 5}, [float("inf"), 1], [(False, 1, 1), (True, 2, 2)]),
        ({"above": -1}, [-2, 0], [(False, 2, 2)]),
    ],
)
def test_limits_hysteresis_and_hold(options, rows, expected):
    assert [one[:3] for one in run({"metric": "load", **options}, rows)] == expected


def test_an_unreadable_row_changes_nothing():
    assert run({"metric": "load", "above": 5}, [6, 9, 1], valid=[False, False, True]) == []
    assert len(run({"metric": "load", "above": 5}, [6, 1, 1], valid=[True, False, False])) == 1


def test_counters_are_judged_by_their_rate_and_added_up_over_labels():
    counters = {0: [0, 0, 0], 1: [60, 50, 1], 2: [70, 60, 10**6], 3: [70, 60, 10**6]}
    rows = [0] * 4
    assert [o[:2] for o in run({"metric": "receive_packets", "above": 100}, rows, counters=counters)] == [
        (False, 2), (True, 3),
    ]  # fmt: skip
    one = {"metric": 'receive_packets{family="ipv6"}', "above": 100}
    assert run(one, rows, counters=counters) == []
    assert [o[:2] for o in run({"metric": "receive_bytes", "above": 100}, rows, counters=counters)] == [
        (False, 3), (True, 4),
    ]  # fmt: skip


def test_entities_have_their_own_state_and_may_be_chosen():
    rows = [[6, 1], [6, 6], [1, 6]]
    options = {"metric": "load", "above": 5}
    both = run(options, rows, entities=(A, B))
    assert [(one[0], one[1], one[3]) for one in both] == [(False, 1, "a"), (False, 2, "b"), (True, 3, "a")]
    assert {one[3] for one in run({**options, "entities": ["b"]}, rows, entities=(A, B))} == {"b"}


def test_the_onset_may_be_as_old_as_the_reading_before():
    analyzer, knowledge = Threshold({"sensor": "s", "metric": "load", "above": 5.0}), Knowledge(Topology("n"))
    for time_ns, load in ((1, 0.0), (8, 9.0)):
        frame = Frame(
            time_ns, SCHEMA, (A,), np.zeros((1, 3), np.uint64), np.array([[load]]), np.array([True])
        )
        knowledge.take(frame)
        found = list(analyzer.on_frame(frame, knowledge))
    assert (found[0].onset_ns, found[0].onset_error_ns, found[0].score) == (8, 7, 4.0)
    assert found[0].evidence == {"sensor": "s", "metric": "load", "value": 9.0, "limit": 5.0}


def test_other_sensors_and_unknown_metrics_are_left_alone():
    assert run({"metric": "nonsense", "above": 5}, [9, 9]) == []
    assert run({"metric": "load", "above": 5, "sensor": "other"}, [9, 9]) == []


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "sensor: is missing"),
        ({"sensor": "s"}, "metric: is missing"),
        ({"sensor": "s", "metric": "m"}, "set either above or below"),
        ({"sensor": "s", "metric": "m", "above": 1, "below": 0}, "set either above or below"),
        ({"sensor": "s", "metric": "m", "above": "1"}, "above: is a string, not a number"),
        ({"sensor": "s", "metric": "m", "above": 1, "clear": 2}, "clear: is 2, above the limit"),
        ({"sensor": "s", "metric": "m", "below": 1, "clear": 0}, "clear: is 0, below the limit"),
        ({"sensor": "s", "metric": "m", "above": 1, "hold_s": -1}, "hold_s: is -1"),
        ({"sensor": "s", "metric": "m", "above": 1, "entities": [1]}, "entities"),
    ],
)
def test_wrong_options_are_one_clear_line(options, why):
    with pytest.raises(ConfigError, match=why) as caught:
        Threshold(options)
    assert "\n" not in str(caught.value)


def test_gone_entities_are_forgotten():
    analyzer, knowledge = Threshold({"sensor": "s", "metric": "load", "above": 5.0}), Knowledge(Topology("n"))
    for at in range(3000):
        frame = Frame(
            at,
            SCHEMA,
            (Entity("link", f"v{at}"),),
            np.zeros((1, 3), np.uint64),
            np.zeros((1, 1)),
            np.array([True]),
        )
        knowledge.take(frame)
        assert list(analyzer.on_frame(frame, knowledge)) == []
    assert len(analyzer._states) < 1100
