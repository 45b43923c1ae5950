"""Interfaces that a suite may take away: veth pairs in a network namespace of the caller's own, made by `ip`.

What is needed of them is a protocol, so that a plugin for other interfaces (Wi-Fi, batman-adv) brings its own.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Mapping, Sequence
from typing import Protocol

_FRAME = (
    b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x08\0"
    b"\x45\0\0\x2e\0\0\0\0\x40\x11\x66\xbd\x0a\0\0\x02\x0a\0\0\x01" + b"\0\x09\0\x09\0\x1a\0\0" + bytes(18)
)
"""60 bytes: a broadcast UDP datagram from 10.0.0.2 to 10.0.0.1."""


class LinkMaker(Protocol):
    """Makes interfaces, and takes them away again. All of it blocks, for milliseconds."""

    def add(self, name: str) -> int:
        """Make the interface, up and with its addresses; returns its ifindex."""

    def remove(self, name: str) -> None:
        """Delete it."""

    def rename(self, name: str, to: str) -> None:
        """Change its name; it may be down for a moment, and is as before afterwards."""

    def send(self, name: str) -> None:
        """Let some packets arrive on it."""


class VethLinks:
    """Each interface is an end of a veth pair, whose other end is called "NAME.far".

    Args:
        addresses: of an interface by its name, with prefix length ("10.0.0.1/24").

    Needs CAP_NET_ADMIN and CAP_NET_RAW in the current network namespace, and iproute2. Errors are
    subprocess.CalledProcessError and OSError.
    """

    def __init__(self, addresses: Mapping[str, Sequence[str]] | None = None) -> None:
        self._addresses = dict(addresses or {})

    def add(self, name: str) -> int:
        far = f"{name}.far"
        _ip("link", "add", name, "type", "veth", "peer", "name", far)
        _ip("link", "set", far, "up")
        self._up(name, name)
        return socket.if_nametoindex(name)

    def _up(self, name: str, named: str) -> None:
        _ip("link", "set", name, "up")
        for address in self._addresses.get(named, ()):
            nodad = ("nodad",) if ":" in address else ()
            _ip("address", "replace", address, "dev", name, *nodad)

    def remove(self, name: str) -> None:
        _ip("link", "delete", name)

    def rename(self, name: str, to: str) -> None:
        _ip("link", "set", name, "down")
        _ip("link", "set", name, "name", to)
        _ip("link", "set", f"{name}.far", "name", f"{to}.far")
        self._up(to, to if to in self._addresses else name)

    def send(self, name: str) -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
            out.bind((f"{name}.far", 0))
            for _ in range(8):
                with contextlib.suppress(OSError):  # a queue that is full has sent enough
                    out.send(_FRAME)


def _ip(*words: str) -> None:
    subprocess.run(("ip", *words), check=True, capture_output=True)
