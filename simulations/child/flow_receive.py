"""Receive one direction of the measured flow: `flow_receive PID ADDRESS PORT FIFO FD`.

Arrivals are stamped by the kernel (SO_TIMESTAMPNS), so a late wake-up of this process does not look like an
outage. That stamp is CLOCK_REALTIME; what is kept is CLOCK_MONOTONIC, through the age of the stamp when
read, so that a step of the wall clock between two packets does no harm.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import time

from mapek.simulations import libc
from mapek.simulations.child.ring import ARRIVED, RingWriter

_SO_TIMESTAMPNS = 35
_IP_PKTINFO = 8


def main(arguments: list[str]) -> None:
    """Receive until killed."""
    holder, local, port, priority, fd = arguments
    libc.die_with_parent(signal.SIGKILL)
    libc.enter(int(holder))
    ring = RingWriter(int(fd), ARRIVED)
    six = ":" in local
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    if six:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    sock.bind((local, int(port)))
    form, stamp_form, index_form = struct.Struct("<QQ"), struct.Struct("=qq"), struct.Struct("=i")
    monotonic, wall = time.monotonic_ns, time.time_ns
    os.write(1, b"ready\n")
    libc.real_time(int(priority))
    space = socket.CMSG_SPACE(16) + socket.CMSG_SPACE(20)
    while True:
        data, notes, _, _ = sock.recvmsg(64, space)
        while True:
            before, real, after = monotonic(), wall(), monotonic()
            if after - before < 20_000:  # otherwise we lost the CPU between the two clocks
                break
        if len(data) < form.size:
            continue
        stamp = ifindex = 0
        for level, kind, value in notes:
            if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                seconds, rest = stamp_form.unpack_from(value)
                stamp = seconds * 1_000_000_000 + rest
            elif six and level == socket.IPPROTO_IPV6:
                (ifindex,) = index_form.unpack_from(value, 16)
            elif level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                (ifindex,) = index_form.unpack_from(value)
        number, sent = form.unpack_from(data)
        age = max(0, real - stamp)
        ring.append(number, sent, before - age, min(age // 1000, 0xFFFFFFFF), ifindex)


if __name__ == "__main__":
    main(sys.argv[1:])
