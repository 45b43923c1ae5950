"""Fewer rows of long tables, for machines where each costs half a second.

What a table checks is our arithmetic, which no kernel changes; what a kernel changes, the verifier and the
helpers, shows in a few rows. MAPEK_ROWS=n keeps n of each parametrized test, spread evenly over its rows, so
that each of a few variants stays.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

Row = TypeVar("Row")


def rows() -> int:
    """How many rows of a table to keep; 0 keeps all."""
    return int(os.environ.get("MAPEK_ROWS") or 0)


def spread(found: Sequence[Row], keep: int) -> list[Row]:
    """`keep` of the rows, the first and the last among them; all where there are no more, or `keep` is 0."""
    if not 0 < keep < len(found):
        return list(found)
    if keep == 1:
        return [found[0]]
    return [found[position * (len(found) - 1) // (keep - 1)] for position in range(keep)]


def thinned(
    found: Sequence[Row],
    table: Callable[[Row], str],
    keep: int,
    runs: Callable[[Row], bool] = lambda row: True,
) -> tuple[list[Row], list[Row]]:
    """(kept, left out), in order; rows with the same `table` belong together. Those that run here come first."""
    tables: dict[str, list[Row]] = {}
    for row in found:
        tables.setdefault(table(row), []).append(row)

    def able(rows: list[Row]) -> list[Row]:
        return [row for row in rows if runs(row)] or rows

    chosen = {id(row) for one in tables.values() for row in spread(able(one), keep)}
    return [row for row in found if id(row) in chosen], [row for row in found if id(row) not in chosen]
