"""The file system of pins: where it is, and what is mounted there."""

from __future__ import annotations

from pathlib import Path
from typing import Final

BPFFS: Final = Path("/sys/fs/bpf")
OURS: Final = BPFFS / "mapek"
"""All that agents pin is below."""


def mounted(place: Path) -> tuple[str, frozenset[str]] | None:
    """The type and the options of what the calling thread sees mounted on `place`; None where nothing is.

    What was mounted last hides what was there.
    """
    try:
        text = Path("/proc/thread-self/mounts").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    for line in reversed(text.splitlines()):
        _, where, kind, options, *_ = line.split(" ")
        if where == str(place):
            return kind, frozenset(options.split(","))
    return None
