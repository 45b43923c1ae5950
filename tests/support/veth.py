"""Veth pairs made by two netlink messages: `ip` would be a process, which an emulated machine pays for dearly.

All of it happens in the calling thread's network namespace, and raises OSError with the kernel's error.
"""

from __future__ import annotations

import os
import socket
import struct

_NEWLINK, _DELLINK, _ERROR = 16, 17, 2
_REQUEST_ACK, _CREATE_EXCL = 0x5, 0x600
_UP = 1
_IFNAME, _LINKINFO, _KIND, _DATA, _PEER = 3, 18, 1, 2, 1


def pair(near: str, far: str) -> None:
    """A veth pair with these two ends, both up."""
    # The kernel sets a new link up as it makes it, but not its peer: that one has no other end yet.
    ends = _attribute(_PEER, _link() + _name(far))
    info = _attribute(_KIND, b"veth") + _attribute(_DATA, ends)
    _ask(_NEWLINK, _CREATE_EXCL, _link(up=True) + _name(near) + _attribute(_LINKINFO, info))
    up(far)


def up(name: str) -> None:
    """Set an interface up."""
    _ask(_NEWLINK, 0, _link(socket.if_nametoindex(name), up=True))


def delete(name: str) -> None:
    """Remove an interface, and with it its other end."""
    _ask(_DELLINK, 0, _link(socket.if_nametoindex(name)))


def _link(index: int = 0, *, up: bool = False) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, _UP if up else 0, _UP if up else 0)


def _name(name: str) -> bytes:
    return _attribute(_IFNAME, name.encode() + b"\0")


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _ask(kind: int, flags: int, body: bytes) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
        link.send(struct.pack("=IHHII", 16 + len(body), kind, _REQUEST_ACK | flags, 1, 0) + body)
        answer = link.recv(1 << 16)
    _, answered, _, _, _, code = struct.unpack_from("=IHHIIi", answer)
    assert answered == _ERROR, f"the kernel answers {answered} instead of an acknowledgement"
    if code:
        raise OSError(-code, os.strerror(-code))
