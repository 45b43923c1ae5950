"""rtnetlink messages as bytes: split into messages, and those into attributes; one request with one answer, or a dump.

For what has to be quick or must not cost 10 MB of pyroute2: reading back what runs on an interface, and the
messages that arrive by the thousand. Stops at a length that cannot be, so that no input makes it raise.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Final

HEADER: Final = struct.Struct("=IHHII")
ERROR: Final = 2
_DONE: Final = 3
_DUMP: Final = 0x301
"""NLM_F_REQUEST | NLM_F_DUMP."""
GET_TFILTER: Final = 46
TCM: Final = struct.Struct("=BxxxiIII")
"""struct tcmsg: family, ifindex, handle, parent, and priority with protocol in one."""
_PATIENCE_S: Final = 5.0


def split(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The messages in a buffer, as (type, body); stops at a length that cannot be."""
    at = 0
    while at + HEADER.size <= len(data):
        length, kind, _, _, _ = HEADER.unpack_from(data, at)
        if length < HEADER.size or at + length > len(data):
            return
        yield kind, data[at + HEADER.size : at + length]
        at += -(-length // 4) * 4


def attributes(body: bytes, offset: int = 0) -> Mapping[int, bytes]:
    """The attributes behind a message's fixed part; the last of each kind, without the flag bits of its type."""
    found: dict[int, bytes] = {}
    at = offset
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if length < 4 or at + length > len(body):
            break
        found[kind & 0x3FFF] = body[at + 4 : at + length]
        at += -(-length // 4) * 4
    return found


def ask(kind: int, body: bytes, flags: int = 0, protocol: int = socket.NETLINK_ROUTE) -> bytes:
    """The body of the one answer to a request (with `flags` besides NLM_F_REQUEST), in the calling thread's network
    namespace. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as link:
        link.settimeout(_PATIENCE_S)
        link.bind((0, 0))
        link.send(HEADER.pack(HEADER.size + len(body), kind, 1 | flags, 0, 0) + body)
        for answered, found in split(link.recv(1 << 16)):
            if answered != ERROR:
                return found
            code = -struct.unpack_from("=i", found)[0]
            raise OSError(code, os.strerror(code))
    raise OSError(errno.EBADMSG, "no whole message in the kernel's answer")


def dump(kind: int, body: bytes) -> list[bytes]:
    """The bodies of all answers to a dump, in the calling thread's network namespace. Raises OSError."""
    found: list[bytes] = []
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as link:
        link.settimeout(_PATIENCE_S)
        link.bind((0, 0))
        link.send(HEADER.pack(HEADER.size + len(body), kind, _DUMP, 0, 0) + body)
        while True:
            for answered, one in split(link.recv(1 << 18)):
                if answered == _DONE:
                    return found
                if answered == ERROR:
                    code = -struct.unpack_from("=i", one)[0]
                    raise OSError(code, os.strerror(code))
                found.append(one)
