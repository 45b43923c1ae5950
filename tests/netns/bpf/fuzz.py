"""Frames nobody would send, by the thousand, and a way to run a program on them quickly.

A frame is built header by header from what the programs look at, each header now and then wrong in one place,
and then cut, extended or flipped somewhere. All from one seed, so that a failure can be had again.
"""

from __future__ import annotations

import ctypes
import os
import random
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

FRAMES = int(os.environ.get("MAPEK_FUZZ_FRAMES", "8000"))
"""Frames for each program."""

SEED = int(os.environ.get("MAPEK_FUZZ_SEED", "8762"))
SHORTEST, LONGEST = 14, 1514
"""What PROG_TEST_RUN takes as a frame; below an Ethernet header it refuses."""

XDP_DROP, XDP_PASS, XDP_TX = 1, 2, 3
TC_UNSPEC = 0xFFFFFFFF
_PROG_TEST_RUN = 10
_ROOM = 2048

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_NUMBER = {"x86_64": 321, "aarch64": 280}[os.uname().machine]


class Runner:
    """Runs one loaded program on frame after frame, with one system call and no allocation each."""

    def __init__(self, fd: int) -> None:
        self._in = ctypes.create_string_buffer(_ROOM)
        self._out = ctypes.create_string_buffer(_ROOM)
        self._attr = ctypes.create_string_buffer(80)
        self._fd = fd

    def __call__(self, frame: bytes) -> tuple[int, bytes]:
        """The verdict and the frame afterwards. Raises OSError when the kernel refuses the frame."""
        size = len(frame)
        ctypes.memmove(self._in, frame, size)
        struct.pack_into(
            "=IIIIQQII", self._attr, 0, self._fd, 0, size, _ROOM, ctypes.addressof(self._in),
            ctypes.addressof(self._out), 1, 0,
        )  # fmt: skip
        if _libc.syscall(_NUMBER, _PROG_TEST_RUN, self._attr, 80) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        retval, _, written = struct.unpack_from("=III", self._attr, 4)
        return retval, self._out.raw[:written]


@dataclass(frozen=True)
class Addresses:
    """Who talks to whom: a few, so that programs that look them up find some."""

    macs: tuple[bytes, ...]
    v4: tuple[bytes, ...]
    v6: tuple[bytes, ...]


ANYBODY = Addresses(
    (b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02", b"\xff" * 6),
    (bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]), bytes([192, 0, 2, 9])),
    (b"\xfd" + bytes(14) + b"\1", b"\xfd" + bytes(14) + b"\2", b"\xfe\x80" + bytes(13) + b"\x09"),
)

Payload = Callable[[random.Random, int, int], bytes]
"""Makes a transport header and what follows: from the source of chance, the IP version and the protocol."""


