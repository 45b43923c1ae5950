"""The tests of loss keep their budget of false alarms, whatever the loss, and find what differs.

Budgets are checked by simulation with a seeded generator and a large alpha: the mean number of updates to a
false alarm must be at least 1/alpha. That of a real run, one a month, would take a month.
"""

import math

import numpy as np
import pytest

from mapek.analyzers.sequential import CAP, ODDS, BurstTest, SlowTest, burst_evidence, prepare


def mean_run(test, draw, runs, longest):
    """Mean updates to an alarm, at most `longest` each, and its standard error."""
    lengths = []
    for _ in range(runs):
        test.reset()
        length = 1
        while not test.update(*draw()) and length < longest:
            length += 1
        lengths.append(length)
    return float(np.mean(lengths)), float(np.std(lengths) / math.sqrt(runs))


@pytest.mark.parametrize("loss", [0.001, 0.01, 0.05, 0.2, 0.5, 0.9])
def test_equal_loss_keeps_the_budget_of_the_burst_test(loss):
    rng, alpha = np.random.default_rng(1), 0.02

    def draw():
        here, there = rng.binomial(8, loss, 2)
        return int(here), 8, int(there), 8

    mean, error = mean_run(BurstTest(alpha), draw, 60, 400)
    assert mean + 3 * error >= 1 / alpha


@pytest.mark.parametrize("other", [0.1, 0.5])
def test_less_loss_here_than_there_keeps_it_all_the_more(other):
    rng, alpha = np.random.default_rng(2), 0.02

    def draw():
        return int(rng.binomial(8, 0.05)), 8, int(rng.binomial(9, other)), 9

    mean, error = mean_run(BurstTest(alpha), draw, 40, 400)
    assert mean + 3 * error >= 1 / alpha


@pytest.mark.parametrize("rivals", [2, 4])
def test_a_rival_chosen_beforehand_keeps_it_and_the_luckiest_afterwards_would_not(rivals):
    """Why path_health goes by what the others lost before, not by what they lose now."""
    alpha = 0.02

    def draw(choose):
        rng = np.random.default_rng(3)

        def one():
            here, *others = (int(k) for k in rng.binomial(8, 0.3, 1 + rivals))
            return here, 8, choose(others), 8

        return one

    kept, error = mean_run(BurstTest(alpha), draw(lambda others: others[0]), 60, 400)
    assert kept + 3 * error >= 1 / alpha
    broken, error = mean_run(BurstTest(alpha), draw(min), 60, 400)
    assert broken + 3 * error < 1 / alpha


@pytest.mark.parametrize(
    ("loss", "other", "most"), [(0.5, 0.0, 8), (0.3, 0.0, 14), (0.1, 0.0, 50), (0.3, 0.05, 25)]
)
def test_the_burst_test_finds_what_differs(loss, other, most):
    rng = np.random.default_rng(4)

    def draw():
        return int(rng.binomial(8, loss)), 8, int(rng.binomial(8, other)), 8

    mean, _ = mean_run(BurstTest(2e-10), draw, 40, 1000)
    assert mean < most


@pytest.mark.parametrize("sent", [(8, 8), (9, 8), (4, 8), (1, 1)])
@pytest.mark.parametrize("odds", ODDS)
def test_the_evidence_of_a_burst_is_a_likelihood_ratio(sent, odds):
    """Averaged over what equal loss does, it is one, or less where the cap cuts it."""
    here, there = sent
    for missing in range(here + there + 1):
        ways = {
            k: math.comb(here, k) * math.comb(there, missing - k)
            for k in range(max(0, missing - there), min(missing, here) + 1)
        }
        ratios = {k: math.exp(burst_evidence(k, here, missing - k, there, odds)) for k in ways}
        mean = sum(ways[k] * ratio for k, ratio in ratios.items()) / sum(ways.values())
        assert mean <= 1 + 1e-9
        if max(ratios.values()) < math.exp(CAP) - 1e-6:
            assert mean == pytest.approx(1)


@pytest.mark.parametrize(
    ("update", "evidence"),
    [((0, 8, 0, 8), 0.0), ((3, 8, 0, 0), 0.0), ((0, 0, 3, 8), 0.0)],
    ids=["nothing missing", "nothing sent there", "nothing sent here"],
)
def test_what_says_nothing_is_no_evidence(update, evidence):
    test = BurstTest(0.1)
    assert not test.update(*update)
    assert test.evidence == evidence


def test_evidence_grows_with_loss_here_falls_with_loss_there_and_never_below_the_last_burst():
    test = BurstTest(1e-9)
    test.update(3, 8, 0, 8)
    assert test.evidence > 1
    for _ in range(50):
        test.update(0, 8, 8, 8)
    low = test.evidence
    test.update(0, 8, 8, 8)
    assert test.evidence == pytest.approx(low)  # it forgets: one burst against is as bad as a hundred
    test.reset()
    assert test.evidence == 0


def test_the_table_is_filled_beforehand():
    prepare(8)
    before = burst_evidence.cache_info().misses
    test = BurstTest(1e-9)
    for here in range(9):
        for there in range(9):
            test.update(here, 8, there, 8)
    assert burst_evidence.cache_info().misses == before


@pytest.mark.parametrize("loss", [0.0005, 0.003, 0.02, 0.1, 0.4])
def test_equal_loss_keeps_the_budget_of_the_slow_test(loss):
    rng, alpha = np.random.default_rng(5), 0.02

    def draw():
        here, there = rng.binomial(100, loss, 2)
        return int(here), 100, int(there), 100

    mean, error = mean_run(SlowTest(alpha), draw, 40, 400)
    assert mean + 3 * error >= 1 / alpha


def test_twice_the_loss_is_still_within_the_budget_of_the_slow_test():
    rng, alpha = np.random.default_rng(6), 0.02

    def draw():
        return int(rng.binomial(100, 0.06)), 100, int(rng.binomial(100, 0.03)), 100

    mean, error = mean_run(SlowTest(alpha), draw, 40, 400)
    assert mean + 3 * error >= 1 / alpha


def test_a_loss_below_the_floor_is_let_pass_whatever_the_other_path_loses():
    rng, alpha = np.random.default_rng(7), 0.02

    def draw():
        return int(rng.binomial(1000, 0.0025)), 1000, 0, 1000

    mean, error = mean_run(SlowTest(alpha, floor=0.003), draw, 40, 400)
    assert mean + 3 * error >= 1 / alpha


@pytest.mark.parametrize(("loss", "other", "most_s"), [(0.02, 0.0, 60), (0.05, 0.01, 60), (0.01, 0.0, 200)])
def test_the_slow_test_finds_what_bursts_do_not(loss, other, most_s):
    rng = np.random.default_rng(8)

    def draw():
        return int(rng.binomial(100, loss)), 100, int(rng.binomial(100, other)), 100

    mean, _ = mean_run(SlowTest(1 / (30 * 86_400)), draw, 20, 2000)
    assert mean < most_s


def test_the_slow_test_needs_both_paths():
    test = SlowTest(0.5)
    assert not any(test.update(100, 100, 0, 0) for _ in range(100))
    assert test.evidence == 0
