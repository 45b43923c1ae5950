"""Counters as rates per second, for models; Prometheus gets the raw counters.

A rate needs two readings of one entity. Where a counter went down, either it wrapped or somebody reset it.
A wrap of 64 or 32 bits is believed only if the implied step is in keeping with the last known rate;
otherwise the rate is unknown (NaN) until the next reading: a gap is better than an invented spike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from mapek.knowledge.slots import Slots
from mapek.model import Frame, Schema

ENTITIES = 65_536
"""Entities of one sensor that are remembered at most; further rows have unknown rates."""

PLAUSIBLE = 8.0
"""A wrap may imply at most this multiple of the last known rate."""

_NEVER = -1
_WRAP_32 = np.uint64(1 << 32)


class _Readings:
    """The last valid reading of each entity of one sensor."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        columns = len(schema.counters)
        self.slots = Slots(ENTITIES)
        self.time_ns: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self.counters: npt.NDArray[np.uint64] = np.zeros((0, columns), np.uint64)
        self.rates: npt.NDArray[np.float64] = np.zeros((0, columns))

    def rows(self, frame: Frame) -> npt.NDArray[np.intp]:
        rows, fresh = self.slots.rows(frame.entities)
        if len(self.slots) > len(self.time_ns):
            more = min(max(16, 2 * len(self.slots)), ENTITIES) - len(self.time_ns)
            self.time_ns = np.pad(self.time_ns, (0, more), constant_values=_NEVER)
            self.counters = np.pad(self.counters, ((0, more), (0, 0)))
            self.rates = np.pad(self.rates, ((0, more), (0, 0)), constant_values=np.nan)
        if fresh:
            self.time_ns[fresh] = _NEVER
            self.rates[fresh] = np.nan
        return rows


class Rates(Mapping[str, npt.NDArray[np.float64]]):
    """Sensor name to the rates of its latest frame: float64, the shape of `frame.counters`, NaN = unknown."""

    def __init__(self) -> None:
        self._readings: dict[str, _Readings] = {}
        self._latest: dict[str, npt.NDArray[np.float64]] = {}

    def __getitem__(self, sensor: str) -> npt.NDArray[np.float64]:
        return self._latest[sensor]

    def __iter__(self) -> Iterator[str]:
        return iter(self._latest)

    def __len__(self) -> int:
        return len(self._latest)

    def take(self, frame: Frame) -> npt.NDArray[np.float64]:
        """The rates of `frame` since each entity's last valid reading; also kept under the sensor's name."""
        sensor, schema = frame.schema.sensor, frame.schema
        readings = self._readings.get(sensor)
        # As many columns may be others: what stood under another name is no earlier reading.
        if readings is None or (readings.schema is not schema and readings.schema != schema):
            readings = self._readings[sensor] = _Readings(schema)
        rows = readings.rows(frame)
        rates = np.full(frame.counters.shape, np.nan)
        usable = frame.valid & (rows >= 0)
        rows = rows[usable]
        if len(rows):
            now = frame.counters[usable]
            last_ns = readings.time_ns[rows]
            elapsed = frame.time_ns - last_ns
            known = (last_ns != _NEVER) & (elapsed > 0)
            seconds = np.where(known, elapsed, 1)[:, None] / 1e9
            found = _steps(readings.counters[rows], now, seconds, readings.rates[rows]) / seconds
            found[~known] = np.nan
            rates[usable] = found
            readings.time_ns[rows] = frame.time_ns
            readings.counters[rows] = now
            # Through a gap the last known rate stays the measure of what is plausible.
            readings.rates[rows] = np.where(np.isnan(found), readings.rates[rows], found)
        self._latest[sensor] = rates
        return rates


def _steps(
    before: npt.NDArray[np.uint64],
    now: npt.NDArray[np.uint64],
    seconds: npt.NDArray[np.float64],
    rates: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """How far each counter went from `before` to `now`; NaN where it went down and did not just wrap."""
    step = now - before  # unsigned, so a wrap of 64 bits comes out right
    down = now < before
    if not down.any():
        return step.astype(np.float64)
    most = np.where(np.isnan(rates), 0.0, PLAUSIBLE * rates * seconds)
    wrapped_32 = down & (before < _WRAP_32)
    step = np.where(wrapped_32, step + _WRAP_32, step)  # overflows on purpose: modulo 2^64 again
    steps = step.astype(np.float64)
    steps[down & ~(steps <= most)] = np.nan
    return steps
