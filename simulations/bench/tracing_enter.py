"""Runs a command with tracefs mounted where it looks for it: `python -m ...bench.tracing_enter COMMAND...`.

In a mount namespace of its own, so that the machine stays as it is.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Final

from mapek.simulations import libc

TRACEFS: Final = "/sys/kernel/tracing"
_RECURSIVE, _PRIVATE = 1 << 14, 1 << 18


def main(command: list[str]) -> None:
    """Mount if need be, and exec."""
    libc.die_with_parent(signal.SIGKILL)
    if not Path(TRACEFS, "events").is_dir():
        libc.unshare(libc.CLONE_NEWNS)
        libc.mount("none", "/", "", _RECURSIVE | _PRIVATE)
        libc.mount("tracefs", TRACEFS, "tracefs")
    os.execvp(command[0], command)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.exit(f"tracing: {error}")
