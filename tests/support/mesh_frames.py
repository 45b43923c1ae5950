"""Frames as a mesh carries them, for mesh_filter's tests: built by hand, apart from both decoders."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

MAC_A = bytes.fromhex("02000000000a")
MAC_B = bytes.fromhex("02000000000b")
HOP = bytes.fromhex("020000000099")
TO = bytes.fromhex("0200000000ff")


def ether(kind: int, body: bytes, source: bytes = MAC_A, to: bytes = TO, tags: tuple[int, ...] = ()) -> bytes:
    """An Ethernet frame with VLAN tags of these types."""
    head = to + source + b"".join(struct.pack("!HH", tag, 7) for tag in tags)
    return head + struct.pack("!H", kind) + body


def ip(source: str, body: bytes = bytes(20), protocol: int = 59, hops: int = 64, options: int = 0) -> bytes:
    """An IPv4 or IPv6 packet, as the address says."""
    address = ip_address(source)
    if isinstance(address, IPv4Address):
        ihl = 5 + options
        size = ihl * 4 + len(body)
        head = struct.pack("!BBHHHBBH", 0x40 | ihl, 0, size, 1, 0, hops, protocol, 0)
        return head + address.packed + IPv4Address("10.9.9.9").packed + bytes(4 * options) + body
    head = struct.pack("!IHBB", 6 << 28, len(body), protocol, hops)
    return head + address.packed + IPv6Address("fd09::9").packed + body


def frame(source: str, mac: bytes = MAC_A, tags: tuple[int, ...] = (), **packet: int) -> bytes:
    """An IP packet on Ethernet."""
    return ether(0x86DD if ":" in source else 0x0800, ip(source, **packet), mac, tags=tags)


def udp(source: str, ports: tuple[int, int], hops: int = 64, options: int = 0) -> bytes:
    """UDP from one port to another on Ethernet."""
    body = struct.pack("!HHHH", *ports, 28, 0) + bytes(20)
    return ether(0x86DD if ":" in source else 0x0800, ip(source, body, 17, hops, options))


def discovery(source: str, kind: int = 135, hops: int = 255) -> bytes:
    """An ICMPv6 message of neighbour discovery on Ethernet."""
    return ether(0x86DD, ip(source, bytes([kind]) + bytes(23), 58, hops))


def batadv(kind: int, inner: bytes, version: int = 15, size: int | None = None) -> bytes:
    """A batman-adv packet from the last hop, with its header filled up to `size`."""
    sizes = {0x40: 10, 0x42: 18, 0x01: 14, 0x41: 20, 0x00: 24, 0x04: 20, 0x03: 16}
    room = sizes.get(kind, 20) if size is None else size
    header = bytes([kind, version, 50]) + b"\x11" * (room - 3)
    return ether(0x4305, header + inner, HOP)
