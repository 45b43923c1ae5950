"""link_watch on malformed frames: it answers nothing but a whole STAMP packet of a peer, and passes all else on.

The judge of what is whole is written from RFC 791, 8200, 768 and 8762 and from docs/SECURITY.md, not from the C.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

import pytest

from mapek.bpf import ObjectSpec, load, object_path
from mapek.sensors.link_watch_layout import IN_USE, PLAIN
from mapek.sensors.stamp import plain_template, template
from tests.netns.bpf.fuzz import FRAMES, SEED, XDP_DROP, XDP_PASS, XDP_TX, Addresses, Frames, Runner
from tests.netns.sensors.programs import OWN_KEY, PEER_EPOCH, PEER_KEY, Bench
from tests.support.decode_packet import decode
from tests.support.stamp import checksum, parse, payload, siphash24
from tests.support.stamp_plain import request

PORT = 862
PAIRS = {"keyed": ("10.0.0.1", "10.0.0.2"), "plain": ("10.0.1.1", "10.0.1.2"), "keyed6": ("fd00::1", "fd00::2"),
         "plain6": ("fd00:1::1", "fd00:1::2")}  # fmt: skip
WHO = Addresses(
    (b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"),
    tuple(IPv4Address(one).packed for name in ("keyed", "plain") for one in PAIRS[name]),
    tuple(IPv6Address(one).packed for name in ("keyed6", "plain6") for one in PAIRS[name]),
)
DROPPED = {"link_watch": XDP_DROP, "link_watch_tc": 2}
PASSED = {"link_watch": XDP_PASS, "link_watch_tc": 0xFFFFFFFF}
REPLIED = {"link_watch": XDP_TX, "link_watch_tc": 7}


class Stamps:
    """UDP with STAMP in it, more often whole than not; sequence numbers and epochs go up, so that none is old."""

    def __init__(self) -> None:
        self.seq = 0

    def __call__(self, chance: random.Random, version: int, protocol: int) -> bytes:
        self.seq += 1
        kind = chance.random()
        if kind < 0.4:
            seq = self.seq if chance.random() < 0.9 else self.seq - chance.choice((1, 30, 200))
            fields: dict[str, int] = {
                "seq": max(seq, 0),
                "epoch": PEER_EPOCH,
                "role": chance.choice((0, 0, 0, 1, 2)),
            }
            if chance.random() < 0.2:
                fields |= {"tlv_type": chance.getrandbits(8), "tlv_length": chance.choice((24, 20, 65535))}
            body = payload(chance.choice((PEER_KEY, PEER_KEY, OWN_KEY, None)), **fields)
        elif kind < 0.8:
            body = request(self.seq, more=chance.randbytes(chance.choice((0, 0, 1, 28, 300))))
        elif kind < 0.9:
            body = chance.choice((template(0), plain_template(1)))
        else:
            body = chance.randbytes(chance.randrange(120))
        length = 8 + len(body) if chance.random() < 0.9 else chance.choice((0, 8, 51, 52, 79, 80, 81, 65535))
        ports = chance.choices(((4000, PORT), (PORT, 4000), (PORT, PORT), (4000, 4001)), (8, 2, 1, 1))[0]
        return struct.pack("!HHHH", *ports, length, chance.getrandbits(16)) + body


def judge(frame: bytes) -> str:
    """What has to become of a frame.

    "pass": not for us; "reply": answered, unless its number is old; "taken": for us, but not authentic;
    "foreign": an answer that nobody waits for, which is counted and passed on.
    """
    found = decode(frame)
    if found.tags or found.protocol != 17 or not found.first or found.extensions:
        return "pass"
    v6 = found.ethertype == 0x86DD
    if v6:
        length = struct.unpack_from("!H", frame, 18)[0]
        source, dest = str(IPv6Address(frame[22:38])), str(IPv6Address(frame[38:54]))
    else:
        if found.at != 34 or struct.unpack_from("!H", frame, 20)[0] & 0x3FFF:
            return "pass"
        length = struct.unpack_from("!H", frame, 16)[0] - 20
        source, dest = str(IPv4Address(frame[26:30])), str(IPv4Address(frame[30:34]))
    name = next((name for name, pair in PAIRS.items() if pair == (dest, source)), None)
    if name is None or len(frame) < found.at + 8:
        return "pass"
    from_port, to_port, udp_length = struct.unpack_from("!HHH", frame, found.at)
    if PORT not in (from_port, to_port) or udp_length != length or len(frame) < found.at + udp_length:
        return "pass"
    data = frame[found.at + 8 : found.at + udp_length]
    if name.startswith("plain"):
        if len(data) < 44 or not (v6 or checksum(frame[14:34]) == 0):
            return "pass"
        if to_port != PORT:
            return "foreign"
        return "reply" if from_port != PORT else "pass"
    if len(data) != 72 or data[45] != 253 or data[46:48] != b"\0\x18":
        return "pass"
    authentic = data[64:] == struct.pack("<Q", siphash24(PEER_KEY, data[:64])) and data[56] == 0
    return "reply" if authentic else "taken"


def whole_enough(program: str, frames: Iterator[bytes]) -> Iterator[bytes]:
    """What the kernel takes for a test run: on tc an IP frame has its IP header."""
    for frame in frames:
        if program == "link_watch_tc":
            least = {b"\x08\x00": 34, b"\x86\xdd": 54}.get(frame[12:14], 14)
            if len(frame) < least:
                continue
        yield frame


@pytest.mark.parametrize("program", ["link_watch", "link_watch_tc"])
def test_only_what_is_whole_is_answered(program: str):
    with load(
        ObjectSpec.read(object_path("link_watch")), programs={program}, max_entries={"configs": 8, "paths": 8}
    ) as loaded:
        bench = Bench(loaded, program, *PAIRS["keyed"])
        for index, (name, pair) in enumerate(PAIRS.items()):
            flags = IN_USE | PLAIN if name.startswith("plain") else IN_USE
            bench.configure(index, *pair, flags=flags, reply_rate=4_000_000_000, reply_burst=10)
        run = Runner(loaded.programs[program].fd)
        source = Frames(SEED, WHO, Stamps(), tame=0.7)
        seen = dict.fromkeys(("pass", "reply", "taken", "foreign"), 0)
        replies = 0
        for frame in whole_enough(program, source.take(FRAMES)):
            should = judge(frame)
            verdict, out = run(frame)
            seen[should] += 1
            if should in ("pass", "foreign"):
                assert (verdict, out) == (PASSED[program], frame), frame.hex()
            elif verdict == REPLIED[program]:
                assert should == "reply", frame.hex()
                assert len(out) == len(frame)
                check_reply(program, frame, out)
                replies += 1
            else:
                assert verdict == DROPPED[program], frame.hex()
        states = [bench.counts(index) for index in range(len(PAIRS))]
    total = {kind: sum(state.get(kind, 0) for state in states) for state in states for kind in state}
    # each packet that was for a peer is counted, once, as what became of it
    assert total.pop("reflected") == replies
    assert sum(total.values()) == seen["taken"] + seen["foreign"] + seen["reply"] - replies
    assert {"forged", "rejected"} <= set(total) <= {"forged", "rejected", "replayed"}
    # and there were enough of each kind to mean something
    assert min(seen.values()) > FRAMES // 100, seen
    assert replies > seen["reply"] * 0.7


def check_reply(program: str, frame: bytes, out: bytes) -> None:
    """The reply goes back the way the request came, whole."""
    assert (out[:6], out[6:12]) == (frame[6:12], frame[:6])
    at = 34 if frame[12:14] == b"\x08\x00" else 54
    length = struct.unpack_from("!H", frame, at + 4)[0]
    asked, told = parse(frame[: at + length]), parse(out[: at + length])
    assert (told.source, told.dest, told.ports) == (asked.dest, asked.source, asked.ports[::-1])
    assert told.data[24:28] == asked.data[:4]
    assert out[at + length :] == frame[at + length :]
    if program == "link_watch":
        assert told.sound, frame.hex()
