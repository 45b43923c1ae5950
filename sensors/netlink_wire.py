"""rtnetlink messages as bytes: encoded ahead, sent and acknowledged on a plain socket.

Sending prepared bytes takes 4 us, the same through pyroute2's sockets 400 us, and those do not work under
uvloop. The few messages of the hot path are encoded here and not by pyroute2, which knows neither nexthop
objects nor RTA_NH_ID (0.9.7) and would cost an agent 10 MB; the tests hold them against pyroute2 and `ip`.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator
from typing import Final

from mapek.bpf.rtnl import ERROR, HEADER, attributes, split
from mapek.errors import NetlinkError, PrivilegeError
from mapek.knowledge.topology import Address, Network

RTM_GETLINK, RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 18, 24, 25, 26
RTM_NEWNEXTHOP, RTM_DELNEXTHOP, RTM_GETNEXTHOP = 104, 105, 106

REQUEST, ACK, REPLACE, CREATE, DUMP = 0x1, 0x4, 0x100, 0x400, 0x300

PROTOCOL: Final = 109
"""Our `rtm_protocol` ("m"): what carries it is ours, nothing else is ever touched."""

_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_VIA, _RTA_NH_ID = 1, 4, 5, 6, 7, 18, 30
_MAIN, _UNICAST = 254, 1
_NHA_ID, _NHA_OIF, _NHA_GATEWAY = 1, 5, 6
_ONLINK: Final = 4
AT_ONCE: Final = 64
DUMP_PATIENCE_S: Final = 2.0
_DONE: Final = 3


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data.ljust(-(-len(data) // 4) * 4, b"\0")


def _family(of: Address | Network) -> int:
    return socket.AF_INET if of.version == 4 else socket.AF_INET6


def nexthop(ident: int, ifindex: int, gateway: Address) -> bytes:
    """RTM_NEWNEXTHOP, create or replace: all routes of this nexthop move at once (kernel 5.3)."""
    body = struct.pack("=BBBBI", _family(gateway), 0, PROTOCOL, 0, _ONLINK)
    body += _attribute(_NHA_ID, struct.pack("=I", ident))
    body += _attribute(_NHA_OIF, struct.pack("=I", ifindex))
    body += _attribute(_NHA_GATEWAY, gateway.packed)
    return _message(RTM_NEWNEXTHOP, REQUEST | ACK | CREATE | REPLACE, body)


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, flags, 0, 0) + body


def route(
    prefix: Network,
    metric: int,
    *,
    source: Address | None = None,
    nexthop_id: int | None = None,
    ifindex: int = 0,
    gateway: Address | None = None,
) -> bytes:
    """RTM_NEWROUTE, create or replace, in the main table: by nexthop object, or by gateway and interface.

    An IPv4 prefix may go through an IPv6 gateway (RTA_VIA, kernel 5.2).
    """
    by_object = nexthop_id is not None
    body = struct.pack(
        "=BBBBBBBBI",
        _family(prefix), prefix.prefixlen, 0, 0, _MAIN, PROTOCOL, 0, _UNICAST, 0 if by_object else _ONLINK,
    )  # fmt: skip
    body += _attribute(_RTA_DST, prefix.network_address.packed)
    body += _attribute(_RTA_PRIORITY, struct.pack("=I", metric))
    if source is not None:
        body += _attribute(_RTA_PREFSRC, source.packed)
    if nexthop_id is not None:
        body += _attribute(_RTA_NH_ID, struct.pack("=I", nexthop_id))
    elif gateway is not None:
        body += _attribute(_RTA_OIF, struct.pack("=I", ifindex))
        if gateway.version == prefix.version:
            body += _attribute(_RTA_GATEWAY, gateway.packed)
        else:
            body += _attribute(_RTA_VIA, struct.pack("=H", _family(gateway)) + gateway.packed)
    return _message(RTM_NEWROUTE, REQUEST | ACK | CREATE | REPLACE, body)


class Messenger:
    """A netlink socket for requests whose acknowledgement comes within the send call, as rtnetlink's do."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.setblocking(False)
        self._socket.bind((0, 0))

    def send(self, message: bytes, tried: str, on: str) -> None:
        """Send prepared bytes, one or more messages, and take every acknowledgement.

        Raises:
            NetlinkError: the kernel refused one; those before it are in force.
            PrivilegeError: CAP_NET_ADMIN is missing.
        """
        failed = 0
        for part, wanted in portions(message):
            try:
                self._socket.send(part)
                while wanted:
                    for kind, body in split(self._socket.recv(65536)):
                        if kind == ERROR:
                            wanted -= 1
                            failed = failed or -struct.unpack_from("=i", body)[0]
            except OSError as error:
                raise refusal(error.errno or errno.EIO, tried, on) from error
        if failed:
            raise refusal(failed, tried, on)

    def dump(self, kind: int, family: int = 0) -> Iterator[tuple[int, bytes]]:
        """All objects of a kind, as (message type, body). Blocks for as long as the kernel writes: a thread's work."""
        size = {RTM_GETROUTE: 12, RTM_GETLINK: 16}.get(kind, 8)
        self._socket.send(_message(kind, REQUEST | DUMP, bytes([family]).ljust(size, b"\0")))
        while True:
            for answered, body in split(self._next_part()):
                if answered == _DONE:
                    return
                if answered == ERROR:
                    raise refusal(-struct.unpack_from("=i", body)[0], "dump", "routes")
                yield answered, body

    def _next_part(self) -> bytes:
        """The next datagram of a dump. On a busy machine it was seen to come later than the request returns."""
        try:
            return self._socket.recv(1 << 20)
        except BlockingIOError as error:
            if not select.select([self._socket], [], [], DUMP_PATIENCE_S)[0]:
                why = f"the kernel says nothing for {DUMP_PATIENCE_S:g} s"
                raise NetlinkError("dump", "rtnetlink", why, "try again", code=errno.EAGAIN) from error
            return self._socket.recv(1 << 20)

    def get_nexthop(self, ident: int) -> bytes | None:
        """The body of RTM_NEWNEXTHOP as the kernel has it now, or None."""
        body = bytes(8) + _attribute(_NHA_ID, struct.pack("=I", ident))
        self._socket.send(_message(RTM_GETNEXTHOP, REQUEST, body))
        for kind, found in split(self._socket.recv(65536)):
            if kind == RTM_NEWNEXTHOP:
                return found
            if kind == ERROR and (code := -struct.unpack_from("=i", found)[0]) not in (0, errno.ENOENT):
                raise refusal(code, "read", f"nexthop {ident}")
        return None

    def close(self) -> None:
        self._socket.close()


