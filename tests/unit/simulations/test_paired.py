"""The interval of a median: its bounds as tables of the sign test have them, and how often it holds the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mapek.simulations.paired import FEWEST, bounds, compare, median_interval


@pytest.mark.parametrize(
    # Values left out at either end for 95 % two-sided, as printed in tables of the sign test.
    ("count", "skipped"),
    [
        (1, None),
        (5, None),
        (6, 0),
        (8, 0),
        (9, 1),
        (11, 1),
        (12, 2),
        (20, 5),
        (25, 7),
        (30, 9),
        (50, 17),
        (100, 39),
    ],
)
def test_bounds_are_those_of_the_sign_test(count, skipped):
    assert bounds(count) == skipped
    assert (bounds(count) is None) == (count < FEWEST)


def test_the_interval_is_two_of_the_values():
    values = [float(value) for value in range(1, 21)]
    assert median_interval(list(reversed(values))) == (6.0, 15.0)
    assert median_interval(values[:5]) is None


@pytest.mark.parametrize("count", [12, 25, 60])
@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda chance, shape: chance.normal(3.0, 1.0, shape), 3.0),
        (lambda chance, shape: chance.exponential(1.0, shape), math.log(2)),
        (lambda chance, shape: chance.standard_cauchy(shape), 0.0),
        # Two speeds of one machine, and a stall now and then.
        (lambda chance, shape: chance.choice([-1.0, 1.0], shape) + chance.normal(0, 1, shape), 0.0),
    ],
    ids=["normal", "skewed", "without a mean", "two humps"],
)
def test_it_holds_the_truth_as_often_as_it_says(draw, truth, count):
    trials = 3000
    skipped = bounds(count)
    exact = 1 - 2 * sum(math.comb(count, k) for k in range(skipped + 1)) / 2**count
    assert exact >= 0.95
    samples = draw(np.random.default_rng(7), (trials, count))
    intervals = [median_interval(one) for one in samples]
    covered = sum(low <= truth <= high for low, high in intervals) / trials
    # Four standard deviations of a count.
    assert abs(covered - exact) < 4 * math.sqrt(exact * (1 - exact) / trials)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([5.0] * 12, "more"),
        ([-5.0] * 12, "less"),
        ([-0.5, 0.5] * 6, "none"),
        ([-5.0, 5.0] * 6, "not measured"),
        ([5.0] * 5, "not measured"),
        # One outlier decides nothing, and spoils nothing.
        ([5.0] * 11 + [-9e9], "more"),
        ([0.0] * 12, "none"),
    ],
)
def test_a_number_is_told_where_the_interval_leaves_out_nothing(differences, verdict):
    base = [100.0] * len(differences)
    found = compare(base, [a + d for a, d in zip(base, differences, strict=True)], 0.01)
    assert found.verdict == verdict
    assert (found.difference is None) == (verdict in ("none", "not measured"))
    assert found.decides == 1.0
    assert found.pairs == len(differences)


def test_like_and_like_differ_in_one_of_twenty_at_most():
    chance, decided = np.random.default_rng(3), 0
    for _ in range(1000):
        a, b = chance.exponential(10.0, (2, 30))
        decided += compare(a, b, 0.0).verdict in ("more", "less")
    assert decided <= 50 + 4 * math.sqrt(1000 * 0.05 * 0.95)


def test_what_both_halves_of_a_pair_meet_is_not_in_the_difference():
    # The machine gets slower all the while, by far more than what is looked for.
    drift = np.linspace(0, 1000, 30)
    noise = np.random.default_rng(1).normal(0, 1.0, (2, 30))
    found = compare(1000 + drift + noise[0], 1003 + drift + noise[1], 0.01)
    assert found.verdict == "more"
    assert found.interval[0] < 3.0 < found.interval[1]


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0])])
def test_no_pairs_are_refused(a, b):
    with pytest.raises(ValueError, match="are no pairs"):
        compare(a, b, 0.01)
