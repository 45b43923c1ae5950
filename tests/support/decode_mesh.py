"""The reference for mesh_filter: whose a frame is, decoded in Python from the standards and not from the C program.

`decode` says what a frame is and which addresses speak for it; `attribute` looks them up in plain tables, and `drops`
says what must become of the frame.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

Form = Literal["data", "vital", "control", "undecoded"]
Network = IPv4Network | IPv6Network

VLAN = (0x8100, 0x88A8)
CONTROL = {0x00: "OGM", 0x03: "ELP", 0x04: "OGM2", 0x43: "ICMP", 0x44: "TVLV"}
CARRIERS = {0x40: 10, 0x42: 18, 0x01: 14}
"""batman-adv's packets with an Ethernet frame inside: type to header size."""


@dataclass(frozen=True)
class Decoded:
    """`address` is the innermost IP source, `mac` the innermost Ethernet source; None where there is none."""

    form: Form
    address: IPv4Address | IPv6Address | None = None
    mac: bytes | None = None


def decode(frame: bytes, probe_port: int = 862) -> Decoded:
    """What a frame of any length is."""
    inner = _strip(frame)
    if inner is None:
        return Decoded("undecoded")
    kind, body = inner
    if kind == 0x4305:
        if len(body) < 2 or body[1] != 15:
            return Decoded("undecoded")
        if body[0] in CONTROL:
            return Decoded("control")
        if body[0] not in CARRIERS:
            return Decoded("undecoded")
        frame = body[CARRIERS[body[0]] :]
        inner = _strip(frame)
        if inner is None:
            return Decoded("undecoded")
        kind, body = inner
    mac = frame[6:12]
    if frame[:5] == b"\x01\x80\xc2\x00\x00" and frame[5] < 16:
        return Decoded("vital", None, mac)
    if kind == 0x0800:
        return _ipv4(body, mac, probe_port)
    if kind == 0x86DD:
        return _ipv6(body, mac, probe_port)
    return Decoded("vital" if kind in (0x0806, 0x888E, 0x88CC) else "data", None, mac)


def _strip(frame: bytes) -> tuple[int, bytes] | None:
    """The EtherType after at most two VLAN tags, 0 where a tag is cut short, and what follows it."""
    if len(frame) < 14:
        return None
    (kind,), rest = struct.unpack_from("!H", frame, 12), frame[14:]
    for _ in range(2):
        if kind not in VLAN:
            break
        if len(rest) < 4:
            return 0, b""
        (kind,), rest = struct.unpack_from("!H", rest, 2), rest[4:]
    return kind, rest


def _ipv4(body: bytes, mac: bytes, port: int) -> Decoded:
    if len(body) < 20 or body[0] >> 4 != 4 or body[0] & 15 < 5:
        return Decoded("data", None, mac)
    whole = struct.unpack_from("!H", body, 6)[0] & 0x3FFF == 0
    vital = body[9] == 17 and body[0] == 0x45 and whole and _probe(body[20:], body[8], port)
    return Decoded("vital" if vital else "data", IPv4Address(body[12:16]), mac)


def _ipv6(body: bytes, mac: bytes, port: int) -> Decoded:
    if len(body) < 40 or body[0] >> 4 != 6:
        return Decoded("data", None, mac)
    following, hops, rest = body[6], body[7], body[40:]
    discovery = following == 58 and hops == 255 and len(rest) >= 8 and rest[0] in (135, 136)
    vital = discovery or (following == 17 and _probe(rest, hops, port))
    return Decoded("vital" if vital else "data", IPv6Address(body[8:24]), mac)


def _probe(udp: bytes, hops: int, port: int) -> bool:
    if len(udp) < 8 or not port:
        return False
    source, to = struct.unpack_from("!HH", udp)
    return to == port or (source == port and hops == 255)


def attribute(
    found: Decoded, prefixes: Mapping[Network, int], macs: Mapping[bytes, int], mac_first: bool = False
) -> int:
    """The identity of what was decoded; 0: unknown."""
    if found.form in ("control", "undecoded"):
        return 0
    fitting = [
        (network.prefixlen, number)
        for network, number in prefixes.items()
        if found.address is not None and found.address in network
    ]
    prefix = max(fitting)[1] if fitting else 0
    mac = macs.get(found.mac or b"", 0)
    return (mac or prefix) if mac_first else (prefix or mac)


def drops(found: Decoded, verdict: str) -> bool:
    """Must the frame of an identity with that verdict ("allow", "deny") go?"""
    return found.form == "data" and verdict == "deny"
