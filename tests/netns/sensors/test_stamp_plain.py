"""STAMP in unauthenticated mode by PROG_TEST_RUN: whom the reflector answers and how, which answers count."""

from __future__ import annotations

import struct
import time

import pytest

from mapek.sensors.link_watch_layout import ANSWERS, IN_USE, PLAIN, STATEFUL
from mapek.sensors.stamp import plain_template, template
from tests.netns.sensors.programs import OWN_KEY, PAIRS, PEER_KEY, Bench
from tests.support.stamp import checksum, frame, parse, payload
from tests.support.stamp_plain import PTP, Reply, parse_reply, reply, request, stamp, wall_ns

PROGRAMS = ["link_watch", "link_watch_tc"]
both = pytest.mark.parametrize("program", PROGRAMS)
NO_KEY = (0, 0)


class Plain(Bench):
    """A bench whose peer speaks RFC 8762 only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.configs[0]["flags"] = IN_USE | ANSWERS | PLAIN
        self.configs[0]["wall_ns"] = time.time_ns() - time.monotonic_ns()

    def ask_plain(self, data: bytes, **how: object) -> tuple[str, Reply]:
        """Verdict and reply to a sender's packet."""
        verdict, out = self.run(frame(self.peer, self.local, data, **how))  # type: ignore[arg-type]
        return verdict, parse_reply(parse(out).data)


@pytest.fixture
def plain(bench):
    def make(program: str, family: str = "IPv4") -> Plain:
        return Plain(bench(program, family).loaded, program, *PAIRS[family])

    return make


@both
@pytest.mark.parametrize("family", PAIRS)
@pytest.mark.parametrize("ptp", [False, True], ids=["ntp", "ptp"])
def test_a_request(plain, program, family, ptp):
    one = plain(program, family)
    error = 0x8A05 | (PTP if ptp else 0)
    data = request(41, (3, 4), error, ssid=9)
    before = time.time_ns()
    sent = frame(one.peer, one.local, data, ttl=77)
    verdict, raw = one.run(sent)
    after = time.time_ns()
    assert verdict == "reply"
    assert len(raw) == len(sent)
    out = parse(raw)
    assert out.sound
    assert (str(out.source), str(out.dest), out.ports, out.ttl) == (one.local, one.peer, (862, 45000), 255)
    assert out.macs == (sent[6:12], sent[:6])
    found = parse_reply(out.data)
    told = wall_ns(*found.sent, ptp)
    assert before - 2e6 < told < after + 2e6
    assert found == Reply(
        seq=41, sent=found.sent, error=0x1601 | (PTP if ptp else 0), ssid=9, received=found.sent, sender_seq=41,
        sender_sent=(3, 4), sender_error=error, mbz=0, sender_ttl=77, mbz3=bytes(3), more=b"",
    )  # fmt: skip
    assert one.counts() == {"reflected": 1}


@both
@pytest.mark.parametrize("family", PAIRS)
def test_a_reply_is_as_long_as_the_request_and_returns_what_follows(plain, program, family):
    one = plain(program, family)
    room = 1500 - (48 if ":" in one.local else 28)
    for length in (*range(45, 150), *range(room - 40, room + 1)):
        more = bytes((7 * i + length) & 255 for i in range(length - 44))
        sent = frame(one.peer, one.local, request(length, more=more))
        verdict, raw = one.run(sent)
        assert verdict == "reply", length
        assert len(raw) == len(sent)
        assert parse(raw).sound, length
        assert parse_reply(parse(raw).data).more == more


@both
def test_padding_of_the_frame_is_not_the_packets(plain, program):
    one = plain(program)
    sent = frame(one.peer, one.local, request(1)) + b"trailing"
    verdict, raw = one.run(sent)
    assert verdict == "reply"
    assert raw.endswith(b"trailing")
    assert parse(raw[:-8]).sound


@both
def test_tlvs_come_back_as_not_recognised(plain, program):
    """RFC 8972: the sender sets the U flag, and one that knows no TLVs leaves it set."""
    one = plain(program)
    tlvs = bytes([0x80, 1, 0, 4]) + b"xxxx" + bytes([0x80, 253, 0, 24]) + bytes(24)
    verdict, found = one.ask_plain(request(1, more=tlvs))
    assert (verdict, found.more) == ("reply", tlvs)
    # a probe of ours is nothing else to it, whoever signed it
    verdict, found = one.ask_plain(payload(PEER_KEY, seq=5))
    assert (verdict, found.sender_seq) == ("reply", 5)
    assert one.counts() == {"reflected": 2}


