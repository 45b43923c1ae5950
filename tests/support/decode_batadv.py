"""A reference decoder of batman-adv's control frames, written from the kernel's batadv_packet.h (version 15).

Plain and slow, and not from bpf/programs/batadv.bpf.c. Aggregation is walked as batman-adv walks it: an OGM counts if
it is there with all its TVLVs, and the first that is not ends the frame. More than what fits into 512 bytes, which is
what batman-adv aggregates, is not looked for.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

IV_OGM, ELP, OGM2 = 0x00, 0x03, 0x04
VERSION = 15
ETHERTYPE = 0x4305
AGGREGATED = 512


class Control(NamedTuple):
    """One OGM or ELP; addresses are six bytes."""

    kind: str
    originator: bytes
    neighbour: bytes
    seqno: int


def decode(frame: bytes) -> list[Control]:
    """What an Ethernet frame tells of the mesh: nothing if it is tagged, foreign, or of another version."""
    if len(frame) < 16 or struct.unpack_from("!H", frame, 12)[0] != ETHERTYPE:
        return []
    source, body = frame[6:12], frame[14:]
    if body[1] != VERSION:
        return []
    if body[0] == ELP:
        if len(body) < 16:
            return []
        return [Control("elp", body[2:8], source, struct.unpack_from("!I", body, 8)[0])]
    if body[0] == IV_OGM:
        return _walk(body, "iv_ogm", IV_OGM, source, 24, 22)
    if body[0] == OGM2:
        return _walk(body, "ogm2", OGM2, source, 20, 14)
    return []


def _walk(body: bytes, kind: str, number: int, source: bytes, size: int, length_at: int) -> list[Control]:
    found: list[Control] = []
    while len(body) >= size and len(found) < AGGREGATED // size and body[0] == number and body[1] == VERSION:
        tvlv = struct.unpack_from("!H", body, length_at)[0]
        if tvlv % 2 or size + tvlv > len(body):
            break
        found.append(Control(kind, body[8:14], source, struct.unpack_from("!I", body, 4)[0]))
        body = body[size + tvlv :]
    return found


def iv_ogm(originator: bytes, seqno: int, tvlv: bytes = b"", tvlv_len: int | None = None) -> bytes:
    """An OGM of B.A.T.M.A.N. IV, without Ethernet header."""
    length = len(tvlv) if tvlv_len is None else tvlv_len
    head = struct.pack("!BBBBI", IV_OGM, VERSION, 50, 0, seqno & 0xFFFFFFFF)
    return head + originator + bytes(6) + struct.pack("!BBH", 0, 255, length) + tvlv


def ogm2(originator: bytes, seqno: int, tvlv: bytes = b"", tvlv_len: int | None = None) -> bytes:
    """An OGM of B.A.T.M.A.N. V, without Ethernet header."""
    length = len(tvlv) if tvlv_len is None else tvlv_len
    head = struct.pack("!BBBBI", OGM2, VERSION, 50, 0, seqno & 0xFFFFFFFF)
    return head + originator + struct.pack("!HI", length, 100) + tvlv


def elp(originator: bytes, seqno: int, interval_ms: int = 500) -> bytes:
    """An ELP of B.A.T.M.A.N. V, without Ethernet header."""
    return struct.pack("!BB6sII", ELP, VERSION, originator, seqno & 0xFFFFFFFF, interval_ms)


def frame(source: bytes, *parts: bytes, tag: int | None = None, kind: int = ETHERTYPE) -> bytes:
    """A broadcast frame of `source`, with a VLAN tag (a TPID) if wanted."""
    head = b"\xff" * 6 + source + (b"" if tag is None else struct.pack("!HH", tag, 7))
    return head + struct.pack("!H", kind) + b"".join(parts)
