"""Bounds and quantiles of log2 histograms, against what sorting the times would say."""

from __future__ import annotations

import bisect
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapek.sensors.syscall_latency_histogram import BOUNDS_S, BUCKETS, EDGES_NS, bounds_ns, quantile


def histogram(times: list[int]) -> list[int]:
    counts = [0] * BUCKETS
    for time in times:
        counts[bisect.bisect_right(EDGES_NS, time)] += 1
    return counts


def test_the_buckets_cover_what_was_asked_for() -> None:
    assert EDGES_NS[0] == 128
    assert EDGES_NS[-1] == 1 << 35 > 30e9
    assert len(BOUNDS_S) == BUCKETS - 1
    assert BOUNDS_S[0] == 128e-9
    assert bounds_ns(0) == (0, 128)
    assert bounds_ns(BUCKETS - 1) == (1 << 35, math.inf)
    for bucket in range(BUCKETS - 1):
        assert bounds_ns(bucket)[1] == bounds_ns(bucket + 1)[0]


@pytest.mark.parametrize(
    ("times", "q", "wanted"),
    [
        ([], 0.5, (math.nan, math.nan)),
        ([5], 0.99, (0, 128)),
        ([127], 0, (0, 128)),
        ([128], 1, (128, 256)),
        ([200] * 99 + [1 << 20], 0.99, (128, 256)),
        ([200] * 98 + [1 << 20] * 2, 0.99, (1 << 20, 1 << 21)),
        ([200] * 7 + [1000] * 93, 0.07, (128, 256)),
        ([200] * 6 + [1000] * 94, 0.07, (512, 1024)),
        ([1 << 36], 0.5, (1 << 35, math.inf)),
    ],
)
def test_quantiles(times: list[int], q: float, wanted: tuple[float, float]) -> None:
    found = quantile(histogram(times), q)
    assert found == wanted or (math.isnan(wanted[0]) and math.isnan(found[0]) and math.isnan(found[1]))


@given(
    st.lists(st.integers(0, 1 << 37), min_size=1, max_size=200),
    st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0]),
)
def test_the_true_quantile_lies_in_the_bounds(times: list[int], q: float) -> None:
    low, high = quantile(histogram(times), q)
    true = sorted(times)[max(math.ceil(Fraction(str(q)) * len(times)), 1) - 1]
    assert low <= true < high
    assert low == 0 or math.isinf(high) or high == 2 * low


def test_counts_of_a_year_are_exact() -> None:
    counts = [0] * BUCKETS
    counts[3], counts[9] = 99 * 10**13, 10**13
    assert quantile(counts, 0.99) == bounds_ns(3)
    counts[3] -= 1
    assert quantile(counts, 0.99) == bounds_ns(9)


@pytest.mark.parametrize(("counts", "q"), [([1] * BUCKETS, 1.1), ([1] * BUCKETS, -0.1), ([1] * 5, 0.5)])
def test_nonsense_is_refused(counts: list[int], q: float) -> None:
    with pytest.raises(ValueError, match="not"):
        quantile(counts, q)