@both
def test_stateful_counts_each_session_from_0(plain, program):
    one = plain(program)
    one.configs[0]["flags"] |= STATEFUL
    numbers = [one.ask_plain(request(seq))[1].seq for seq in (5, 6, 9)]
    assert numbers == [0, 1, 2]
    assert one.ask_plain(request(0), ports=(45001, 862))[1].seq == 0
    assert one.ask_plain(request(1, ssid=3), ports=(45001, 862))[1].seq == 0
    assert one.ask_plain(request(2, ssid=3), ports=(45001, 862))[1].seq == 1


@both
def test_above_the_rate_nothing_is_answered(plain, program):
    one = plain(program)
    one.configs[0]["reply_rate"], one.configs[0]["reply_burst"] = 1, 5
    sent = frame(one.peer, one.local, request(1))
    assert [one.run(sent)[0] for _ in range(8)] == ["reply"] * 5 + ["dropped"] * 3
    assert one.counts() == {"reflected": 5, "limited": 3}


def with_lengths(raw: bytes, ip: int = 0, udp: int = 0) -> bytes:
    """An IPv4 frame that lies about its lengths, with the right header checksum."""
    total, length = struct.unpack_from("!H", raw, 16)[0] + ip, struct.unpack_from("!H", raw, 38)[0] + udp
    head = raw[14:16] + struct.pack("!H", total) + raw[18:24] + b"\0\0" + raw[26:34]
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return raw[:14] + head + raw[34:38] + struct.pack("!H", length) + raw[40:]


UNANSWERED = {
    "43 bytes": lambda a, b: frame(b, a, request(1)[:-1]),
    "no payload": lambda a, b: frame(b, a, b""),
    "another port": lambda a, b: frame(b, a, request(1), ports=(5000, 863)),
    "from a reflector's port": lambda a, b: frame(b, a, request(1), ports=(862, 862)),
    "to another address": lambda a, b: frame(b, "10.0.0.9", request(1)),
    "from a stranger": lambda a, b: frame("10.0.0.9", a, request(1)),
    "a first fragment": lambda a, b: frame(b, a, request(1), fragment=0x2000),
    "IP options": lambda a, b: frame(b, a, request(1), options=bytes(4)),
    "a wrong IP checksum": lambda a, b: frame(b, a, request(1)).replace(b"\x45\0\0\x48\0\x07", b"\x45\x01\0\x48\0\x07"),
    "UDP longer than IP": lambda a, b: with_lengths(frame(b, a, request(1, more=bytes(8))), udp=4),
    "UDP shorter than IP": lambda a, b: with_lengths(frame(b, a, request(1, more=bytes(8))), udp=-4),
    "both longer than the frame": lambda a, b: with_lengths(frame(b, a, request(1)), ip=4, udp=4),
    "UDP of 43 bytes": lambda a, b: with_lengths(frame(b, a, request(1)), ip=-1, udp=-1),
    "IP of no length": lambda a, b: with_lengths(frame(b, a, request(1)), ip=-72, udp=-52),
    "IP version 5": lambda a, b: frame(b, a, request(1)).replace(b"\x08\0\x45", b"\x08\0\x55", 1),
}  # fmt: skip


@both
@pytest.mark.parametrize("which", UNANSWERED)
def test_what_is_passed_on_untouched(plain, program, which):
    one = plain(program)
    sent = UNANSWERED[which](one.local, one.peer)
    assert one.run(sent) == ("passed", sent)
    assert one.counts() == {}


@both
def test_a_peer_that_is_not_declared_so_gets_no_unauthenticated_answer(bench, program):
    one = bench(program)
    sent = frame(one.peer, one.local, request(1))
    assert one.run(sent) == ("passed", sent)
    one = Plain(one.loaded, program, one.local, one.peer)
    one.configs[0]["flags"] = PLAIN  # and not in use
    assert one.run(sent) == ("passed", sent)
    assert one.counts() == {}


@both
@pytest.mark.parametrize("length", [1547, 1548, 2000])
def test_too_long_for_a_checksum_is_passed_on(plain, program, length):
    one = plain(program)
    one.configs[0]["reply_rate"], one.configs[0]["reply_burst"] = 1, 1
    sent = frame(one.peer, one.local, request(1, more=bytes(length - 44)))
    if length == 1547 or program == "link_watch_tc":
        assert one.run(sent)[0] == "reply"
        assert one.counts() == {"reflected": 1}
    else:
        assert one.run(sent) == ("passed", sent)
        assert one.counts() == {}
        assert one.ask_plain(request(1))[0] == "reply"  # it spent no token


# -- our own probes ------------------------------------------------------------------------------------


def asked(one: Plain, seq: int, ago_ns: int = 1_000_000) -> bytes:
    """Pretend that a probe was sent; the packet as the reflector gets it."""
    sent = time.monotonic_ns() - ago_ns
    one.states[0]["window"][seq % 512] = (sent, seq, 0)
    one.states[0]["next_seq"] = seq + 1
    return request(seq, stamp(sent + int(one.configs[0]["wall_ns"])), 0x1601, ssid=1)


