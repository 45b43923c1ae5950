"""STAMP (RFC 8762) test packets as user space needs them: the template that the kernel fills in, and the keys.

The kernel's `stamp` program numbers, dates and signs each probe, so here it is constant bytes. The keys are
derived from the secret that two neighbours share, one for each direction of each pair of addresses: a probe
replayed to its own sender, or over another link, is signed with the wrong key.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

from mapek.knowledge.topology import Address
from mapek.sensors.link_watch_layout import packed

PROBE_SIZE: Final = 72
SENDER_SIZE: Final = 44
"""Of an unauthenticated packet of RFC 8762, before any TLV."""

TLV_MAPEK: Final = 253
_TLV = struct.Struct("!BBHQBBHIQ")
_TO_BE_STAMPED: Final = 0x6D61706B


def template(path: int) -> bytes:
    """An unsigned probe of the path with this index: 72 bytes."""
    stamp = struct.pack("!IIIHH28x", 0, 0, 0, 0, path + 1)
    return stamp + _TLV.pack(0, TLV_MAPEK, _TLV.size - 4, 0, 0, 0, 0, 0, 0)


def plain_template(path: int) -> bytes:
    """The same for a peer that speaks RFC 8762 only: 44 bytes, whose sequence number asks to be stamped."""
    return struct.pack("!IIIHH28x", _TO_BE_STAMPED, 0, 0, 0, path + 1)


def session_key(secret: bytes, prober: Address, target: Address) -> tuple[int, int]:
    """The two words of the SipHash key for probes from `prober` to `target` and their replies."""
    derived = hashlib.blake2s(
        packed(prober) + packed(target), key=secret[:32], digest_size=16, person=b"mapek\0\0\1"
    ).digest()
    first, second = struct.unpack("<QQ", derived)
    return first, second
