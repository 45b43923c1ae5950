"""Datagrams of 18 bytes (frames of 60) as fast as one core can, or one at a time: `flood SENDER RECEIVER CPU`.

SENDER and RECEIVER are the descriptors of two connected UDP sockets at the ends of a veth pair. The receiving side
runs in the sender's own softirq, on this core, so that the time is of both. It is CPU time, so that whoever else gets
the core does not count: this thread's, and that of the core's ksoftirqd, to which the kernel hands what it does not
get done (where it can be seen: not from inside a container). Requests, and their answers in one line:

    flood SLICES DATAGRAMS   picoseconds of CPU a datagram took, for each slice; nobody takes them in
    flow SLICES DATAGRAMS    how many arrived in all, then as above, taking them in
    ping COUNT               how many were lost, then nanoseconds from before each was sent to after it was received

64 datagrams share a system call, and so the interpreter's part of each is some nanoseconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mapek.simulations import libc

BATCH: Final = 64
PAYLOAD: Final = 18
_PATIENCE: Final = struct.pack("=qq", 0, 100_000)


class _Header(ctypes.Structure):
    """struct msghdr"""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("parts", ctypes.c_void_p),
        ("part_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """struct mmsghdr"""

    _fields_ = (("header", _Header), ("length", ctypes.c_uint))


class _Part(ctypes.Structure):
    """struct iovec"""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_lib = ctypes.CDLL(None, use_errno=True)
_lib.sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
_lib.recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)


class Messages:
    """So many datagrams in one system call, all with the same bytes."""

    def __init__(self, count: int) -> None:
        self._payload = ctypes.create_string_buffer(PAYLOAD)
        self._part = _Part(ctypes.addressof(self._payload), PAYLOAD)
        each = _Message(_Header(parts=ctypes.addressof(self._part), part_count=1))
        self._messages = (_Message * count)(*[each] * count)
        self.at, self.count = ctypes.addressof(self._messages), count


def main(arguments: list[str]) -> None:
    """Answer until stdin ends."""
    parent = os.getppid()
    libc.die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("flood: who asked has ended meanwhile")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; who asks ends us in order
    sender, receiver = (socket.socket(fileno=int(fd)) for fd in arguments[:2])
    cpu = int(arguments[2])
    os.sched_setaffinity(0, {cpu})
    clock = cpu_clock(cpu)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
    for line in sys.stdin:
        kind, *numbers = line.split()
        if kind == "ping":
            answer = ping(sender, receiver, int(numbers[0]))
        else:
            answer = flood(sender, receiver, int(numbers[0]), int(numbers[1]), clock, take=kind == "flow")
        sys.stdout.write(" ".join(map(str, answer)) + "\n")
        sys.stdout.flush()


def cpu_clock(cpu: int) -> Callable[[], int]:
    """ns of CPU that this thread and the core's ksoftirqd have had; the latter counts 0 where it is not to be seen."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text() == f"ksoftirqd/{cpu}\n":
                # clock_getcpuclockid(3), which Python does not have
                other = ~int(comm.parent.name) << 3 | 2
                break
        except OSError:
            continue
    else:
        return time.thread_time_ns
    return lambda: time.thread_time_ns() + time.clock_gettime_ns(other)


def flood(
    sender: socket.socket,
    receiver: socket.socket,
    slices: int,
    datagrams: int,
    clock: Callable[[], int],
    *,
    take: bool,
) -> list[int]:
    """As the request `flow` says, or as `flood` does."""
    out, in_ = Messages(BATCH), Messages(2 * BATCH)
    here, there = sender.fileno(), receiver.fileno()
    send, receive, drop_waiting = _lib.sendmmsg, _lib.recvmmsg, socket.MSG_DONTWAIT
    took, arrived = [], 0
    if take:
        drain(receiver)
    for _ in range(slices):
        start, sent = clock(), 0
        while sent < datagrams:
            some = send(here, out.at, BATCH, 0)
            if some < 0:
                raise OSError(ctypes.get_errno(), "sendmmsg")
            sent += some
            if take and (some := receive(there, in_.at, in_.count, drop_waiting, None)) > 0:
                arrived += some
        took.append((clock() - start) * 1000 // sent)
    return [arrived + drain(receiver), *took] if take else took


def ping(sender: socket.socket, receiver: socket.socket, count: int) -> list[int]:
    """As the request says."""
    drain(receiver)
    data, room, clock = bytes(PAYLOAD), bytearray(64), time.perf_counter_ns
    took, lost = list[int](), 0
    for _ in range(count):
        if lost > count // 100 + 1:
            break  # the rest would be lost too, and waiting for each takes long
        start = clock()
        sender.send(data)
        try:
            receiver.recv_into(room)
        except BlockingIOError:
            lost += 1
            continue
        took.append(clock() - start)
    return [count - len(took), *took]


def drain(receiver: socket.socket) -> int:
    """Take in what is there, and what is still on its way; returns how many."""
    found, idle = 0, 0
    while idle < 3:
        try:
            receiver.recv(64, socket.MSG_DONTWAIT)
        except BlockingIOError:
            idle += 1
            time.sleep(0.0002)
        else:
            found, idle = found + 1, 0
    return found


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.exit(f"flood: {error}")