def answered(one: Plain, data: bytes, number: int, **how: object) -> str:
    out = reply(data, 64, number, (7, 7), (8, 8), 0x0101, **how)  # type: ignore[arg-type]
    return one.run(frame(one.peer, one.local, out, ports=(862, 45000)))[0]


@both
@pytest.mark.parametrize("family", PAIRS)
@pytest.mark.parametrize("ssid", [False, True], ids=["rfc8762", "rfc8972"])
def test_an_answer(plain, program, family, ssid):
    one = plain(program, family)
    assert answered(one, asked(one, 1), 1, ssid=ssid) == "dropped"
    assert answered(one, asked(one, 2) + bytes(30), 2, ssid=ssid) == "dropped"
    assert one.counts() == {"answered": 2}
    assert answered(one, asked(one, 3), 3) == answered(one, asked(one, 3), 3) == "dropped"
    assert [alarm.seq for alarm in one.alarms()] == [1, 2, 3, 3]


@both
def test_an_answer_counts_once(plain, program):
    one = plain(program)
    data = asked(one, 1)
    assert [answered(one, data, 1) for _ in range(3)] == ["dropped"] * 3
    assert one.counts() == {"answered": 1, "duplicates": 2}


@both
@pytest.mark.parametrize("where", [0, 3, 4, 7, 8, 11])
def test_an_answer_that_does_not_return_number_and_time_is_rejected(plain, program, where):
    """Whatever else waits for it gets it: it may be another sender's of this machine."""
    one = plain(program)
    data = bytearray(asked(one, 1))
    data[where] ^= 1
    assert answered(one, bytes(data), 1) == "passed"
    assert one.counts() == {"rejected": 1}


@both
def test_an_authenticated_path_believes_no_plain_answer(bench, program):
    one = Plain(bench(program).loaded, program, *PAIRS["IPv4"])
    data = asked(one, 1)
    one.configs[0]["flags"] = IN_USE
    assert answered(one, data, 1) == "passed"
    padded = data + payload(OWN_KEY, role=1)[44:]
    for ssid in (False, True):  # a path that the answer does not name is known by its addresses
        assert answered(one, padded, 1, ssid=ssid) == "dropped"
    assert one.counts() == {"rejected": 2}


@both
@pytest.mark.parametrize(
    ("numbers", "lost"),
    [
        ({1: 0, 2: 1, 5: 2, 6: 3}, {"forward_lost": 2}),
        ({1: 0, 2: 1, 5: 4, 6: 5}, {"reverse_lost": 2}),
        ({1: 0, 2: 1, 5: 3, 6: 4}, {"forward_lost": 1, "reverse_lost": 1}),
        ({1: 1, 2: 2, 5: 5, 6: 6}, {}),
    ],
    ids=["there", "back", "both", "a stateless reflector does not say"],
)
def test_which_way_was_it_lost(plain, program, numbers, lost):
    one = plain(program)
    for seq in range(1, 7):
        data = asked(one, seq)
        if seq in numbers:
            assert answered(one, data, numbers[seq]) == "dropped"
    assert one.counts() == {"answered": 4, **lost}


stampers = pytest.mark.parametrize("program", ["stamp", "stamp_untimed"])


@stampers
@pytest.mark.parametrize("family", PAIRS)
def test_a_probe(plain, program, family):
    one = plain(program, family)
    for number in (1, 2):
        before = time.time_ns()
        verdict, raw = one.run(frame(one.local, one.peer, plain_template(0)))
        after = time.time_ns()
        out = parse(raw)
        assert verdict == "passed"
        assert out.sound
        seconds, fraction = struct.unpack_from("!II", out.data, 4)
        assert out.data == request(number, (seconds, fraction), 0x1601, ssid=1)
        assert before - 2e6 < wall_ns(seconds, fraction) < after + 2e6
        sent, seq, _ = one.states[0]["window"][number]
        assert (int(seq), stamp(int(sent) + int(one.configs[0]["wall_ns"]))) == (number, (seconds, fraction))
    assert one.counts() == {"sent": 2}


FOREIGN = {
    "a sender's of this machine": lambda a, b: frame(a, b, request(1, ssid=1)),
    "signed": lambda a, b: frame(a, b, template(0)),
    "longer": lambda a, b: frame(a, b, plain_template(0) + b"x"),
    "stamped already": lambda a, b: frame(a, b, request(0x6D61706B, ssid=1)),
    "to another address": lambda a, b: frame(a, "10.0.0.77", plain_template(0)),
}


@stampers
@pytest.mark.parametrize("which", FOREIGN)
def test_what_is_not_stamped(plain, program, which):
    one = plain(program)
    sent = FOREIGN[which](one.local, one.peer)
    assert one.run(sent) == ("passed", sent)
    assert one.counts() == {}
