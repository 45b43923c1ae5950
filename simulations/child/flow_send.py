"""Send one direction of the measured flow: `flow_send PID SOURCE TARGET PORT PERIOD_NS FIFO FD`.

Each datagram carries its number and the time of sending. The pace is absolute: a late packet does not shift
the next one, a stall is followed by a burst, and each packet's lateness is on record beside it.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import time

from mapek.simulations import libc
from mapek.simulations.child.ring import SENT, RingWriter

_GIVE_UP_NS = 1_000_000_000  # after a stop this long the schedule starts anew instead of bursting


def main(arguments: list[str]) -> None:
    """Send until killed."""
    holder, source, target, port, period, priority, fd = arguments
    libc.die_with_parent(signal.SIGKILL)
    libc.enter(int(holder))
    ring = RingWriter(int(fd), SENT)
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((source, 0))
    address = (target, int(port))
    form, step, clock = struct.Struct("<QQ"), int(period), time.monotonic_ns
    os.write(1, b"ready\n")
    libc.real_time(int(priority))
    due = clock() + 10 * step
    while True:
        libc.sleep_until(due)
        now, error = clock(), 0
        late = now - due
        if late > _GIVE_UP_NS:
            due = now
        try:
            sock.sendto(form.pack(ring.count, now), address)
        except OSError as problem:
            error = problem.errno or 1
        ring.append(now, min(late, 0xFFFFFFFF), error)
        due += step


if __name__ == "__main__":
    main(sys.argv[1:])