class Frames:
    """An endless source of frames.

    Args:
        seed: the same one gives the same frames.
        who: addresses to draw from.
        payload: what an IP packet carries.
        other: bodies by EtherType, for programs that look at others than IP.
        tame: the share of frames that are whole, without tags, options and extension headers, from an odd
            address of `who` to the even one before it, and carry `protocol`: what a program with a narrow
            taste sees at all. They are mangled as the others are.
    """

    def __init__(
        self,
        seed: int,
        who: Addresses = ANYBODY,
        payload: Payload | None = None,
        other: dict[int, Callable[[random.Random], bytes]] | None = None,
        tame: float = 0.0,
        protocol: int = 17,
    ) -> None:
        self._chance = random.Random(seed)
        self._who = who
        self._payload = payload or _transport
        self._other = other or {}
        self._tame, self._protocol_of_tame = tame, protocol

    def take(self, count: int, least: int = SHORTEST) -> Iterator[bytes]:
        """So many frames of `least` to `LONGEST` bytes."""
        for _ in range(count):
            frame = self._mangled(self._frame())[:LONGEST]
            if len(frame) < least:
                frame += self._chance.randbytes(least - len(frame))
            yield frame

    def _frame(self) -> bytes:
        chance, who = self._chance, self._who
        if chance.random() < self._tame:
            return self._whole()
        tags = chance.choices((0, 1, 2, 3, 5), (12, 4, 3, 2, 1))[0]
        head = chance.choice(who.macs) + chance.choice(who.macs)
        head += b"".join(
            struct.pack("!HH", chance.choice((0x8100, 0x88A8)), chance.getrandbits(16)) for _ in range(tags)
        )
        kinds = [0x0800, 0x86DD, *self._other]
        kind = chance.choice(kinds) if chance.random() < 0.95 else chance.choice((0x0806, 0x9100, 0, 0x05DC))
        if kind == 0x0800:
            body = self._ipv4()
        elif kind == 0x86DD:
            body = self._ipv6()
        elif kind in self._other:
            body = self._other[kind](chance)
        else:
            body = chance.randbytes(chance.randrange(80))
        return head + struct.pack("!H", kind) + body

    def _whole(self) -> bytes:
        chance, who, protocol = self._chance, self._who, self._protocol_of_tame
        macs = who.macs[0] + who.macs[1]
        version = chance.choice((4, 6))
        body = self._payload(chance, version, protocol)
        known = who.v4 if version == 4 else who.v6
        at = chance.randrange(len(known) // 2) * 2
        if version == 6:
            head = struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + known[at + 1] + known[at]
            return macs + b"\x86\xdd" + head + body
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 7, 0x4000, 64, protocol, 0)
        head += known[at + 1] + known[at]
        return macs + b"\x08\0" + head[:10] + struct.pack("!H", ones_complement(head)) + head[12:] + body

    def _ipv4(self) -> bytes:
        chance, who = self._chance, self._who
        protocol = self._protocol(1)
        options = chance.choices((0, 1, 4, 10), (16, 1, 1, 1))[0]
        body = self._payload(chance, 4, protocol)
        first = 0x45 + options
        if chance.random() < 0.04:
            first = chance.getrandbits(8)
        fragment = chance.choices((0, 0x4000, 0x2000, 0x2007, 0x0123, 0x8000), (12, 6, 1, 1, 1, 1))[0]
        length = 20 + options * 4 + len(body)
        if chance.random() < 0.05:
            length = chance.getrandbits(16)
        head = struct.pack(
            "!BBHHHBBH", first, chance.choice((0, 0xC0, 0xB8)), length, chance.getrandbits(16), fragment,
            chance.choice((1, 64, 255)), protocol, 0,
        )  # fmt: skip
        head += chance.choice(who.v4) + chance.choice(who.v4) + chance.randbytes(options * 4)
        check = 0 if chance.random() < 0.1 else ones_complement(head)
        return head[:10] + struct.pack("!H", check) + head[12:] + body

    def _ipv6(self) -> bytes:
        chance, who = self._chance, self._who
        protocol = self._protocol(58)
        body = self._payload(chance, 6, protocol)
        following = protocol
        for _ in range(chance.choices((0, 1, 2, 3, 4, 5, 7), (14, 4, 2, 2, 2, 2, 1))[0]):
            kind = chance.choice((0, 43, 44, 51, 60))
            if kind == 44:
                offset = chance.choice((0, 0, 0, 1, 6, 8, 0xFFF9))
                body = struct.pack("!BBHI", following, chance.getrandbits(8), offset, 7) + body
            else:
                units = chance.choices((0, 1, 4, 255), (12, 3, 1, 1))[0]
                long = units * 4 + 8 if kind == 51 else units * 8 + 8
                # one that says it is longer than it is
                there = long if units < 255 or chance.random() < 0.3 else 8
                body = bytes([following, units]) + chance.randbytes(there - 2) + body
            following = kind
        length = len(body) if chance.random() < 0.95 else chance.getrandbits(16)
        first = 0x60 if chance.random() < 0.96 else chance.getrandbits(8)
        head = struct.pack("!BBHHBB", first, chance.getrandbits(8), 0, length & 0xFFFF, following, 64)
        return head + chance.choice(who.v6) + chance.choice(who.v6) + body

    def _protocol(self, icmp: int) -> int:
        chance = self._chance
        usual = (6, 17, icmp)
        return chance.choice(usual) if chance.random() < 0.85 else chance.choice((1, 58, 132, 59, 2, 41, 255))

    def _mangled(self, frame: bytes) -> bytes:
        chance = self._chance
        what = chance.random()
        if what < 0.5 or not frame:
            return frame
        if what < 0.75:
            return frame[: chance.randrange(len(frame) + 1)]
        if what < 0.8:
            return frame + chance.randbytes(chance.randrange(1, 60))
        if what < 0.95:
            changed = bytearray(frame)
            for _ in range(chance.choice((1, 1, 2, 4))):
                changed[chance.randrange(len(changed))] = chance.choice((0, 255, chance.getrandbits(8)))
            return bytes(changed)
        if what < 0.98:
            cut = sorted((chance.randrange(len(frame)), chance.randrange(len(frame))))
            return frame[: cut[0]] + frame[cut[1] :]
        return frame[:12] + chance.randbytes(chance.randrange(2, 120))


def _transport(chance: random.Random, version: int, protocol: int) -> bytes:
    return chance.randbytes(chance.choice((0, 4, 8, 20, 28, 64)))


def ones_complement(data: bytes) -> int:
    """RFC 1071 over an even number of bytes."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) // 2 * 2]))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def unchanged(run: Runner, frames: Iterable[bytes], verdict: int) -> None:
    """Run all frames; each must get this verdict and stay as it is, or AssertionError shows it."""
    for frame in frames:
        got = run(frame)
        assert got == (verdict, frame), f"verdict {got[0]}, of {frame.hex()} was made {got[1].hex()}"


def first_wrong(frames: Iterable[bytes], wrong: Callable[[bytes], bool]) -> str:
    """The first frame, in hex, for which counting it alone is wrong: for the message of a failed total."""
    return next((frame.hex() for frame in frames if wrong(frame)), "none of them alone")
