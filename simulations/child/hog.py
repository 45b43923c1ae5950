"""Burn one CPU until killed: `hog CPU`. The load under which a good system must not lose its head."""

from __future__ import annotations

import os
import signal
import sys

from mapek.simulations import libc


def main(arguments: list[str]) -> None:
    """Spin at ordinary priority."""
    libc.die_with_parent(signal.SIGKILL)
    os.sched_setaffinity(0, {int(arguments[0])})
    os.write(1, b"ready\n")
    while True:
        pass


if __name__ == "__main__":
    main(sys.argv[1:])
