"""Who of many has a row of its own in a frame, and what is left for the remainder.

Rows go to the busiest and are kept: what has a row keeps it as long as it is counted, and what gets one later begins
there without what the remainder was already told of it, for that stays in the remainder. So no counter ever goes
backwards. All is done on whole columns: the many may be tens of thousands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.uint64]
Keys = npt.NDArray[np.uint64]
Places = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Sought:
    """Keys in order; worth keeping, for a table has mostly the same keys each time."""

    keys: Keys
    order: Places

    @classmethod
    def among(cls, keys: Keys, former: Sought | None = None) -> Sought:
        """`former` itself where it has the same keys."""
        if former is not None and np.array_equal(keys, former.keys):
            return former
        return cls(keys, np.argsort(keys))

    def places(self, wanted: Keys) -> tuple[Places, Mask]:
        """For each of `wanted` its place among the keys, and whether it is there at all."""
        if not len(self.keys):
            return np.zeros(len(wanted), np.intp), np.zeros(len(wanted), np.bool_)
        at = self.order[np.searchsorted(self.keys, wanted, sorter=self.order).clip(max=len(self.keys) - 1)]
        return at, self.keys[at] == wanted


class TopRows:
    """At most `limit` rows of `columns` counters, of which the first says who is busiest.

    `keys` and `base` belong together row by row; `base` is what the remainder had of each when it got its row, `gone`
    what the remainder has of those that are counted no more, modulo 2^64: it may be less than nothing on its way.
    """

    def __init__(self, limit: int, columns: int) -> None:
        self.limit = limit
        self.keys: Keys = np.zeros(0, np.uint64)
        self.base: Counts = np.zeros((0, columns), np.uint64)
        self.gone: Counts = np.zeros(columns, np.uint64)

    def admit(self, found: Sought, counts: Counts, told: Callable[[Places], Counts]) -> Places:
        """Give what is free to those that counted most and have no row; returns their places, in the order of the rows.

        Args:
            counts: (n, columns), of each key.
            told: what the remainder was told of those at some places until now.
        """
        free = self.limit - len(self.keys)
        if free <= 0 or not len(found.keys):
            return np.zeros(0, np.intp)
        waiting = counts[:, 0] > 0
        at, there = found.places(self.keys)
        waiting[at[there]] = False
        new = np.flatnonzero(waiting)
        if len(new):
            new = new[np.lexsort((found.keys[new], ~counts[new, 0]))][:free]
            self.keys = np.concatenate([self.keys, found.keys[new]])
            self.base = np.concatenate([self.base, told(new)])
        return new

    def leave(self, rows: Mask) -> None:
        """These rows are counted no more, and their keys have none; the remainder keeps what it had of them."""
        self.gone = self.gone + self.base[rows].sum(axis=0, dtype=np.uint64)
        self.keys, self.base = self.keys[~rows], self.base[~rows]
