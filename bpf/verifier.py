"""Turns the verifier's log into the few lines that matter.

A log can be megabytes, of which a person needs the last complaint and the source line it is about. As in
cilium/ebpf, two small rules choose: drop the statistics at the end, then take the last line, and the ones
before it while it is a mere continuation.
"""

from __future__ import annotations

import re
from typing import Final

_STATISTICS: Final = re.compile(
    r"^(processed \d+ insns|verification time|stack depth|max_states|mark_read|-- (BEGIN|END) PROG LOAD LOG)"
)
_INSTRUCTION: Final = re.compile(r"^\d+: ")
_STATE: Final = re.compile(r"^(from \d+ to \d+|R\d+[=_w]|\d+: R\d|; R\d|last_idx|regs=|parent |frame\d+: )")


def summary(log: str, lines: int = 3) -> str:
    """The complaint of a verifier log and the source line before it, joined to one line; "" for an empty log.

    Args:
        log: the text as the kernel wrote it, NULs and statistics included.
        lines: at most so many lines are taken.
    """
    rows = [row.strip() for row in log.replace("\0", "").splitlines()]
    rows = [row for row in rows if row and not _STATISTICS.match(row)]
    if not rows:
        return ""
    picked = [rows[-1]]
    # "... or a helper call's second line": a complaint that starts with a blank or a bracket continues the
    # one before.
    for row in reversed(rows[:-1]):
        if len(picked) >= lines:
            break
        if _STATE.match(row):
            continue
        if row.startswith(";"):
            picked.append(f"at source line {row.lstrip('; ')!r}")
            break
        if _INSTRUCTION.match(row):
            if len(picked) == 1:
                picked.append(f"instruction {row}")
            continue
        if row[0].islower() or row[0] in "([":
            picked.append(row)
    return ", ".join(picked)
