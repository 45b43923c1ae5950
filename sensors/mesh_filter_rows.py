"""Which identities have a row of their own in a frame, and what is left for the rest.

Rows go to the busiest and are kept: what has a row keeps it as long as the kernel counts it, and what gets one later
begins at zero there, for what it did before is in the remainder and stays there. So no counter ever goes backwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.uint64]
COLUMNS: Final = 4


@dataclass(slots=True)
class Rows:
    """At most `limit` rows beside that of the remainder."""

    limit: int
    _base: dict[int, Counts] = field(default_factory=dict)
    """By number, what the remainder already had of it when it got its row."""
    _gone: Counts = field(default_factory=lambda: np.zeros(COLUMNS, np.uint64))
    """What the remainder has of those that are counted no more."""
    _before: tuple[dict[int, int], Counts] = field(
        default_factory=lambda: ({}, np.zeros((0, COLUMNS), np.uint64))
    )

    def take(self, numbers: npt.NDArray[np.uint32], sums: Counts) -> tuple[list[int], Counts]:
        """The numbers that have a row, and the rows' values (n + 1, 4): theirs, and at the end the remainder's."""
        at = {number: index for index, number in enumerate(numbers.tolist())}
        if len(self._base) < self.limit:
            self._promote(at, sums)
        own = [number for number in self._base if number in at]
        index = [at[number] for number in own]
        values = np.zeros((len(own) + 1, COLUMNS), np.uint64)
        if own:
            values[:-1] = sums[index] - np.stack([self._base[number] for number in own])
        values[-1] = self._gone + sums.sum(axis=0) - values[:-1].sum(axis=0)
        self._before = at, sums
        return own, values

    def drop(self, number: int, last: Counts) -> None:
        """The kernel counts `number` no more; `last` (4,) is what it had."""
        self._gone = self._gone + self._base.pop(number, last)
        self._before[0].pop(number, None)

    def _promote(self, at: dict[int, int], sums: Counts) -> None:
        waiting = [number for number, index in at.items() if number not in self._base and sums[index, 0]]
        waiting.sort(key=lambda number: int(sums[at[number], 0]), reverse=True)
        before_at, before = self._before
        for number in waiting[: self.limit - len(self._base)]:
            known = before_at.get(number)
            self._base[number] = np.zeros(COLUMNS, np.uint64) if known is None else before[known].copy()
