"""A driver's own statistics, which only it can name (`ethtool -S`), by the ethtool ioctl.

The driver says neither what a number means nor if it only grows. They are taken by name as they are, and bounded,
because a network card with many queues has thousands.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import socket
import struct
from collections.abc import Mapping
from typing import Final

MOST_STATISTICS: Final = 4096
"""More than this of one driver are not read at all."""

_SIOCETHTOOL: Final = 0x8946
_GSTRINGS, _GSTATS, _GSSET_INFO = 0x1B, 0x1D, 0x37
_SET_STATISTICS: Final = 1
_WIDTH: Final = 32
_ROOM: Final = 1 << 20
"""The kernel writes as many as the driver has at that moment, whatever the caller made room for."""


def driver_statistics(sock: socket.socket, interface: str) -> Mapping[str, int]:
    """Value by name; empty for a driver without any. Blocks: the driver may ask the hardware.

    Args:
        sock: any IP socket of the interface's network namespace.

    Raises OSError: ENODEV (no such interface), EFBIG (more than `MOST_STATISTICS`), or the driver's own.
    """
    with mmap.mmap(-1, _ROOM) as room:
        count = _count(sock, interface, room)
        if count > MOST_STATISTICS:
            raise OSError(errno.EFBIG, f"{interface} has {count} statistics of its driver")
        if not count:
            return {}
        struct.pack_into("=III", room, 0, _GSTRINGS, _SET_STATISTICS, count)
        _ioctl(sock, interface, room)
        named = struct.unpack_from("=I", room, 8)[0]
        names = [room[12 + k * _WIDTH : 12 + (k + 1) * _WIDTH] for k in range(min(named, count))]
        struct.pack_into("=II", room, 0, _GSTATS, count)
        _ioctl(sock, interface, room)
        given = struct.unpack_from("=I", room, 4)[0]
        if given != named:
            raise OSError(errno.EAGAIN, f"the statistics of {interface} changed while they were read")
        values = struct.unpack_from(f"={len(names)}Q", room, 8)
    return {name: value for raw, value in zip(names, values, strict=True) if (name := _name(raw))}


def _count(sock: socket.socket, interface: str, room: mmap.mmap) -> int:
    struct.pack_into("=IIQI", room, 0, _GSSET_INFO, 0, 1 << _SET_STATISTICS, 0)
    try:
        _ioctl(sock, interface, room)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return 0
        raise
    mask, count = struct.unpack_from("=QI", room, 8)
    return int(count) if mask else 0


def _ioctl(sock: socket.socket, interface: str, room: mmap.mmap) -> None:
    held = ctypes.c_char.from_buffer(room)
    try:
        request = struct.pack(
            "@16sP16x", interface.encode("utf-8", "surrogateescape")[:15], ctypes.addressof(held)
        )
        fcntl.ioctl(sock, _SIOCETHTOOL, request)
    finally:
        del held  # or the mapping cannot be closed


def _name(raw: bytes) -> str:
    """Printable ASCII only: it becomes a label."""
    text = raw.partition(b"\0")[0].decode("ascii", "replace").strip()
    return "".join(char if char.isprintable() and char.isascii() else "_" for char in text)
