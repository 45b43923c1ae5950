"""The last N values of every metric of every entity, in numpy rings that are allocated once.

Each ring is written twice, half a buffer apart, so that the last N values are always one contiguous
view, oldest first: reading costs nothing, memory doubles (16 bytes a value). A sensor's entities share
the times of its frames; where an entity was absent or unreadable its value is NaN.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mapek.knowledge.slots import Slots
from mapek.model import Entity, Frame, Metric, Schema

BYTES = 4 << 20
"""What one sensor's rings may take; it bounds how many of its entities are kept."""

Times = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


def column_name(metric: Metric) -> str:
    """What tells a column from all others of its sensor: name and unit, and its labels where it has some.

    >>> column_name(Metric("receive", "bytes", labels=(("family", "ipv6"), ("protocol", "tcp"))))
    'receive_bytes{family="ipv6",protocol="tcp"}'
    """
    unit = f"_{metric.unit}" if metric.unit and not metric.name.endswith(metric.unit) else ""
    labels = ",".join(f'{name}="{value}"' for name, value in metric.labels)
    return f"{metric.name}{unit}{{{labels}}}" if labels else metric.name + unit


def columns_of(schema: Schema, metric: str) -> list[int]:
    """The columns, counters first, that `metric` means: one by its whole name, or all of that name."""
    metrics = schema.counters + schema.gauges
    whole = [at for at, one in enumerate(metrics) if column_name(one) == metric]
    return whole or [
        at for at, one in enumerate(metrics) if metric in (one.name, column_name(one).partition("{")[0])
    ]


class Ring:
    """The history of one sensor.

    Attributes:
        metrics: what the columns are: counters (as rates per second), then gauges, as `column_name` has them.
    """

    def __init__(self, schema: Schema, depth: int) -> None:
        self.schema, self.depth = schema, depth
        self.metrics = tuple(column_name(metric) for metric in schema.counters + schema.gauges)
        self._limit = max(1, BYTES // (16 * depth * max(1, len(self.metrics))))
        self._slots = Slots(self._limit)
        self._times: Times = np.zeros(2 * depth, np.int64)
        self._values: Values = np.empty((2 * depth, 0, len(self.metrics)))
        self._count = 0

    @property
    def refused(self) -> int:
        """How many entities of the latest frame found no room."""
        return self._slots.refused

    def __len__(self) -> int:
        return min(self._count, self.depth)

    def append(self, frame: Frame, rates: Values) -> None:
        """Keep `frame`, whose counters are worth `rates`; allocates only for more entities than ever."""
        rows, fresh = self._slots.rows(frame.entities)
        if len(self._slots) > self._values.shape[1]:
            # Most sensors have all their entities in the first frame, and room for others is never used.
            room = 2 * len(self._slots) if self._count else len(self._slots)
            more = min(room, self._limit) - self._values.shape[1]
            self._values = np.pad(self._values, ((0, 0), (0, more), (0, 0)), constant_values=np.nan)
        if fresh:
            self._values[:, fresh] = np.nan
        at, counters = self._count % self.depth, len(self.schema.counters)
        row = self._values[at]
        row[:] = np.nan
        if self._slots.refused:
            kept = rows >= 0
            rows = rows[kept]
            row[rows, :counters], row[rows, counters:] = rates[kept], frame.gauges[kept]
            row[rows[~frame.valid[kept]]] = np.nan
        else:
            row[rows, :counters], row[rows, counters:] = rates, frame.gauges
            row[rows[~frame.valid]] = np.nan
        self._values[at + self.depth] = row
        self._times[at] = self._times[at + self.depth] = frame.time_ns
        self._count += 1

    def window(self, last: int | None = None) -> tuple[Times, Values]:
        """Times (m,) and values (m, slots, metrics), oldest first, m <= `last`.

        Both are views, true until the next frame comes; `slot` and `column` say where an entity's metric is.
        """
        m = len(self) if last is None else min(last, len(self))
        end = (self._count - 1) % self.depth + self.depth + 1 if self._count else 0
        return self._times[end - m : end], self._values[end - m : end]

    def slot(self, entity: Entity) -> int | None:
        """Where `entity` is on the second axis of `window`; None without a history."""
        return self._slots.get(entity)

    def entities(self) -> tuple[Entity, ...]:
        """Whoever has a history, by slot."""
        return self._slots.entities()

    def column(self, metric: str) -> int | None:
        """Where `metric` is on the third axis of `window`; None if the schema has no such, or several."""
        found = columns_of(self.schema, metric)
        return found[0] if len(found) == 1 else None


class History:
    """The rings of all sensors, by the sensor's name."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._rings: dict[str, Ring] = {}

    def ring(self, sensor: str) -> Ring | None:
        """The ring of `sensor`; None before its first frame."""
        return self._rings.get(sensor)

    def append(self, frame: Frame, rates: Values) -> None:
        """Keep `frame`, whose counters are worth `rates`, in its sensor's ring."""
        ring = self._rings.get(frame.schema.sensor)
        # A sensor that comes back with other columns begins anew: old values would stand under wrong names.
        if ring is None or (ring.schema is not frame.schema and ring.schema != frame.schema):
            ring = self._rings[frame.schema.sensor] = Ring(frame.schema, self.depth)
        ring.append(frame, rates)

    def series(self, sensor: str, entity: Entity, metric: str) -> tuple[Times, Values]:
        """Times (m,) and values (m,) of one metric of one entity, oldest first; both empty if unknown."""
        ring = self._rings.get(sensor)
        if ring is not None:
            slot, column = ring.slot(entity), ring.column(metric)
            if slot is not None and column is not None:
                times, values = ring.window()
                return times, values[:, slot, column]
        return np.empty(0, np.int64), np.empty(0)
