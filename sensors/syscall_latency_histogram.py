"""Reads latencies off log2 histograms: exact bounds and no interpolation, which would claim what nobody measured."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

BUCKETS: Final = 30
FIRST_NS: Final = 128
EDGES_NS: Final = tuple(FIRST_NS << k for k in range(BUCKETS - 1))
"""Where one bucket ends and the next begins: bucket 0 is below 128 ns, bucket k is EDGES_NS[k - 1] <= t <
EDGES_NS[k], the last one is all from 2**35 ns (34 s)."""

BOUNDS_S: Final = tuple(edge / 1e9 for edge in EDGES_NS)
"""The same in seconds, as a Metric's bounds. A call of exactly so many ns is in the bucket above."""


def bounds_ns(bucket: int) -> tuple[float, float]:
    """(low, high) of a bucket: low <= t < high, high is inf for the last.

    >>> bounds_ns(0), bounds_ns(1), bounds_ns(29)
    ((0, 128), (128, 256), (34359738368, inf))
    """
    low = EDGES_NS[bucket - 1] if bucket else 0
    return low, EDGES_NS[bucket] if bucket < BUCKETS - 1 else math.inf


@cache
def _exact(q: float) -> Fraction:
    # as written in decimal: 0.07 * 100 is 7.000000000000001 in binary, and would be the 8th
    return Fraction(str(q))


def quantile(counts: npt.ArrayLike, q: float) -> tuple[float, float]:
    """Between which times, in ns, the `q`-quantile lies: low <= t < high; (nan, nan) when nothing was counted.

    The quantile is that call of n that is ceil(q * n)-th by time, at least the first (nearest rank). So the true
    value is in the bounds for certain, and a bound is wrong by less than a factor of two, but for the first and
    the last bucket.

    Args:
        counts: calls per bucket, BUCKETS of them.
        q: from 0 to 1.

    >>> counts = [0] * BUCKETS
    >>> counts[1], counts[10] = 98, 2
    >>> quantile(counts, 0.5), quantile(counts, 0.99)
    ((128, 256), (65536, 131072))
    """
    if not 0 <= q <= 1:
        raise ValueError(f"quantile {q} is not between 0 and 1")
    cumulated = np.cumsum(np.asarray(counts, dtype=np.uint64))
    if len(cumulated) != BUCKETS:
        raise ValueError(f"{len(cumulated)} buckets, not {BUCKETS}")
    total = int(cumulated[-1])
    if not total:
        return math.nan, math.nan
    rank = max(math.ceil(_exact(q) * total), 1)
    return bounds_ns(int(np.searchsorted(cumulated, rank)))