def portions(message: bytes) -> Iterator[tuple[bytes, int]]:
    """Whole messages, at most `AT_ONCE` together, and how many: each is acknowledged into a bounded buffer."""
    start = at = count = 0
    while at + HEADER.size <= len(message):
        at += -(-HEADER.unpack_from(message, at)[0] // 4) * 4
        count += 1
        if count == AT_ONCE:
            yield message[start:at], count
            start, count = at, 0
    if count:
        yield message[start:at], count


def refusal(code: int, tried: str, on: str) -> NetlinkError | PrivilegeError:
    """What the kernel's errno says, as an error of ours."""
    if code == errno.EPERM:
        return PrivilegeError(tried, on, "CAP_NET_ADMIN is missing", "run as root or grant the capability")
    return NetlinkError(tried, on, os.strerror(code), "see `ip route` and `ip nexthop`", code=code)


def nexthop_fields(body: bytes) -> tuple[int, int, int, bytes] | None:
    """(id, protocol, ifindex, gateway) of an RTM_NEWNEXTHOP or RTM_DELNEXTHOP body; None if it is too short."""
    if len(body) < 8:
        return None
    found = attributes(body, 8)
    ident, oif = found.get(_NHA_ID, b""), found.get(_NHA_OIF, b"")
    if len(ident) != 4:
        return None
    number = struct.unpack("=I", ident)[0]
    ifindex = struct.unpack("=I", oif)[0] if len(oif) == 4 else 0
    return number, body[2], ifindex, found.get(_NHA_GATEWAY, b"")
