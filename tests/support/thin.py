"""Fewer rows of long tables, for machines where each costs half a second.

MAPEK_ROWS=n keeps n rows of each parametrized test, spread evenly, so that each of a few variants stays.
MAPEK_ROWS=k/n keeps one of these n, the one at place k from 0: so n machines, each with another k, see them all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

Row = TypeVar("Row")


def rows() -> tuple[int, int | None]:
    """How many rows of a table to keep, 0 for all, and which one of them if only one."""
    place, _, keep = (os.environ.get("MAPEK_ROWS") or "0").rpartition("/")
    return int(keep), int(place) if place else None


def spread(found: Sequence[Row], keep: int, place: int | None = None) -> list[Row]:
    """`keep` of the rows, the first and the last among them; all where there are no more, or `keep` is 0.

    With `place` only the one there; where there are fewer rows, places share them.
    """
    if not 0 < keep < len(found):
        chosen = list(found)
    elif keep == 1:
        chosen = [found[0]]
    else:
        chosen = [found[position * (len(found) - 1) // (keep - 1)] for position in range(keep)]
    return chosen if place is None else [chosen[place % len(chosen)]]


def thinned(
    found: Sequence[Row],
    table: Callable[[Row], str],
    keep: tuple[int, int | None],
    runs: Callable[[Row], bool] = lambda row: True,
) -> tuple[list[Row], list[Row]]:
    """(kept, left out), in order; rows with the same `table` belong together. Those that run here come first."""
    tables: dict[str, list[Row]] = {}
    for row in found:
        tables.setdefault(table(row), []).append(row)

    def able(rows: list[Row]) -> list[Row]:
        return [row for row in rows if runs(row)] or rows

    chosen = {id(row) for one in tables.values() for row in spread(able(one), *keep)}
    return [row for row in found if id(row) in chosen], [row for row in found if id(row) not in chosen]
