"""A loaded program: what the kernel knows about it, and test runs without any network.

A program is an owned file descriptor; links, pins and program arrays keep it alive in the kernel after it is
closed here.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass

from mapek.bpf import syscall
from mapek.bpf.names import PROGRAM_TYPES


@dataclass(frozen=True, slots=True)
class TestRun:
    """What PROG_TEST_RUN gave: return value, the packet afterwards, and the mean time of one run in ns."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    retval: int
    data: bytes
    duration_ns: int


class Program:
    """A loaded program: an owned fd. Closing twice is fine."""

    def __init__(self, fd: int, name: str = "") -> None:
        self.fd = fd
        data = syscall.info(fd, 232)
        number, self.id = struct.unpack_from("=II", data)
        self.type = PROGRAM_TYPES[number] if number < len(PROGRAM_TYPES) else f"type {number}"
        self.tag = bytes(data[8:16]).hex()
        self.name = name or bytes(data[64:80]).split(b"\0")[0].decode("utf-8", "replace")

    def __repr__(self) -> str:
        return f"<Program {self.name} id={self.id} fd={self.fd}>"

    def copy(self) -> Program:
        """The same program by a descriptor of its own."""
        return Program(os.dup(self.fd), self.name)

    def map_ids(self) -> list[int]:
        """Ids of the maps this program uses."""
        return list(syscall.map_ids(self.fd))

    @property
    def recursion_misses(self) -> int:
        """How often the kernel skipped it, a tracing program, rather than let it interrupt itself on one CPU: since
        5.12, raw tracepoints since 6.1. A system call."""
        return int(struct.unpack_from("=Q", syscall.info(self.fd, 232), 208)[0])

    def test_run(self, data: bytes = b"", repeat: int = 1, ctx: bytes | None = None) -> TestRun:
        """Run the program `repeat` times on a packet (with a context struct, where the type takes one),
        without a network.

        For syscall programs pass only `ctx`; `data` of the result is then the context afterwards. Blocks the
        thread.

        Raises FeatureError for an XDP program with `ctx` before kernel 5.15, else DegradedError.
        """
        packet = ctypes.create_string_buffer(data, max(len(data), 1))
        # XDP and tc programs may grow the packet.
        room = len(data) + 512 if data else 0
        out = ctypes.create_string_buffer(max(room, 1))
        context = ctypes.create_string_buffer(ctx, len(ctx)) if ctx is not None else None
        context_at = ctypes.addressof(context) if context is not None else 0
        returns_ctx = context is not None and not data
        attr = bytearray(80)
        struct.pack_into(
            "=IIIIQQIIIIQQIII", attr, 0, self.fd, 0, len(data), room,
            ctypes.addressof(packet) if data else 0, ctypes.addressof(out) if data else 0,
            repeat if data else 0, 0, len(ctx or b""), 0, context_at, 0, 0, 0, 0,
        )  # fmt: skip
        code = syscall.bpf_raw(syscall.PROG_TEST_RUN, attr)
        if code < 0:
            from mapek.bpf.features import kernel_version

            old = ctx is not None and self.type == "xdp" and kernel_version() < (5, 15)
            needs = "a context for XDP test runs, kernel 5.15" if old else ""
            raise syscall.explain(-code, "test run", self.name, needs=needs)
        retval, _, size = struct.unpack_from("=III", attr, 4)
        (duration,) = struct.unpack_from("=I", attr, 36)
        if returns_ctx:
            assert context is not None
            return TestRun(retval, context.raw, duration)
        return TestRun(retval, out.raw[: min(size, room)], duration)

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Pin the program on a bpffs, so that it outlives this process."""
        syscall.pin(self.fd, path)

    def close(self) -> None:
        """Give the fd back; the kernel keeps the program while it is attached or pinned."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
