"""Rows of arrays given to entities, and taken back: how a table of fixed size follows a set that changes.

A sensor's frames mostly name the same entities in the same order, so the answer for the last tuple is
kept; only when it changes is each entity looked up. The longest absent give their row to newcomers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mapek.model import Entity


class Slots:
    """Entities to row numbers below `limit`.

    Args:
        limit: how many rows there can be; entities beyond get -1 as long as all rows are in use.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.refused = 0
        self._of: dict[Entity, int] = {}
        self._entities: tuple[Entity, ...] | None = None
        self._rows: npt.NDArray[np.intp] = np.empty(0, np.intp)

    def __len__(self) -> int:
        return len(self._of)

    def get(self, entity: Entity) -> int | None:
        """The row of `entity`, if it has one."""
        return self._of.get(entity)

    def entities(self) -> tuple[Entity, ...]:
        """Whoever has a row, by row number."""
        return tuple(sorted(self._of, key=self._of.__getitem__))

    def rows(self, entities: tuple[Entity, ...]) -> tuple[npt.NDArray[np.intp], list[int]]:
        """The row of each entity (-1: none left), and the rows that are new or changed hands."""
        if entities is self._entities or entities == self._entities:
            return self._rows, []
        of, fresh, rows, refused = self._of, [], [], 0
        present = set(entities)
        for entity in entities:
            row = of.pop(entity, None)
            if row is None:
                row = self._free(present)
                if row is None:
                    refused += 1
                    rows.append(-1)
                    continue
                fresh.append(row)
            of[entity] = row  # at the end: the dict's order is that of the last presence
            rows.append(row)
        self._entities, self._rows, self.refused = entities, np.array(rows, np.intp), refused
        return self._rows, fresh

    def _free(self, present: set[Entity]) -> int | None:
        if len(self._of) < self.limit:
            return len(self._of)  # rows change hands but are never given back, so those in use are dense
        for entity in self._of:
            if entity not in present:
                return self._of.pop(entity)
        return None
