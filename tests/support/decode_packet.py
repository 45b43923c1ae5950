"""A reference decoder of frames, written from the standards and not from bpf/programs/packet.h.

IEEE 802.3 and 802.1Q (tags of 4 bytes, any number of them), RFC 791 (IPv4), RFC 8200 (IPv6 and its extension
headers), RFC 4302 (the length of AH). Slow and plain: each header is there in whole or it is cut short. What a
program says it does not follow (a third tag, a fifth extension header) is left to the test of that program.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

IPV4, IPV6 = 0x0800, 0x86DD
TPIDS = (0x8100, 0x88A8)
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60
EXTENSIONS = (HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION)


@dataclass(frozen=True)
class Decoded:
    """What a frame is.

    `ethertype` is None if the frame ends before it; `protocol` None if the IP header, or an extension header,
    is malformed or cut short, or the frame is not IP; `first` is False for a fragment without its transport
    header; `at` is where the transport header begins.
    """

    tags: tuple[int, ...]
    ethertype: int | None
    protocol: int | None = None
    first: bool = True
    extensions: int = 0
    at: int = 0


def decode(frame: bytes) -> Decoded:
    """Take an Ethernet frame apart."""
    tags: list[int] = []
    at = 12
    while True:
        if len(frame) < at + 2:
            return Decoded(tuple(tags), None)
        (ethertype,) = struct.unpack_from("!H", frame, at)
        if ethertype not in TPIDS:
            break
        tags.append(ethertype)
        at += 4
    at += 2
    if ethertype == IPV4:
        return _ipv4(frame, at, tuple(tags))
    if ethertype == IPV6:
        return _ipv6(frame, at, tuple(tags))
    return Decoded(tuple(tags), ethertype, at=at)


def _ipv4(frame: bytes, at: int, tags: tuple[int, ...]) -> Decoded:
    broken = Decoded(tags, IPV4)
    if len(frame) < at + 20 or frame[at] >> 4 != 4:
        return broken
    length = (frame[at] & 15) * 4
    if length < 20 or len(frame) < at + length:
        return broken
    offset = struct.unpack_from("!H", frame, at + 6)[0] & 0x1FFF
    return Decoded(tags, IPV4, frame[at + 9], offset == 0, 0, at + length)


def _ipv6(frame: bytes, at: int, tags: tuple[int, ...]) -> Decoded:
    if len(frame) < at + 40 or frame[at] >> 4 != 6:
        return Decoded(tags, IPV6)
    following, at, seen = frame[at + 6], at + 40, 0
    while following in EXTENSIONS:
        seen += 1
        if len(frame) < at + 8:  # none is shorter
            return Decoded(tags, IPV6, extensions=seen)
        kind, following = following, frame[at]
        if kind == FRAGMENT:
            length = 8
        elif kind == AUTHENTICATION:
            length = (frame[at + 1] + 2) * 4
        else:
            length = (frame[at + 1] + 1) * 8
        if len(frame) < at + length:
            return Decoded(tags, IPV6, extensions=seen)
        if kind == FRAGMENT and struct.unpack_from("!H", frame, at + 2)[0] & 0xFFF8:
            return Decoded(tags, IPV6, following, False, seen, at + length)
        at += length
    return Decoded(tags, IPV6, following, True, seen, at)
