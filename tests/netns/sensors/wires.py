"""Namespaces of a test's own, and the veth pairs in them. The calling thread moves; new threads follow it."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from tests.support import veth
from tests.support.machine import bpf_call, has

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
STXCSUM = 0x17
"""ETHTOOL_STXCSUM: whether the stack leaves UDP checksums to the interface."""
_QUIET = ("ipv6/conf/default/accept_dad", "ipv6/conf/default/router_solicitations")


def run(command: str) -> str:
    """Run a command in the present namespace."""
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def ethtool(interface: str, command: int, on: bool) -> None:
    """Set an offload of an interface."""
    value = ctypes.create_string_buffer(struct.pack("=II", command, on))
    request = struct.pack("@16sP", interface.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8946, request)


def on_tc(interface: str) -> tuple[int, int]:
    """How many programs tc runs on an interface, coming in and going out; without tcx, those of clsact."""
    if not has("tcx"):
        shown = [run(f"tc filter show dev {interface} {way}") for way in ("ingress", "egress")]
        return shown[0].count(" handle 0x"), shown[1].count(" handle 0x")
    found = []
    for attach_type in (46, 47):
        query = struct.pack("=II", socket.if_nametoindex(interface), attach_type)
        attr = ctypes.create_string_buffer(query.ljust(64, b"\0"), 64)
        assert bpf_call(16, attr)[0] == 0
        found.append(struct.unpack_from("=I", attr.raw, 24)[0])
    return found[0], found[1]


@dataclass
class Space:
    """A network namespace, held open by a descriptor."""

    fd: int

    @classmethod
    def new(cls) -> Self:
        """A fresh one, quiet: no duplicate address detection, no router solicitations."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            assert _libc.unshare(_CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            made = cls(os.open("/proc/thread-self/ns/net", os.O_RDONLY))
            for key in _QUIET:
                with open(f"/proc/sys/net/{key}", "w", encoding="ascii") as file:
                    file.write("0")
            veth.up("lo")
            return made
        finally:
            assert _libc.setns(home, _CLONE_NEWNET) == 0
            os.close(home)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is inside meanwhile."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        assert _libc.setns(self.fd, _CLONE_NEWNET) == 0
        try:
            yield
        finally:
            assert _libc.setns(home, _CLONE_NEWNET) == 0
            os.close(home)

    def close(self) -> None:
        os.close(self.fd)


@dataclass
class Wire:
    """A veth pair in one namespace, by ifindex."""

    near: int
    far: int
