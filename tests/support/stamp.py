"""STAMP probes written independently of `mapek`: SipHash-2-4 by its paper, packets by RFC 8762, checksums.

What the kernel's programs do is held against this and not against a Python copy of their own code.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

Address = IPv4Address | IPv6Address
PORT = 862
PROBE, REPLY = 0, 1
UP, ADMIN_DOWN = 0, 1
_MASK = (1 << 64) - 1

# RFC 8762, 4.2.1 and 4.3.1 (44 bytes, the reflector's form), then the TLV of RFC 8972 with our value
_PAYLOAD = struct.Struct("!IIIHH II I II HH B3x BBH QBBHI")
FIELDS = (
    "seq sec nsec error_estimate ssid received_sec received_nsec sender_seq sender_sec sender_nsec "
    "sender_error_estimate mbz sender_ttl tlv_flags tlv_type tlv_length epoch role peer_state reserved "
    "reserved4"
).split()
SIZE = _PAYLOAD.size + 8


def siphash24(key: tuple[int, int], data: bytes) -> int:
    """SipHash-2-4 of any bytes (Aumasson and Bernstein 2012)."""
    k0, k1 = key
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def rotated(x: int, by: int) -> int:
        return (x << by | x >> (64 - by)) & _MASK

    def rounds(times: int) -> None:
        for _ in range(times):
            v[0] = (v[0] + v[1]) & _MASK
            v[2] = (v[2] + v[3]) & _MASK
            v[1], v[3] = rotated(v[1], 13) ^ v[0], rotated(v[3], 16) ^ v[2]
            v[0] = (rotated(v[0], 32) + v[3]) & _MASK
            v[2] = (v[2] + v[1]) & _MASK
            v[1], v[3] = rotated(v[1], 17) ^ v[2], rotated(v[3], 21) ^ v[0]
            v[2] = rotated(v[2], 32)

    whole = len(data) // 8 * 8
    last = data[whole:].ljust(7, b"\0") + bytes([len(data) & 0xFF])
    for word in (*struct.unpack(f"<{whole // 8}Q", data[:whole]), *struct.unpack("<Q", last)):
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def payload(key: tuple[int, int] | None, **fields: int) -> bytes:
    """72 bytes; fields that are not given are what a sender's probe has. Unsigned without a key."""
    values = dict.fromkeys(FIELDS, 0) | {
        "error_estimate": 0x4001, "ssid": 1, "tlv_flags": 0x80, "tlv_type": 253, "tlv_length": 24, **fields
    }  # fmt: skip
    if unknown := set(values) - set(FIELDS):
        raise ValueError(f"no such fields: {unknown}")
    body = _PAYLOAD.pack(*(values[name] for name in FIELDS))
    return body + struct.pack("<Q", siphash24(key, body) if key is not None else 0)


@dataclass(frozen=True)
class Datagram:
    """One decoded frame; `sound` says whether its IP and UDP checksums are right."""

    macs: tuple[bytes, bytes]
    source: Address
    dest: Address
    ttl: int
    ports: tuple[int, int]
    data: bytes
    sound: bool

    @property
    def fields(self) -> dict[str, int]:
        """The fields of the probe in it."""
        return dict(zip(FIELDS, _PAYLOAD.unpack(self.data[: _PAYLOAD.size]), strict=True))

    def signed_with(self, key: tuple[int, int]) -> bool:
        """Is the tag that of `key`?"""
        body = self.data[: _PAYLOAD.size]
        return bool(self.data[_PAYLOAD.size :] == struct.pack("<Q", siphash24(key, body)))


def checksum(data: bytes) -> int:
    """RFC 1071, of an even or odd number of bytes; 0 over data that holds its own right checksum."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) & 1)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo(source: Address, dest: Address, length: int) -> bytes:
    """The pseudo header of UDP."""
    form = "!BBH" if source.version == 4 else "!IHBB"
    values = (0, 17, length) if source.version == 4 else (length, 0, 0, 17)
    return source.packed + dest.packed + struct.pack(form, *values)


def frame(
    source: str,
    dest: str,
    data: bytes,
    *,
    ports: tuple[int, int] = (45000, PORT),
    ttl: int = 64,
    macs: tuple[bytes, bytes] = (b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"),
    udp_checksum: int | None = None,
    fragment: int = 0,
    options: bytes = b"",
) -> bytes:
    """An Ethernet frame (destination MAC first in `macs`) with UDP over IPv4 or IPv6."""
    one, other = ip_address(source), ip_address(dest)
    udp = struct.pack("!HHHH", *ports, 8 + len(data), 0) + data
    if udp_checksum is None:
        udp_checksum = checksum(pseudo(one, other, len(udp)) + udp) or 0xFFFF
    udp = udp[:6] + struct.pack("!H", udp_checksum) + udp[8:]
    if one.version == 4:
        head = struct.pack(
            "!BBHHHBBH4s4s", 0x45 + len(options) // 4, 0, 20 + len(options) + len(udp), 7, fragment, ttl, 17, 0,
            one.packed, other.packed,
        ) + options  # fmt: skip
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
        kind = b"\x08\x00"
    else:
        head = struct.pack("!IHBB16s16s", 6 << 28, len(udp), 17, ttl, one.packed, other.packed)
        kind = b"\x86\xdd"
    return macs[0] + macs[1] + kind + head + udp


def parse(raw: bytes) -> Datagram:
    """Take a frame of `frame`'s form apart."""
    if raw[12:14] == b"\x08\x00":
        head, udp = raw[14:34], raw[34:]
        one: Address = IPv4Address(head[12:16])
        other: Address = IPv4Address(head[16:20])
        ttl, sound = head[8], checksum(head) == 0 and head[2:4] == struct.pack("!H", 20 + len(udp))
    else:
        head, udp = raw[14:54], raw[54:]
        one, other, ttl, sound = IPv6Address(head[8:24]), IPv6Address(head[24:40]), head[7], True
    source_port, dest_port, length, _ = struct.unpack("!HHHH", udp[:8])
    sound = sound and length == len(udp) and checksum(pseudo(one, other, length) + udp) == 0
    return Datagram((raw[:6], raw[6:12]), one, other, ttl, (source_port, dest_port), udp[8:], sound)
