"""Does this path lose more than that one? Sequential tests with a stated budget of false alarms.

Both tests are e-detectors (Shin, Ramdas, Rinaldo: "E-detectors: a nonparametric framework for sequential
change detection", 2022) of the CUSUM kind: evidence multiplies, never falls below one, and alarms at
`1/alpha`; then the mean number of updates to a false alarm is at least `1/alpha`, whatever the losses are,
as long as this path loses no more than the other and the other was not chosen by the counts in hand.
They compare what happened at the same time, so loss that befalls both paths, however sudden, is no evidence.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Final

ODDS: Final = (2.0, 6.0, 40.0)
"""Alternatives that are mixed: by how much the odds of loss differ."""

CAP: Final = 4.0
"""Most evidence of one burst, in nats: losses within a burst are not independent on a real radio."""


def prepare(sent: int) -> None:
    """Fill the table for bursts of `sent` probes: 0.1 ms an entry is too slow for the moment of a verdict."""
    for here in range(sent + 1):
        for there in range(sent + 1):
            for odds in ODDS:
                burst_evidence(here, sent, there, sent, odds)


@cache
def burst_evidence(here: int, sent_here: int, there: int, sent_there: int, odds: float) -> float:
    """log likelihood ratio of `here` missing of `sent_here`, given how many are missing in all.

    Given their sum, the number missing here is hypergeometric if both paths lose alike, and Fisher's
    noncentral hypergeometric if the odds differ, so the loss rate itself drops out and the ratio is exact.
    """
    missing = here + there
    low, high = max(0, missing - sent_there), min(missing, sent_here)
    weights = {
        k: math.log(math.comb(sent_here, k)) + math.log(math.comb(sent_there, missing - k))
        for k in range(low, high + 1)
    }

    def log_probability(bias: float) -> float:
        terms = [weight + k * math.log(bias) for k, weight in weights.items()]
        top = max(terms)
        total = top + math.log(sum(math.exp(term - top) for term in terms))
        return weights[here] + here * math.log(bias) - total

    return min(log_probability(odds) - log_probability(1.0), CAP)


class BurstTest:
    """Paired bursts on two paths, for losses of a few percent and more.

    >>> test = BurstTest(alpha=1e-9)
    >>> sum(not test.update(4, 8, 0, 8) for _ in range(20))  # bursts before the alarm
    7
    """

    def __init__(self, alpha: float) -> None:
        self._limit = -math.log(alpha)
        self._wealth = [0.0] * len(ODDS)

    @property
    def evidence(self) -> float:
        """In nats; the alarm is at -log(alpha)."""
        return _mean(self._wealth)

    def update(self, here: int, sent_here: int, there: int, sent_there: int) -> bool:
        """Take a burst in; True when this path loses more."""
        if here + there and sent_here and sent_there:
            self._wealth = [
                max(wealth, 0.0) + burst_evidence(here, sent_here, there, sent_there, odds)
                for wealth, odds in zip(self._wealth, ODDS, strict=True)
            ]
        return self.evidence >= self._limit

    def reset(self) -> None:
        """Forget all evidence."""
        self._wealth = [0.0] * len(ODDS)


class SlowTest:
    """Steady probes over minutes, for losses too small for bursts.

    It alarms when this path loses more than `ratio` times what the other does, and more than `floor`: both
    must be shown, each to `alpha`.

    Args:
        floor: share of probes lost that is not worth a switch.
        ratio: how much worse the other path's loss may be made to look by chance or by design.
    """

    RATES: Final = (3.0, 10.0)

    def __init__(self, alpha: float, floor: float = 0.003, ratio: float = 2.0) -> None:
        self._limit = -math.log(alpha)
        self._floor, self._ratio = floor, ratio
        self._paired = [0.0] * len(ODDS)
        self._above = [0.0] * len(self.RATES)

    @property
    def evidence(self) -> float:
        """That of the weaker half, in nats; the alarm is at -log(alpha)."""
        return min(_mean(self._paired), _mean(self._above))

    def update(self, here: int, sent_here: int, there: int, sent_there: int) -> bool:
        """Take a second's counts in; True when this path loses more."""
        if min(sent_here, sent_there) <= 0:
            return False
        null = self._ratio * sent_here / (self._ratio * sent_here + sent_there)
        for index, odds in enumerate(ODDS):
            biased = odds * self._ratio * sent_here / (odds * self._ratio * sent_here + sent_there)
            gain = here * math.log(biased / null) + there * math.log((1 - biased) / (1 - null))
            self._paired[index] = max(self._paired[index], 0.0) + gain
        for index, rate in enumerate(self.RATES):
            share = min(rate * self._floor, 0.5)
            gain = here * math.log(share / self._floor)
            gain += (sent_here - here) * math.log((1 - share) / (1 - self._floor))
            self._above[index] = max(self._above[index], 0.0) + gain
        return self.evidence >= self._limit

    def reset(self) -> None:
        """Forget all evidence."""
        self._paired = [0.0] * len(ODDS)
        self._above = [0.0] * len(self.RATES)


def _mean(logs: list[float]) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(value - top) for value in logs) / len(logs))
