"""Which identities have a row of their own in a frame: the rows of `top_rows`, by number, between the store's readings.

A number that is registered anew counts from zero in the kernel: nothing of its former life is told of it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from mapek.sensors.top_rows import Counts, Sought, TopRows

COLUMNS: Final = 4


class Rows:
    """At most `limit` rows beside that of the remainder."""

    def __init__(self, limit: int) -> None:
        self._top = TopRows(limit, COLUMNS)
        self._found = Sought.among(np.zeros(0, np.uint64))
        self._sums: Counts = np.zeros((0, COLUMNS), np.uint64)
        self._dropped: set[int] = set()
        """Since the last reading."""

    def take(self, numbers: npt.NDArray[np.uint32], sums: Counts) -> tuple[list[int], Counts]:
        """The numbers that have a row, and the rows' values (n + 1, 4): theirs, and at the end the remainder's."""
        top, found = self._top, Sought.among(numbers.astype(np.uint64), self._found)
        top.admit(found, sums, lambda new: self._told(found.keys[new]))
        at, there = found.places(top.keys)
        own = top.keys[there].tolist()
        values = np.zeros((len(own) + 1, COLUMNS), np.uint64)
        values[:-1] = sums[at[there]] - top.base[there]
        values[-1] = top.gone + sums.sum(axis=0) - values[:-1].sum(axis=0)
        self._found, self._sums = found, sums
        self._dropped.clear()
        return own, values

    def drop(self, number: int, last: Counts) -> None:
        """The kernel counts `number` no more; `last` (4,) is what it had."""
        having = self._top.keys == number
        if having.any():
            self._top.leave(having)
        else:
            self._top.gone = self._top.gone + last
        self._dropped.add(number)

    def _told(self, keys: npt.NDArray[np.uint64]) -> Counts:
        at, there = self._found.places(keys)
        there &= ~np.isin(keys, list(self._dropped))
        told = np.zeros((len(keys), COLUMNS), np.uint64)
        told[there] = self._sums[at[there]]
        return told
