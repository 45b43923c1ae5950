"""robust_z: is a metric far from its own recent median, in units of its own recent spread?

Median and MAD (Iglewicz and Hoaglin, "How to Detect and Handle Outliers", 1993) are not moved by the outliers
they are to find, need no training and cost microseconds. The price: a change that lasts longer than half of
the window becomes the new normal, and a slow drift is never seen.

Scores are easy, thresholds are where detectors fail: here each series gets its own, fixed without labels,
the quantile `1 - 1/n` of n calibration scores, and as many readings in a row must exceed it as the budget of
false alarms asks for. That count assumes that exceedances of healthy readings are independent; where they
cluster, false alarms come more often than stated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
import numpy.typing as npt

from mapek.config.options import error, take, take_strings
from mapek.contracts import Analyzer, Options
from mapek.knowledge.history import columns_of
from mapek.model import Entity, Finding, Frame, Symptom, Value

if TYPE_CHECKING:
    from mapek.knowledge import Knowledge, Ring

Floats = npt.NDArray[np.float64]

LEAST: Final = 3.5
"""No threshold is lower: what Iglewicz and Hoaglin call a potential outlier."""

MOST: Final = 1e6
"""Score of a reading that differs from a constant."""

AT_ONCE: Final = 16
"""Thresholds that are fixed with one frame: more would hold up the event loop."""

DAY_NS: Final = 86_400_000_000_000


def robust_z(readings: Floats, window: Floats) -> Floats:
    """Scores (k,) of `readings` (k,) against `window` (m, k); NaN where the reading or the window is unknown.

    >>> robust_z(np.array([9.0]), np.array([[1.0], [2.0], [3.0], [4.0], [5.0]])).round(2).tolist()
    [4.05]
    """
    center, scale = _baseline(window)
    return _scores(readings, center, scale)


def _baseline(window: Floats) -> tuple[Floats, Floats]:
    """Median and spread of each column, NaN for one without a known value."""
    center = _median(window)
    away = np.abs(window - center)
    spread = 1.4826 * _median(away)
    known = np.maximum((~np.isnan(away)).sum(axis=0), 1)
    # More than half of the values alike: their mean deviation, as Iglewicz and Hoaglin advise.
    return center, np.where(spread > 0, spread, 1.2533 * np.nansum(away, axis=0) / known + 0.0 * center)


def _median(window: Floats) -> Floats:
    """Of the known values of each column; a tenth of the time of `np.nanmedian`, which masks them first."""
    if not len(window):
        return np.full(window.shape[1], np.nan)
    inorder = np.sort(np.ascontiguousarray(window.T), axis=1)  # the unknown ones come last
    n = (~np.isnan(inorder)).sum(axis=1)
    columns = np.arange(len(inorder))
    low, high = (
        inorder[columns, np.maximum(n - 1, 0) // 2],
        inorder[columns, np.minimum(n // 2, len(window) - 1)],
    )
    return np.where(n > 0, (low + high) / 2, np.nan)


def _scores(readings: Floats, center: Floats, scale: Floats) -> Floats:
    away = np.abs(readings - center)
    scores = np.divide(away, scale, out=np.where(away > 0, MOST, 0.0), where=scale > 0)
    return np.where(np.isnan(away) | np.isnan(scale), np.nan, np.minimum(scores, MOST))


class RobustZ(Analyzer):
    """Analyzer `robust_z`.

    Options:
        sensor: whose frames to look at.
        metrics: columns as `mapek.knowledge.column_name` has them; by default all. Counters by their rate.
        window: frames that the median is taken of; at most what the history keeps.
        warm_up: frames before the first score.
        calibration: scores that fix the threshold of a series, after the warm-up.
        false_alarms_per_day: budget for all series of this sensor together.
        symptom: kind of the symptom.
    """

    name: ClassVar[str] = "robust_z"

    def __init__(self, options: Options) -> None:
        self._sensor = take(options, "sensor", str, required=True, minimum=1)
        self._metrics = take_strings(options, "metrics")
        self._window = take(options, "window", int, 120, minimum=8, maximum=512)
        self._warm_up = take(options, "warm_up", int, min(60, self._window), minimum=5)
        if self._warm_up > self._window:
            why = f"is {self._warm_up}, longer than the window of {self._window}"
            raise error(options, "warm_up", why, "write less, or a longer window")
        self._calibration = take(options, "calibration", int, 300, minimum=20, maximum=1000)
        self._budget = take(options, "false_alarms_per_day", float, 1.0, minimum=1e-6, maximum=1e4)
        self._kind = take(options, "symptom", str, "anomaly", minimum=1)
        self._series: _Series | None = None

    def on_frame(self, frame: Frame, knowledge: Knowledge) -> Iterable[Finding]:
        """Symptoms of entities one of whose series left its normal range, or all of whose came back."""
        if frame.schema.sensor != self._sensor:
            return ()
        ring = knowledge.history.ring(self._sensor)
        if ring is None:
            return ()
        if self._series is None or self._series.ring is not ring:
            columns = list(range(len(ring.metrics)))
            if self._metrics:
                columns = sorted({at for name in self._metrics for at in columns_of(ring.schema, name)})
            self._series = _Series(
                ring, columns, self._window, self._warm_up, self._calibration, self._budget
            )
        return self._findings(self._series, frame)

    def _findings(self, series: _Series, frame: Frame) -> Iterator[Finding]:
        if not series.columns:
            return
        for slot, ill in series.read(frame):
            entity = series.owners[slot]
            evidence, score = series.evidence(slot)
            onset_ns, error_ns = series.onset(slot) if ill else (frame.time_ns, 0)
            cleared = not ill
            yield Symptom(entity, self._kind, score, frame.time_ns, onset_ns, error_ns, evidence, cleared)


class _Series:
    """All series of one sensor, as arrays (slots, columns)."""

    def __init__(
        self, ring: Ring, columns: list[int], window: int, warm_up: int, calibration: int, budget: float
    ) -> None:
        self.ring, self.columns = ring, columns
        self._window, self._warm_up, self._n, self._budget = window, warm_up, calibration, budget
        self._every = max(1, window // 10)
        self._turn = 0
        self.owners: tuple[Entity, ...] = ()
        self._last_ns = 0
        self._period_ns = 0.0
        self._shape(0)

    def _shape(self, slots: int) -> None:
        """Room for `slots` entities; what is known of the present ones stays."""
        k = len(self.columns)

        def grown(name: str, fill: float, *head: int) -> Floats:
            fresh = np.full((*head, slots, k), fill)
            old = getattr(self, name, None)
            if old is not None:
                fresh[..., : old.shape[-2], :] = old
            return fresh

        self._scores = grown("_scores", np.nan)
        self._readings = grown("_readings", np.nan)
        self._center, self._scale = grown("_center", np.nan), grown("_scale", np.nan)
        self._calibrating = grown("_calibrating", np.nan, self._n)
        self._counted = grown("_counted", 0)
        self._limit = grown("_limit", np.nan)
        self._run = grown("_run", 0)
        self._calm = grown("_calm", 0)
        self._ill = grown("_ill", 0)
        self._begun = grown("_begun", 0)
        self._error = grown("_error", 0)

    def _follow(self) -> None:
        """Notice new entities, and slots that changed hands."""
        owners = self.ring.entities()
        if owners == self.owners:
            return
        known = len(self.owners)
        if len(owners) > known:
            self._shape(len(owners))
        for slot in range(known):
            if owners[slot] != self.owners[slot]:
                for array in (self._scores, self._readings, self._center, self._scale, self._limit):
                    array[slot] = np.nan
                for array in (self._counted, self._run, self._calm, self._ill, self._begun, self._error):
                    array[slot] = 0
                self._calibrating[:, slot] = np.nan
        self.owners = owners

    def read(self, frame: Frame) -> list[tuple[int, bool]]:
        """Take the latest frame in; which slots fell ill (True) or became well (False) with it."""
        self._follow()
        _, values = self.ring.window(self._window + 1)
        values = values[:, : len(self.owners), self.columns]
        flat = values.reshape(len(values), -1)
        self._readings = flat[-1].reshape(self._scores.shape).copy()
        gap_ns = frame.time_ns - self._last_ns if self._last_ns else 0
        if gap_ns > 0:
            self._period_ns = self._period_ns * 0.9 + gap_ns * 0.1 if self._period_ns else gap_ns
        self._last_ns = frame.time_ns
        if len(values) <= self._warm_up:
            return []
        # A part of the series each time: all at once would take milliseconds of the event loop.
        turn = slice(self._turn, None, self._every)
        self._turn = (self._turn + 1) % self._every
        past = flat[:-1, turn]
        center, scale = _baseline(past)
        center[(~np.isnan(past)).sum(axis=0) < self._warm_up] = np.nan
        self._center.reshape(-1)[turn], self._scale.reshape(-1)[turn] = center, scale
        self._scores = _scores(self._readings, self._center, self._scale)
        self._calibrate()
        return self._count(frame.time_ns, gap_ns)

    def _calibrate(self) -> None:
        learning = (self._counted < self._n) & ~np.isnan(self._scores)
        if learning.any():
            rows, columns = np.nonzero(learning)
            self._calibrating[self._counted[learning].astype(np.intp), rows, columns] = self._scores[learning]
            self._counted[learning] += 1
        rows, columns = np.nonzero(np.isnan(self._limit) & (self._counted >= self._n))
        if len(rows):
            rows, columns = rows[:AT_ONCE], columns[:AT_ONCE]
            quantiles = np.quantile(self._calibrating[:, rows, columns], 1 - 1 / self._n, axis=0)
            self._limit[rows, columns] = np.maximum(quantiles, LEAST)

    def in_a_row(self) -> int:
        """How many readings in a row must exceed, for the budget of false alarms."""
        readings_a_day = DAY_NS / max(self._period_ns, 1.0) * max(self._scores.size, 1)
        return max(1, math.ceil(math.log(self._budget / readings_a_day) / math.log(1 / self._n)))

    def _count(self, time_ns: int, gap_ns: int) -> list[tuple[int, bool]]:
        over = self._scores > self._limit
        begins = over & (self._run == 0)
        self._begun[begins], self._error[begins] = time_ns, gap_ns
        known = ~np.isnan(self._scores) & ~np.isnan(self._limit)
        self._run = np.where(known, np.where(over, self._run + 1, 0), self._run)
        self._calm = np.where(known, np.where(over, 0, self._calm + 1), self._calm)
        needed = self.in_a_row()
        before: npt.NDArray[np.bool_] = np.any(self._ill, axis=1)
        self._ill[self._run >= needed] = 1
        self._ill[self._calm >= needed] = 0
        after: npt.NDArray[np.bool_] = np.any(self._ill, axis=1)
        return [(int(slot), bool(after[slot])) for slot in np.nonzero(before != after)[0]]

    def onset(self, slot: int) -> tuple[int, int]:
        """When the first of the ill series left its range, and by how much earlier it may have been."""
        ill = np.nonzero(self._ill[slot])[0]
        first = ill[np.argmin(self._begun[slot, ill])]
        return int(self._begun[slot, first]), int(self._error[slot, first])

    def evidence(self, slot: int) -> tuple[dict[str, Value], float]:
        """The worst series of an entity, in numbers, and its score."""
        scores = np.where(np.isnan(self._scores[slot]), 0.0, self._scores[slot])
        if self._ill[slot].any():
            scores = np.where(self._ill[slot] > 0, scores, -1.0)
        worst = int(np.argmax(scores))
        score = float(max(scores[worst], 0.0))
        names = [self.ring.metrics[column] for column in self.columns]
        return {
            "sensor": self.ring.schema.sensor,
            "metric": names[worst],
            "value": float(self._readings[slot, worst]),
            "median": float(self._center[slot, worst]),
            "limit": float(self._limit[slot, worst]),
            "metrics": tuple(name for name, ill in zip(names, self._ill[slot], strict=True) if ill),
        }, score
