"""The collector behind `/metrics`: walks the loop's memory when it is scraped, and does no I/O for it.

The text is made a few lines at a time with a breath between: a scrape of a large node takes milliseconds,
and the loop's own work must not wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from mapek.service.families import metric_name, of_frame, of_tally
from mapek.service.state import LoopView, SensorView

SAMPLES = 32
"""Lines made at a stretch: 0.2 ms."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class LoopCollector(Collector):
    """Metrics of one loop, for a registry of the service's own."""

    def __init__(self, view: LoopView, version: str) -> None:
        self._view, self._version = view, version

    def collect(self) -> Iterator[Metric]:
        """All families, made as they are asked for."""
        yield InfoMetricFamily("mapek", "The version of mapek.", {"version": self._version})
        yield GaugeMetricFamily("mapek_working", "Whether the loop can work.", float(not self._view.trouble))
        sensors = dict(self._view.sensors)
        yield from _sensor_states(sensors)
        yield from of_tally(self._view.tally)
        for name, sensor in sensors.items():
            if sensor.frame is not None:
                yield from of_frame(name, sensor.frame)


def _sensor_states(sensors: dict[str, SensorView]) -> Iterator[Metric]:
    up = GaugeMetricFamily("mapek_sensor_up", "Whether the sensor works.", labels=["sensor"])
    attached = GaugeMetricFamily(
        "mapek_sensor_attached",
        "What the sensor is attached to, and how.",
        labels=["sensor", "target", "mode"],
    )
    degraded = GaugeMetricFamily(
        "mapek_sensor_degraded", "How many features the sensor works without.", labels=["sensor"]
    )
    shortfall = GaugeMetricFamily(
        "mapek_sensor_shortfall",
        "What the sensor works without or what keeps it from working, in the words of /health.",
        labels=["sensor", "why"],
    )
    counts: dict[str, CounterMetricFamily] = {}
    for name, sensor in sensors.items():
        status = sensor.status
        up.add_metric([name], float(status.up))
        degraded.add_metric([name], len(status.degraded))
        for why in dict.fromkeys(status.degraded):
            shortfall.add_metric([name, why], 1)
        for target, mode in status.attached.items():
            attached.add_metric([name, target, mode], 1)
        for count, value in status.counts.items():
            family = metric_name("sensor", count.removesuffix("_total"))
            if family not in counts:
                counts[family] = CounterMetricFamily(family, f"{count} of the sensor.", labels=["sensor"])
            counts[family].add_metric([name], value)
    yield from (up, attached, degraded, shortfall, *counts.values())


class _One(Collector):
    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)


async def exposition(registry: CollectorRegistry) -> AsyncIterator[bytes]:
    """The text of all families of `registry`, in pieces of at most `SAMPLES` lines."""
    for family in registry.collect():
        samples = family.samples
        for start in range(0, max(len(samples), 1), SAMPLES):
            part = Metric(family.name, family.documentation, family.type, family.unit)
            part.samples = samples[start : start + SAMPLES]
            text = generate_latest(_One(part))
            # The library heads each piece with HELP and TYPE, which belong before the first one only.
            yield text.split(b"\n", 2)[2] if start else text
            await asyncio.sleep(0)
