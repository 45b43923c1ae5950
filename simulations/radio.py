"""Loss on a simulated link, per direction, sampled by its gaps: an hour without loss costs nothing.

Losses are independent (Bernoulli) or come in bursts (Gilbert 1960, Elliott 1963: a good and a bad state with
exponential dwell times, each losing at its own rate). What the model leaves out: delay does not vary, and
the traffic on a link does not change its loss.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

FOREVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Loss:
    """How a direction loses packets.

    Args:
        rate: share lost (in the good state, if there is a bad one), 0 to 1.
        bad_rate: share lost in the bad state.
        good_s, bad_s: mean dwell times in seconds; 0: there is no bad state.
    """

    rate: float = 0.0
    bad_rate: float = 0.0
    good_s: float = 0.0
    bad_s: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.rate <= 1 and 0 <= self.bad_rate <= 1 and self.good_s >= 0 and self.bad_s >= 0):
            raise ValueError(f"{self} is no loss: rates are 0 to 1, times not negative")
        if (self.good_s > 0) != (self.bad_s > 0):
            raise ValueError(f"{self} has only one of two dwell times")

    @property
    def mean(self) -> float:
        """Share lost in the long run."""
        if not self.bad_s:
            return self.rate
        return (self.rate * self.good_s + self.bad_rate * self.bad_s) / (self.good_s + self.bad_s)


class Uniforms:
    """Uniform numbers in (0, 1], drawn from a numpy generator in blocks, 20 times as fast as one by one."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator
        self._block: list[float] = []

    def __call__(self) -> float:
        """The next one."""
        if not self._block:
            self._block = (1.0 - self._generator.random(4096)).tolist()
        return self._block.pop()


class Direction:
    """One direction of a link. Times are asked for in any order above `forget`.

    Attributes:
        silent: everything is lost.
    """

    def __init__(self, loss: Loss, uniform: Uniforms) -> None:
        self._uniform = uniform
        self.silent = False
        self.change(loss, 0)

    def change(self, loss: Loss, now_ns: int) -> None:
        """From `now_ns` on lose as `loss` says."""
        self.loss = loss
        self._bad = bool(loss.bad_s) and self._uniform() < loss.bad_s / (loss.good_s + loss.bad_s)
        self._dwells: deque[tuple[int, float]] = deque()
        self._end_ns = now_ns

    def at(self, time_ns: int) -> tuple[float, int]:
        """Share lost at `time_ns`, and until when that holds."""
        if self.silent:
            return 1.0, FOREVER
        if not self.loss.bad_s:
            return self.loss.rate, FOREVER
        while not self._dwells or self._dwells[-1][0] <= time_ns:
            mean_s = self.loss.bad_s if self._bad else self.loss.good_s
            self._end_ns += 1 + int(-math.log(self._uniform()) * mean_s * 1e9)
            self._dwells.append((self._end_ns, self.loss.bad_rate if self._bad else self.loss.rate))
            self._bad = not self._bad
        return next((rate, end) for end, rate in self._dwells if end > time_ns)

    def forget(self, before_ns: int) -> None:
        """Nobody will ask for a time before this any more."""
        while len(self._dwells) > 1 and self._dwells[0][0] <= before_ns:
            self._dwells.popleft()


class Link:
    """Both directions: a probe comes back if neither loses it."""

    def __init__(self, forward: Loss, backward: Loss, uniform: Uniforms) -> None:
        self.forward, self.backward = Direction(forward, uniform), Direction(backward, uniform)
        self._uniform = uniform

    def next_lost(self, start_ns: int, interval_ns: int, first: int) -> int:
        """The first k >= `first` such that the probe of `start_ns + k * interval_ns` does not come back."""
        k = first
        while True:
            time_ns = start_ns + k * interval_ns
            if time_ns >= FOREVER:
                return k
            forth, until_forth = self.forward.at(time_ns)
            back, until_back = self.backward.at(time_ns)
            until = min(until_forth, until_back)
            share = 1.0 - (1.0 - forth) * (1.0 - back)
            end = k + -(-(until - time_ns) // interval_ns)
            if share >= 1.0:
                return k
            if share > 0.0:
                lost = k + int(math.log(self._uniform()) / math.log1p(-share))
                if lost < end:
                    return lost
            k = end

    def lost_of(self, count: int, time_ns: int) -> list[int]:
        """Which of `count` probes that are sent at `time_ns` do not come back, numbered from 0."""
        forth, back = self.forward.at(time_ns)[0], self.backward.at(time_ns)[0]
        share = 1.0 - (1.0 - forth) * (1.0 - back)
        if share >= 1.0:
            return list(range(count))
        lost: list[int] = []
        k = -1
        while share > 0.0:
            k += 1 + int(math.log(self._uniform()) / math.log1p(-share))
            if k >= count:
                break
            lost.append(k)
        return lost

    def lost_forth(self, time_ns: int) -> bool:
        """Was a probe that did not come back lost on the way there?"""
        forth, back = self.forward.at(time_ns)[0], self.backward.at(time_ns)[0]
        return self._uniform() * (1.0 - (1.0 - forth) * (1.0 - back)) <= forth

    def forget(self, before_ns: int) -> None:
        """As `Direction.forget`."""
        self.forward.forget(before_ns)
        self.backward.forget(before_ns)
