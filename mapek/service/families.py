"""Names: what a sensor calls a metric into what Prometheus expects, and the loop's own counters likewise.

`mapek_<sensor>_<metric>_<unit>[_total]`, base units, one label named after the kind of entity. Values are
taken as they are; a rate or a mean is for PromQL to make.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from mapek.model import Entity, Frame
from mapek.model import Metric as Column
from mapek.tally import BOUNDS, KNOWN, Labels, Tally

_UNFIT: Final = re.compile(r"[^a-z0-9_]+")


def metric_name(*parts: str) -> str:
    """The parts as one metric name; a part that repeats the end of what stands before it is left out."""
    name = "mapek"
    for part in parts:
        clean = _UNFIT.sub("_", part.lower()).strip("_")
        if clean and not name.endswith(f"_{clean}"):
            name = f"{name}_{clean}"
    return name


def of_frame(sensor: str, frame: Frame) -> Iterator[Metric]:
    """A family for each name among a frame's columns; rows that could not be read are left out."""
    rows = _rows(frame)
    label = frame.schema.entity
    families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
    columns = (
        (CounterMetricFamily, frame.schema.counters, frame.counters),
        (GaugeMetricFamily, frame.schema.gauges, frame.gauges),
    )
    for kind, metrics, values in columns:
        for column, metric in enumerate(metrics):
            name = metric_name(sensor, metric.name.removesuffix("_total"), metric.unit)
            if name not in families:
                labels = [label, *(key for key, _ in metric.labels)]
                families[name] = kind(name, _help(metric, sensor), labels=labels)
            own = [value for _, value in metric.labels]
            for entity, row in rows.items():
                families[name].add_metric([entity, *own], values[row, column].item())
    yield from families.values()
    histograms: dict[str, HistogramMetricFamily] = {}
    for metric, counts in zip(frame.schema.histograms, frame.histograms, strict=True):
        name = metric_name(sensor, metric.name, metric.unit)
        if name not in histograms:
            labels = [label, *(key for key, _ in metric.labels)]
            histograms[name] = HistogramMetricFamily(name, _help(metric, sensor), labels=labels)
        total, scale = _sum_of(metric, frame.schema.counters)
        for entity, row in rows.items():
            told = {label: entity, **dict(metric.labels)}
            added = None if total is None else int(frame.counters[row, total]) * scale
            _add(histograms[name], told, metric.bounds, [int(count) for count in counts[row]], added)
    yield from histograms.values()


def _sum_of(histogram: Column, counters: Sequence[Column]) -> tuple[int | None, float]:
    """Which of `counters` has the histogram's sum, and what makes its unit the histogram's; None where none has."""
    for column, one in enumerate(counters):
        if histogram.sum and (one.name, one.labels) == (histogram.sum, histogram.labels):
            if one.unit == histogram.unit:
                return column, 1.0
            if (one.unit, histogram.unit) == ("nanoseconds", "seconds"):
                return column, 1e-9
    return None, 1.0


def of_tally(tally: Tally) -> Iterator[Metric]:
    """A family for each name of the tally."""
    for name, counts in list(tally.counters.items()):
        yield _counter(name, counts)
    for name, series in list(tally.histograms.items()):
        labels = _label_names(name, series)
        family = HistogramMetricFamily(metric_name(name), _known_help(name), labels=labels)
        for key, found in list(series.items()):
            _add(family, dict(key), BOUNDS, found.buckets, found.sum)
        yield family


def _counter(name: str, counts: Mapping[Labels, int]) -> Metric:
    labels = _label_names(name, counts)
    gauge = name in KNOWN and KNOWN[name].kind == "gauge"
    kind = GaugeMetricFamily if gauge else CounterMetricFamily
    family = kind(metric_name(name.removesuffix("_total")), _known_help(name), labels=labels)
    for key, value in list(counts.items()):
        values = dict(key)
        family.add_metric([values.get(label, "") for label in labels], value)
    return family


def _rows(frame: Frame) -> dict[str, int]:
    # A link that was made again has the name of the old one and a higher generation: two series of one name
    # would spoil the whole scrape, so the younger wins.
    newest: dict[str, tuple[Entity, int]] = {}
    for row, entity in enumerate(frame.entities):
        if frame.valid[row] and (
            entity.name not in newest or newest[entity.name][0].generation <= entity.generation
        ):
            newest[entity.name] = (entity, row)
    return {name: row for name, (_, row) in newest.items()}


def _add(
    family: HistogramMetricFamily,
    labels: Mapping[str, str],
    bounds: Sequence[float],
    counts: Sequence[int],
    total: float | None,
) -> None:
    buckets: list[tuple[str, float]] = []
    seen = 0
    for bound, count in zip((*bounds, float("inf")), counts, strict=True):
        seen += count
        buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), seen))
    family.add_metric([labels.get(name, "") for name in family._labelnames], buckets, total)
    if total is None:
        # Some programs of the kernel count buckets, not sums. Without a sum the library leaves the count out too.
        family.add_sample(f"{family.name}_count", dict(labels), seen)


def _label_names(name: str, series: Mapping[Labels, object]) -> list[str]:
    known = list(KNOWN[name].labels) if name in KNOWN else []
    return known + sorted({label for key in series for label, _ in key if label not in known})


def _known_help(name: str) -> str:
    return KNOWN[name].help if name in KNOWN else f"Counted by the loop as {name}."


def _help(metric: Column, sensor: str) -> str:
    return metric.help or f"{metric.name} as {sensor} sees it."
