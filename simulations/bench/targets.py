"""What was measured beside what was promised: rows, their verdicts, and the table that people read.

Every target is "at most"; a count of what must not happen has the target 0. What could not be measured is
said and never counts as met.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from mapek.simulations.report import Json

Verdict = Literal["met", "missed", "not measured", ""]


@dataclass(frozen=True, slots=True)
class Row:
    """One number.

    Args:
        what: what it is a number of.
        measured: None when it could not be measured; `note` then says why.
        unit: of both numbers.
        target: what it should not exceed; None for a number that is stated only.
        note: what else one should know.
    """

    what: str
    measured: float | None
    unit: str = ""
    target: float | None = None
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """ "" where nothing was promised.

        >>> [Row("outage", value, "ms", 3.0).verdict for value in (2.9, 3.1, None)]
        ['met', 'missed', 'not measured']
        """
        if self.measured is None:
            return "not measured"
        if self.target is None:
            return ""
        return "met" if self.measured <= self.target else "missed"

    def json(self) -> Mapping[str, Json]:
        """As the section's file has it."""
        return {
            "what": self.what,
            "measured": self.measured,
            "unit": self.unit,
            "target": self.target,
            "verdict": self.verdict,
            "note": self.note,
        }


def number(value: float | None) -> str:
    """Three significant digits, and no fewer than all of the whole ones."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def rows_table(title: str, rows: Iterable[Row]) -> str:
    """A line for each row: what, measured, target, verdict, note."""
    cells = [(title, "measured", "at most", "", "")]
    for row in rows:
        unit = f" {row.unit}" if row.unit else ""
        target = "" if row.target is None else f"{number(row.target)}{unit}"
        cells.append((f"  {row.what}", f"{number(row.measured)}{unit}", target, row.verdict, row.note))
    widths = [max(len(line[i]) for line in cells) for i in range(4)]
    return "\n".join(
        "  ".join((*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[4])).rstrip()
        for line in cells
    )
