"""The structs of bpf/programs/link_watch.h as numpy dtypes and struct formats; a test compares the sizes.

Scalars on the hot path are read through memoryviews: numpy's scalar access costs ten times as much.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import numpy as np

from mapek.knowledge.topology import Address

WINDOW: Final = 512
RTT_BUCKETS: Final = 32
PORT: Final = 862

IN_USE, WATCH, GAPS, ANSWERS, ADMIN_DOWN, PLAIN, STATEFUL = 1, 2, 4, 8, 16, 32, 64
MARK_SILENT, MARK_MISSING = 1, 2
SILENT, BACK, MISSING, ANSWER, PEER_STATE, PEER_RESTART = range(1, 7)

SLOT = np.dtype([("sent_ns", "u8"), ("seq", "u4"), ("rtt_ns", "u4")])

CONFIG = np.dtype(
    [
        ("local", "u1", 16),
        ("peer", "u1", 16),
        ("ifindex", "u4"),
        ("flags", "u4"),
        ("silence_ns", "u8"),
        ("epoch", "u8"),
        ("own_key", "u8", 2),
        ("peer_key", "u8", 2),
        ("reply_rate", "u4"),
        ("reply_burst", "u4"),
        ("wall_ns", "u8"),
    ]
)

COUNTERS: Final = (
    "sent",
    "answered",
    "lost",
    "late",
    "duplicates",
    "rejected",
    "forward_lost",
    "reverse_lost",
    "reflected",
    "forged",
    "replayed",
    "limited",
    "stalls",
    "ring_drops",
)

STATE = np.dtype(
    [(name, "u8") for name in COUNTERS]
    + [
        ("last_sent_ns", "u8"),
        ("last_answer_ns", "u8"),
        ("last_answered_sent_ns", "u8"),
        ("peer_epoch", "u8"),
        ("peer_seen_ns", "u8"),
        ("peer_bitmap", "u8"),
        ("tokens_ns", "u8"),
        ("next_seq", "u4"),
        ("newest_answered", "u4"),
        ("reflector_seq", "u4"),
        ("own_reflector_seq", "u4"),
        ("peer_newest", "u4"),
        ("peer_state", "u4"),
        ("marks", "u4"),
        ("reserved", "u4"),
        ("rtt_buckets", "u8", RTT_BUCKETS),
        ("window", SLOT, WINDOW),
    ]
)

_EVENT = struct.Struct("=QQIIII")
_PEER_KEY = struct.Struct("=I16s16s")


@dataclass(frozen=True, slots=True)
class Alarm:
    """One record of the ring buffer. Times in ns of CLOCK_MONOTONIC."""

    time_ns: int
    onset_ns: int
    path: int
    kind: int
    seq: int
    count: int


def alarm(record: bytes) -> Alarm:
    """Decode a ring buffer record. Raises struct.error for any other size than 32 bytes."""
    return Alarm(*_EVENT.unpack(record))


def packed(address: Address) -> bytes:
    """An address as the programs compare it: 16 bytes, IPv4 as ::ffff:a.b.c.d."""
    if isinstance(address, IPv4Address):
        return bytes(10) + b"\xff\xff" + address.packed
    return IPv6Address(int(address)).packed


def peer_key(ifindex: int, peer: Address, local: Address) -> bytes:
    """Key of the `peers` map: whom the reflector answers."""
    return _PEER_KEY.pack(ifindex, packed(peer), packed(local))
