"""A process that makes system calls that are known to the call, when told to.

It is in a read when it is started and in a read when it is done, which a sensor that attaches and detaches
meanwhile must not count.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

WRITES = 300
SENDS = 50
SLOW_READS = 4
SLOW_MS = 20
CALLS = {"write": WRITES + 1, "sendto": SENDS, "recvfrom": SENDS, "read": SLOW_READS, "getppid": WRITES}
"""Each run; one write tells that it is over."""

_SOURCE = f"""
import ctypes, os, socket, struct
left, right = socket.socketpair()
null = os.open("/dev/null", os.O_WRONLY)
slow, silent = socket.socketpair()
slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, {SLOW_MS} * 1000))
os.write(1, b"r")
while os.read(0, 1):
    for _ in range({WRITES}):
        os.write(null, b"x")
        os.getppid()
    for _ in range({SENDS}):
        left.send(b"x")
        right.recv(1)
    for _ in range({SLOW_READS}):
        try:
            os.read(slow.fileno(), 1)
        except BlockingIOError:
            pass
    os.write(1, b"d")
"""


@dataclass(frozen=True)
class Load:
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    def run(self) -> None:
        """Make the calls once; returns when they are made and the process is about to wait again."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"g")
        self.process.stdin.flush()
        assert self.process.stdout.read(1) == b"d"
        self.settle()

    def settle(self) -> None:
        """Wait until it sleeps in its read."""
        while "S (sleeping)" not in Path(f"/proc/{self.pid}/status").read_text():
            os.sched_yield()


@contextmanager
def load(*prefix: str) -> Iterator[Load]:
    """A load that waits to be told; `prefix` is a command that runs it."""
    command = [*prefix, sys.executable, "-S", "-E", "-c", _SOURCE]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.read(1) == b"r"
            made = Load(process)
            made.settle()
            yield made
        finally:
            process.kill()
