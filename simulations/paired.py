"""What a paired A/B says: the median of the differences, its interval, and whether that decides anything.

Both halves of a pair meet the same minute of the machine, so differences within pairs are judged, not two medians.
The interval is by order statistics: which of the sorted differences bound the median follows from tosses of a coin,
so that it holds for any distribution, outliers included, and needs no chance of its own. It is exact for
independent pairs, and as a step of the count is, a little wider than it would have to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Verdict = Literal["more", "less", "none", "not measured"]
CONFIDENCE: Final = 0.95
FEWEST: Final = 6
"""Pairs below which no two of them bound the median with 95 %."""


def bounds(count: int, confidence: float = CONFIDENCE) -> int | None:
    """How many of `count` sorted values to leave out at either end; None if even all of them are too few.

    >>> bounds(5), bounds(6), bounds(30)
    (None, 0, 9)
    """
    most = (1 - confidence) / 2
    below, skipped = 0.0, -1
    for k in range(count // 2):
        # Chance that at most k of the values are below the median.
        below += comb(count, k) / 2**count
        if below > most:
            break
        skipped = k
    return skipped if skipped >= 0 else None


def median_interval(
    values: Sequence[float] | Floats, confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """The interval, by default of 95 %, of the median of what `values` are drawn from; None for too few."""
    skipped = bounds(len(values), confidence)
    if skipped is None:
        return None
    ordered = np.sort(np.asarray(values, np.float64))
    return float(ordered[skipped]), float(ordered[-1 - skipped])


@dataclass(frozen=True, slots=True)
class Comparison:
    """B beside A, in the unit of both.

    Args:
        a, b: their medians, and `a_spread`, `b_spread` their 5th and 95th percentiles.
        median: of the differences B - A within pairs.
        interval: of that median, with 95 %; None for too few pairs.
        decides: how narrow the interval must be, either side, to say that there is no difference.
    """

    pairs: int
    a: float
    b: float
    a_spread: tuple[float, float]
    b_spread: tuple[float, float]
    median: float
    interval: tuple[float, float] | None
    decides: float

    @property
    def verdict(self) -> Verdict:
        """ "more" or "less": the interval leaves out 0. "none": it holds 0, and nothing beyond `decides`."""
        if self.interval is None:
            return "not measured"
        low, high = self.interval
        if low > 0:
            return "more"
        if high < 0:
            return "less"
        return "none" if max(-low, high) <= self.decides else "not measured"

    @property
    def difference(self) -> float | None:
        """The median where it is more than noise, else None."""
        return self.median if self.verdict in ("more", "less") else None


def compare(a: Sequence[float], b: Sequence[float], decides: float) -> Comparison:
    """Judge pairs; `decides` is a share of A's median.

    Raises ValueError when there is no pair, or one has no partner.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} are no pairs")
    middle = float(np.median(first))
    return Comparison(
        len(first),
        middle,
        float(np.median(second)),
        _spread(first),
        _spread(second),
        float(np.median(second - first)),
        median_interval(second - first),
        abs(middle) * decides,
    )


def _spread(values: Floats) -> tuple[float, float]:
    low, high = np.percentile(values, (5, 95))
    return float(low), float(high)
