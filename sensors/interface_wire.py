"""Dumps of links and queueing disciplines by rtnetlink, decoded to the counters in them.

A dump that the kernel marks as interrupted (something changed meanwhile) may lack rows or have them twice, so it is
thrown away and asked for again: an interface must not seem gone because another one came.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from mapek.bpf.rtnl import attributes
from mapek.errors import NetlinkError
from mapek.sensors.netlink_wire import DUMP, REQUEST, RTM_GETLINK

RTM_NEWLINK, RTM_NEWQDISC, RTM_GETQDISC = 16, 36, 38

HELP: Final[Mapping[str, str]] = {
    "rx_packets": "Good packets received.",
    "tx_packets": "Packets handed to the medium.",
    "rx_bytes": "Bytes of the good packets received.",
    "tx_bytes": "Bytes of the packets sent.",
    "rx_errors": "Bad packets received, of all causes.",
    "tx_errors": "Failures to send, of all causes.",
    "rx_dropped": "Packets received and not processed: no buffer, or no protocol that wants them.",
    "tx_dropped": "Packets dropped on their way to the medium.",
    "multicast": "Multicast packets received.",
    "collisions": "Collisions while sending.",
    "rx_length_errors": "Packets received with a wrong length.",
    "rx_over_errors": "Receiver ring overflows.",
    "rx_crc_errors": "Packets received with a wrong checksum of the frame.",
    "rx_frame_errors": "Packets received out of alignment.",
    "rx_fifo_errors": "Receiver FIFO overruns.",
    "rx_missed_errors": "Packets that the host had no room for.",
    "tx_aborted_errors": "Sends aborted, on half duplex by collisions.",
    "tx_carrier_errors": "Sends that lost the carrier.",
    "tx_fifo_errors": "Sender FIFO underruns.",
    "tx_heartbeat_errors": "Heartbeat errors of old half-duplex media.",
    "tx_window_errors": "Late collisions.",
    "rx_compressed": "Compressed packets received.",
    "tx_compressed": "Compressed packets sent.",
    "rx_nohandler": "Packets received on an interface that nobody listens on.",
}
"""What counts where is the driver's choice: see the kernel's networking/statistics.rst."""

STATISTICS: Final = tuple(HELP)
"""struct rtnl_link_stats64 as far as every kernel from 4.6 on has it."""

_T = TypeVar("_T")
_HEADER = struct.Struct("=IHHII")
_STATISTICS = struct.Struct(f"={len(STATISTICS)}Q")
_ERROR, _DONE, _DUMP_INTR = 2, 3, 0x10
_IFLA_IFNAME, _IFLA_OPERSTATE, _IFLA_STATS64, _IFLA_UP_COUNT, _IFLA_DOWN_COUNT = 3, 16, 23, 47, 48
_TCA_KIND, _TCA_STATS2 = 1, 7
_STATS_BASIC, _STATS_QUEUE, _STATS_PKT64 = 1, 3, 8
_ROOT, _INGRESS = 0xFFFFFFFF, 0xFFFFFFF1
_PATIENCE_S: Final = 5.0
_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class LinkCounters:
    """An interface and what its driver counted, in the order of `STATISTICS`."""

    ifindex: int
    name: str
    operstate: int
    statistics: tuple[int, ...]
    carrier_up: int
    carrier_down: int


@dataclass(frozen=True, slots=True)
class QdiscCounters:
    """A queueing discipline at the root or the ingress of an interface; packets up to 2^64, the others as the kernel
    keeps them: bytes 64 bits, drops, requeues and overlimits 32 bits, which wrap. Queue length in packets, backlog in
    bytes.
    """

    ifindex: int
    kind: str
    ingress: bool
    bytes: int
    packets: int
    drops: int
    requeues: int
    overlimits: int
    qlen: int
    backlog: int


def link_counters(body: bytes) -> LinkCounters | None:
    """Decode the body of an RTM_NEWLINK; None for a bridge's message about its port, or without statistics.

    Raises struct.error or ValueError for a body that is no such message.
    """
    family, ifindex = struct.unpack_from("=Bxxxi8x", body)
    found = attributes(body, 16)
    raw = found.get(_IFLA_STATS64, b"")
    if family or len(raw) < _STATISTICS.size:
        return None
    name = found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "replace")
    if not name or ifindex <= 0:
        raise ValueError("a link without a name or an index")
    operstate = found.get(_IFLA_OPERSTATE, b"\0")
    ups, downs = (
        struct.unpack("=I", found.get(kind, bytes(4)))[0] for kind in (_IFLA_UP_COUNT, _IFLA_DOWN_COUNT)
    )
    return LinkCounters(ifindex, name, operstate[0], _STATISTICS.unpack_from(raw), ups, downs)


def qdisc_counters(body: bytes) -> QdiscCounters | None:
    """Decode the body of an RTM_NEWQDISC; None for one that is neither root nor ingress, or has no statistics.

    Raises struct.error for a body that is no such message.
    """
    ifindex, _, parent = struct.unpack_from("=xxxxiII", body)
    found = attributes(body, 20)
    inner = attributes(found.get(_TCA_STATS2, b""), 0)
    if parent not in (_ROOT, _INGRESS) or _STATS_BASIC not in inner:
        return None
    kind = found.get(_TCA_KIND, b"").rstrip(b"\0").decode("ascii", "replace")
    size, packets = struct.unpack_from("=QI", inner[_STATS_BASIC])
    if len(inner.get(_STATS_PKT64, b"")) >= 8:
        packets = struct.unpack_from("=Q", inner[_STATS_PKT64])[0]
    qlen, backlog, drops, requeues, overlimits = struct.unpack_from("=5I", inner.get(_STATS_QUEUE, bytes(20)))
    return QdiscCounters(
        ifindex, kind, parent == _INGRESS, size, packets, drops, requeues, overlimits, qlen, backlog
    )


_sequences = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Dumper:
    """Asks one rtnetlink socket for dumps. Blocks: a thread's work, one at a time.

    `counts`, which dumpers may share, has "interrupted_dumps" (thrown away), "undecoded" (messages that could not be
    read) and "overruns" (the socket had no room for the answer).
    """

    socket: socket.socket
    counts: Counter[str] = field(default_factory=Counter)

    @classmethod
    def new(cls) -> Dumper:
        """With a socket in the calling thread's network namespace. Raises OSError."""
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        made.settimeout(_PATIENCE_S)
        made.bind((0, 0))
        return cls(made)

    def twin(self) -> Dumper:
        """Another on the same socket, with a descriptor of its own: it goes on when this one is closed."""
        return Dumper(self.socket.dup(), self.counts)

    def links(self) -> dict[int, LinkCounters]:
        """All links by ifindex. Raises NetlinkError."""
        found = self._dump(RTM_GETLINK, RTM_NEWLINK, bytes(16), link_counters)
        return {one.ifindex: one for one in found}

    def qdiscs(self) -> dict[tuple[int, bool], QdiscCounters]:
        """The root and ingress disciplines of all links, by (ifindex, ingress). Raises NetlinkError."""
        found = self._dump(RTM_GETQDISC, RTM_NEWQDISC, bytes(20), qdisc_counters)
        return {(one.ifindex, one.ingress): one for one in found}

    def _dump(self, ask: int, answer: int, body: bytes, decode: Callable[[bytes], _T | None]) -> list[_T]:
        for _ in range(_ATTEMPTS):
            try:
                bodies = self._once(ask, answer, body)
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    self.counts["overruns"] += 1
                    continue
                why = (
                    "it did not answer" if isinstance(error, TimeoutError) else os.strerror(error.errno or 0)
                )
                raise NetlinkError("dump", _WHAT[ask], why, code=error.errno or 0) from error
            if bodies is None:
                self.counts["interrupted_dumps"] += 1
                continue
            return [one for one in (self._decoded(decode, each) for each in bodies) if one is not None]
        raise NetlinkError("dump", _WHAT[ask], f"it was interrupted {_ATTEMPTS} times", "it is tried again")

    def _decoded(self, decode: Callable[[bytes], _T | None], body: bytes) -> _T | None:
        try:
            return decode(body)
        except (struct.error, ValueError):
            self.counts["undecoded"] += 1
            return None

    def _once(self, ask: int, answer: int, body: bytes) -> list[bytes] | None:
        """The bodies of one dump; None if it was interrupted."""
        asked = next(_sequences)
        self.socket.send(_HEADER.pack(_HEADER.size + len(body), ask, REQUEST | DUMP, asked, 0) + body)
        bodies: list[bytes] = []
        whole = True
        while True:
            data, sender = self.socket.recvfrom(1 << 16)
            if sender[0]:
                continue  # not the kernel
            for kind, flags, sequence, found in messages(data):
                if sequence != asked:
                    continue  # of a dump that was given up
                whole = whole and not flags & _DUMP_INTR
                if kind == _DONE:
                    return bodies if whole else None
                if kind == _ERROR:
                    code = -struct.unpack_from("=i", found)[0]
                    raise OSError(code, os.strerror(code))
                if kind == answer:
                    bodies.append(found)

    def close(self) -> None:
        self.socket.close()


_WHAT: Final[Mapping[int, str]] = {RTM_GETLINK: "links", RTM_GETQDISC: "queueing disciplines"}


def messages(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """(type, flags, sequence, body) of each message; stops at a length that cannot be."""
    found = []
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            break
        found.append((kind, flags, sequence, data[at + _HEADER.size : at + length]))
        at += -(-length // 4) * 4
    return found
