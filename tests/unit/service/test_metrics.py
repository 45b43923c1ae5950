"""The text of /metrics: parsed by the library's own parser, and linted by Prometheus' naming rules."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from mapek.model import Entity, Frame, Schema
from mapek.model import Metric as Metric_
from mapek.service.collector import LoopCollector, exposition
from mapek.service.families import metric_name
from mapek.tally import BOUNDS
from tests.unit.service.conftest import Sensor, View


async def _text(view: View) -> str:
    registry = CollectorRegistry()
    registry.register(LoopCollector(view, "1.2.3"))
    return b"".join([piece async for piece in exposition(registry)]).decode()


async def _families(view: View) -> dict[str, Metric]:
    found = list(text_string_to_metric_families(await _text(view)))
    names = [family.name for family in found]
    assert len(names) == len(set(names))
    return {family.name: family for family in found}


def _value(family: Metric, suffix: str = "", **labels: str) -> float:
    values = [s.value for s in family.samples if s.name == family.name + suffix and s.labels == labels]
    assert len(values) == 1, family.samples
    return values[0]


async def test_what_a_sensor_sees(view: View) -> None:
    families = await _families(view)
    sent = families["mapek_link_watch_sent_packets"]
    assert (sent.type, sent.documentation) == ("counter", "Probes sent.")
    assert _value(sent, "_total", path="b/l0") == 2.0**63
    assert _value(sent, "_total", path='b/"l1"\n') == 3
    assert len(sent.samples) == 2  # the third row is not valid
    assert _value(families["mapek_link_watch_received_bytes"], "_total", path="b/l0") == 7
    assert _value(families["mapek_link_watch_silence_seconds"], path="b/l0") == 0.5


async def test_a_histogram_is_cumulative(view: View) -> None:
    family = (await _families(view))["mapek_link_watch_round_trip_seconds"]
    buckets = {
        s.labels["le"]: s.value for s in family.samples if s.labels["path"] == "b/l0" and "le" in s.labels
    }
    assert buckets == {"0.001": 5, "0.01": 8, "+Inf": 9}
    assert _value(family, "_count", path="b/l0") == 9
    assert not [s for s in family.samples if s.name.endswith("_sum")]  # the kernel does not count it


def _timed(unit: str, total: str, labels: tuple[tuple[str, str], ...] = ()) -> Frame:
    schema = Schema(
        "calls",
        "service",
        counters=(
            Metric_("spent", unit, labels=(("call", "read"),)),
            Metric_("spent", unit, labels=(("call", "write"),)),
        ),
        histograms=(
            Metric_("duration", "seconds", bounds=(0.001,), labels=(("call", "read"),), sum=total),
            Metric_("duration", "seconds", bounds=(0.001,), labels=labels or (("call", "write"),), sum=total),
        ),
    )
    return Frame(
        1,
        schema,
        (Entity("service", "a"),),
        np.array([[2**63, 1_500_000_000]], np.uint64),
        np.zeros((1, 0)),
        np.ones(1, np.bool_),
        (np.array([[2, 1]], np.uint64), np.array([[0, 3]], np.uint64)),
    )


@pytest.mark.parametrize(("unit", "scale"), [("nanoseconds", 1e-9), ("seconds", 1.0)])
async def test_a_histogram_has_the_sum_that_the_kernel_counted_in_its_own_unit(
    unit: str, scale: float
) -> None:
    family = (await _families(View({"calls": Sensor(frame=_timed(unit, "spent"))})))[
        "mapek_calls_duration_seconds"
    ]
    assert family.type == "histogram"
    for call, total, count in (("read", 2**63, 3), ("write", 1_500_000_000, 3)):
        assert math.isclose(_value(family, "_sum", service="a", call=call), total * scale)
        assert _value(family, "_count", service="a", call=call) == count
        assert _value(family, "_bucket", service="a", call=call, le="+Inf") == count


@pytest.mark.parametrize(
    ("unit", "total", "labels"),
    [
        ("", "spent", ()),
        ("nanoseconds", "", ()),
        ("nanoseconds", "lost", ()),
        ("seconds", "spent", (("call", "x"),)),
    ],
)
async def test_a_sum_that_cannot_be_told_is_left_out(unit, total, labels) -> None:
    view = View({"calls": Sensor(frame=_timed(unit, total, labels))})
    family = (await _families(view))["mapek_calls_duration_seconds"]
    call = dict(labels or [("call", "write")])["call"]
    assert [s.name for s in family.samples if s.labels["call"] == call and "le" not in s.labels] == [
        "mapek_calls_duration_seconds_count"
    ]


async def test_the_loop_about_itself(view: View) -> None:
    families = await _families(view)
    incidents = families["mapek_incidents"]
    assert incidents.type == "gauge"
    assert _value(incidents, kind="path_dead", state="recovered") == 1
    assert _value(incidents, kind="path_dead", state="acted") == 0
    assert _value(incidents, kind="path_gray", state="detected") == 1
    assert _value(families["mapek_suspicions"], "_total", kind="silent") == 3
    assert _value(families["mapek_queue_drops"], "_total", queue="inputs") == 1
    assert math.isclose(_value(families["mapek_recovery_seconds"], "_sum", policy="p"), 0.0023)
    stages = families["mapek_recovery_stage_seconds"]
    for stage, seconds in {"detect": 0.001, "plan": 0.0001, "act": 0.0002, "verify": 0.001}.items():
        assert math.isclose(_value(stages, "_sum", policy="p", stage=stage), seconds)
    lateness = families["mapek_tick_lateness_seconds"]
    assert _value(lateness, "_count") == 1
    assert len([s for s in lateness.samples if s.name.endswith("_bucket")]) == len(BOUNDS) + 1


async def test_sensors_state(view: View) -> None:
    families = await _families(view)
    assert _value(families["mapek_sensor_up"], sensor="netlink") == 1
    assert _value(families["mapek_sensor_attached"], sensor="link_watch", target="l1", mode="generic") == 1
    assert _value(families["mapek_sensor_degraded"], sensor="link_watch") == 1
    assert _value(families["mapek_sensor_ring_drops"], "_total", sensor="link_watch") == 4
    assert _value(families["mapek_working"]) == 1
    view.trouble = "no sensor works"
    assert _value((await _families(view))["mapek_working"]) == 0


async def test_a_link_that_was_made_again_is_one_series(view: View, frame: Frame) -> None:
    from dataclasses import replace

    entities = (Entity("path", "x", 4), Entity("path", "x", 9), Entity("path", "x", 5))
    view.sensors = {"link_watch": Sensor(frame=replace(frame, entities=entities))}
    sent = (await _families(view))["mapek_link_watch_sent_packets"]
    assert [s.value for s in sent.samples] == [3]  # generation 9; 5 is younger but not valid


async def test_an_empty_loop(view: View) -> None:
    families = await _families(View())
    assert _value(families["mapek_info"], version="1.2.3") == 1
    assert _value(families["mapek_working"]) == 1


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("link_watch", "sent", "packets"), "mapek_link_watch_sent_packets"),
        (("link_watch", "sent_packets", "packets"), "mapek_link_watch_sent_packets"),
        (("my-sensor", "Größe", ""), "mapek_my_sensor_gr_e"),
        (("s", "load", ""), "mapek_s_load"),
    ],
)
def test_names(parts: tuple[str, ...], name: str) -> None:
    assert metric_name(*parts) == name


def _lint(families: Iterable[Metric]) -> list[str]:
    """What `promtool check metrics` complains of, as far as names go."""
    found = []
    for family in families:
        suffixed = family.name.endswith(("_total", "_count", "_sum", "_bucket"))
        if suffixed and family.type != "counter":
            found.append(f"{family.name} has a suffix of another type")
        if not family.documentation:
            found.append(f"{family.name} has no help text")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", family.name) or "__" in family.name:
            found.append(f"{family.name} is not in snake case")
        if re.search(
            r"_(milli|micro|nano)?(ms|us|ns|milliseconds|microseconds|nanoseconds|minutes)(_|$)", family.name
        ):
            found.append(f"{family.name} is not in base units")
        if family.type in family.name.split("_"):
            found.append(f"{family.name} names its type")
        for sample in family.samples:
            if family.type == "counter" and not sample.name.endswith("_total"):
                found.append(f"{sample.name} should end in _total")
            found += [f"{sample.name}: label {label}" for label in sample.labels if not label.islower()]
    return found


async def test_lint(view: View) -> None:
    assert _lint((await _families(view)).values()) == []
    bad = Metric("mapek_bad_counter_ms", "", "gauge")
    assert len(_lint([bad])) == 2  # the lint itself can fail
