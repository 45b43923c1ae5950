"""What the loop counts: totals, bounds on memory, and the life of an incident."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from mapek.model import Entity, Incident, IncidentState
from mapek.tally import BOUNDS, KNOWN, MAX_SERIES, OTHER, Histogram, Tally, stages

PATH = Entity("path", "b/l0")


def test_labels_have_no_order() -> None:
    tally = Tally()
    tally.count("plans", {"policy": "p", "outcome": "x"})
    tally.count("plans", {"outcome": "x", "policy": "p"}, 2)
    assert tally.counters["plans"] == {(("outcome", "x"), ("policy", "p")): 3}
    assert tally.total("plans") == 3
    assert tally.total("never_counted") == 0


def test_series_are_bounded() -> None:
    tally = Tally()
    for number in range(MAX_SERIES + 50):
        tally.count("suspicions", {"kind": str(number)})
        tally.observe("recovery_seconds", {"policy": str(number)}, 0.1)
    for series in (tally.counters["suspicions"], tally.histograms["recovery_seconds"]):
        assert len(series) == MAX_SERIES + 1
    assert tally.counters["suspicions"][(("kind", OTHER),)] == 50
    assert tally.total("suspicions") == MAX_SERIES + 50


@given(st.floats(min_value=-1, max_value=1000, allow_nan=False))
def test_a_value_falls_into_the_bucket_that_holds_it(seconds: float) -> None:
    histogram = Histogram()
    histogram.observe(seconds)
    bucket = histogram.buckets.index(1)
    value = max(seconds, 0.0)
    assert sum(histogram.buckets) == 1
    assert bucket == len(BOUNDS) or value <= BOUNDS[bucket]
    assert bucket == 0 or value > BOUNDS[bucket - 1]
    assert histogram.sum == value


def test_bounds_tell_three_milliseconds_from_five() -> None:
    assert {0.003, 0.005} <= set(BOUNDS)
    assert list(BOUNDS) == sorted(set(BOUNDS))


def _states(*states: IncidentState) -> list[Incident]:
    stamps = {"detected": 2_000_000, "planned": 2_100_000, "acted": 2_300_000, "recovered": 3_300_000}
    found = []
    now = Incident(1, PATH, "path_dead", "detected", 1_000_000, 0, policy="p")
    for state in states:
        now = replace(now, state=state)
        if state == "detected":
            now = replace(now, detected_ns=stamps[state])
        elif state == "planned":
            now = replace(now, planned_ns=stamps[state])
        elif state == "acted":
            now = replace(now, acted_ns=stamps[state])
        elif state == "recovered":
            now = replace(now, recovered_ns=stamps[state])
        found.append(now)
    return found


def test_a_recovered_incident() -> None:
    tally = Tally()
    for incident in _states("detected", "planned", "acted", "recovered"):
        tally.incident(incident)
        states = {dict(key)["state"]: count for key, count in tally.counters["incidents"].items() if count}
        assert states == {incident.state: 1}
    mttr = tally.histograms["recovery_seconds"][(("policy", "p"),)]
    assert sum(mttr.buckets) == 1
    assert round(mttr.sum * 1e3, 6) == 2.3
    sums = {
        dict(key)["stage"]: round(one.sum * 1e3, 6)
        for key, one in tally.histograms["recovery_stage_seconds"].items()
    }
    assert sums == {"detect": 1.0, "plan": 0.1, "act": 0.2, "verify": 1.0}


def test_an_unrecovered_incident_has_no_mttr() -> None:
    tally = Tally()
    for incident in _states("detected", "planned", "acted", "unrecovered"):
        tally.incident(incident)
    assert not tally.histograms
    assert tally.counters["incidents"][(("kind", "path_dead"), ("state", "unrecovered"))] == 1


def test_stages_that_have_not_come_are_left_out() -> None:
    assert set(stages(_states("detected")[-1])) == {"detect"}
    assert set(stages(_states("detected", "planned")[-1])) == {"detect", "plan"}


def test_every_known_name_says_what_it_is() -> None:
    for name, known in KNOWN.items():
        assert known.help.endswith(".")
        assert (known.kind == "histogram") == name.endswith("_seconds")
