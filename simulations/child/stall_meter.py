"""Meter the machine's own stalls on one CPU: `stall_meter CPU PERIOD_NS REPORT_NS FIFO FD`.

A timer that a real-time thread waits for fires late only when the machine (a hypervisor, an interrupt
storm, RT throttling) kept it from running. Every lateness of at least REPORT_NS is recorded: no system
under test causes it.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from mapek.simulations import libc
from mapek.simulations.child.ring import STALLED, RingWriter


def main(arguments: list[str]) -> None:
    """Meter until killed."""
    cpu, period, report, priority, fd = map(int, arguments)
    libc.die_with_parent(signal.SIGKILL)
    ring = RingWriter(fd, STALLED)
    os.sched_setaffinity(0, {cpu})
    os.write(1, b"ready\n")
    libc.real_time(priority)
    due = time.monotonic_ns() + period
    while True:
        libc.sleep_until(due)
        late = time.monotonic_ns() - due
        if late >= report:
            ring.append(due, late)
        # After a stall the missed ticks say nothing new.
        due += period * (1 + late // period)


if __name__ == "__main__":
    main(sys.argv[1:])
