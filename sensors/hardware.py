"""What an interface is made of and its address, which the kernel tells by name (SIOCGIFHWADDR).

Asked for a name that nobody has, the kernel looks for a module of that name and waits for it, and always for rtnl: a
thread's work.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from dataclasses import dataclass
from typing import Final

from mapek.bpf.worker import in_thread
from mapek.errors import AttachError
from mapek.model import Entity

ETHERNET: Final = 1
LOOPBACK: Final = 772
ETHERNET_HEADER: Final = 14
"""Bytes."""
_SIOCGIFHWADDR: Final = 0x8927
_REQUEST: Final = struct.Struct("=16sH6s16x")


@dataclass(frozen=True, slots=True)
class Hardware:
    """`kind` is ARPHRD_*, `address` six bytes, which mean something where `kind` is ETHERNET."""

    kind: int
    address: bytes

    @property
    def link_header(self) -> int:
        """Bytes in front of the IP header: 14 of Ethernet, or 0 where there is none, as on tun and WireGuard."""
        return ETHERNET_HEADER if self.kind in (ETHERNET, LOOPBACK) else 0


def hardware(link: Entity, tried: str) -> Hardware:
    """Of an interface, for what is `tried` on it. Blocks.

    Raises AttachError when the name is not, or no longer, that of its ifindex.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
            asked = _REQUEST.pack(link.name.encode()[:15], 0, bytes(6))
            _, kind, address = _REQUEST.unpack(fcntl.ioctl(any_socket, _SIOCGIFHWADDR, asked))
        if socket.if_nametoindex(link.name) != link.generation:
            raise OSError("another interface has this name now")
    except OSError as error:
        why, do = error.strerror or str(error), "it is tried again when an interface has this name"
        raise AttachError(tried, link.name, why, do) from error
    return Hardware(kind, address)


async def link_header(link: Entity, tried: str) -> int:
    """`Hardware.link_header` of an interface, asked in a thread. Raises as `hardware`."""
    return await in_thread(lambda: hardware(link, tried).link_header)
