"""System calls as fast as one thread can make them: `calls`. Each line on stdin is "WHICH SLICES CALLS": WHICH "read"
for one byte from /dev/zero, or "getppid". Answered in one line with the picoseconds that a call of each slice took.

The time is this thread's CPU time, so that whoever else gets the core does not count. A part of each is the
interpreter's, in every setting alike.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from itertools import repeat, starmap
from typing import Final

from mapek.simulations import libc

_ZERO: Final = "/dev/zero"


def main() -> None:
    """Answer until stdin ends."""
    parent = os.getppid()
    libc.die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("calls: who asked has ended meanwhile")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; who asks ends us in order
    zero, clock = os.open(_ZERO, os.O_RDONLY | os.O_CLOEXEC), time.thread_time_ns
    for line in sys.stdin:
        which, slices, count = line.split()
        took = []
        for _ in range(int(slices)):
            # These are loops in C.
            calls: Iterator[object] = (
                map(os.read, repeat(zero, int(count)), repeat(1))
                if which == "read"
                else starmap(os.getppid, repeat((), int(count)))
            )
            start = clock()
            deque(calls, maxlen=0)
            took.append((clock() - start) * 1000 // int(count))
        sys.stdout.write(" ".join(map(str, took)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"calls: {error}")
