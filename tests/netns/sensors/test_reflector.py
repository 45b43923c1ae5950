"""The reflector by PROG_TEST_RUN, on XDP and on tc: whom it answers and how, and whom not."""

from __future__ import annotations

import time
from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mapek.bpf import ObjectSpec, load
from mapek.sensors.link_watch_layout import ANSWERS, IN_USE, PEER_RESTART, PEER_STATE, peer_key
from tests.netns.sensors.programs import LOOPBACK, OWN_KEY, PAIRS, PEER_EPOCH, PEER_KEY, Bench
from tests.support.stamp import ADMIN_DOWN, REPLY, frame, parse, payload

PROGRAMS = ["link_watch", "link_watch_tc"]
both = pytest.mark.parametrize("program", PROGRAMS)


def shortest(program, sent):
    """The kernel takes no test frame below an Ethernet header, and on tc none below an IP header either."""
    heads = {b"\x08\x00": 34, b"\x86\xdd": 54}
    return heads.get(sent[12:14], 14) if program == "link_watch_tc" else 14


@both
@pytest.mark.parametrize("family", PAIRS)
@pytest.mark.kernel
def test_answers_a_peer(bench, program, family):
    one = bench(program, family)
    raw = frame(
        one.peer, one.local, payload(PEER_KEY, seq=40, sec=11, nsec=12, epoch=PEER_EPOCH, ssid=7), ttl=77
    )
    before = time.monotonic_ns()
    verdict, answer = one.run(raw)
    after = time.monotonic_ns()
    assert verdict == "reply"
    found = parse(answer)
    assert found.sound
    assert len(answer) == len(raw)
    assert (str(found.source), str(found.dest)) == (one.local, one.peer)
    assert found.macs == (raw[6:12], raw[:6])
    assert (found.ports, found.ttl) == ((862, 45000), 255)
    fields = found.fields
    received = fields["received_sec"] * 10**9 + fields["received_nsec"]
    assert before <= received <= after
    assert (fields["sec"], fields["nsec"]) == (fields["received_sec"], fields["received_nsec"])
    assert fields == {
        **fields, "seq": 1, "error_estimate": 0x4001, "ssid": 7, "sender_seq": 40, "sender_sec": 11,
        "sender_nsec": 12, "sender_error_estimate": 0x4001, "mbz": 0, "sender_ttl": 77, "tlv_flags": 0,
        "tlv_type": 253, "tlv_length": 24, "epoch": PEER_EPOCH, "role": REPLY, "peer_state": 0,
    }  # fmt: skip
    assert found.signed_with(PEER_KEY)
    assert one.counts() == {"reflected": 1}


@both
def test_counts_its_answers_itself(bench, program):
    one = bench(program)
    numbers = [one.ask(seq=seq)[1].fields["seq"] for seq in (5, 6, 9, 8)]
    assert numbers == [1, 2, 3, 4]
    assert one.counts() == {"reflected": 4}


@both
@pytest.mark.parametrize("where", range(72))
def test_every_byte_is_signed(bench, program, where):
    one = bench(program)
    data = bytearray(payload(PEER_KEY, seq=3, epoch=PEER_EPOCH))
    data[where] ^= 1
    sent = frame(one.peer, one.local, bytes(data))
    verdict, out = one.run(sent)
    if 45 <= where < 48:  # no longer our TLV: somebody else's packet
        assert (verdict, out) == ("passed", sent)
        assert one.counts() == {}
    elif where == 56:  # the role: taken for an answer, which nobody waits for
        assert verdict == "dropped"
        assert one.counts() == {"rejected": 1}
    else:
        assert verdict == "dropped"
        assert one.counts() == {"forged": 1}


@both
@pytest.mark.kernel
def test_forged(bench, program):
    one = bench(program)
    sent = payload(OWN_KEY, seq=3, epoch=PEER_EPOCH), payload(PEER_KEY, seq=3, epoch=PEER_EPOCH, role=2)
    assert [one.run(frame(one.peer, one.local, data))[0] for data in sent] == ["dropped"] * 2
    assert one.counts() == {"forged": 2}


@both
@pytest.mark.kernel
def test_replayed(bench, program):
    one = bench(program)
    verdicts = [one.ask(seq=seq)[0] for seq in (100, 100, 101, 38, 37, 38, 99, 99, 2**31 + 101)]
    assert verdicts == [
        "reply", "dropped", "reply", "reply", "dropped", "dropped", "reply", "dropped", "dropped",
    ]  # fmt: skip
    assert one.counts() == {"reflected": 4, "replayed": 5}


@both
def test_sequence_numbers_wrap(bench, program):
    one = bench(program)
    assert [one.ask(seq=seq % 2**32)[0] for seq in (-2, -1, 0, 1, -1, 64)] == ["reply"] * 4 + [
        "dropped",
        "reply",
    ]


@both
def test_an_old_epoch_is_refused_and_a_new_one_begins_anew(bench, program):
    one = bench(program)
    one.ask(seq=100)
    assert one.ask(seq=101, epoch=PEER_EPOCH - 1)[0] == "dropped"
    assert one.counts() == {"reflected": 1, "replayed": 1}
    verdict, found = one.ask(seq=1, epoch=PEER_EPOCH + 1)
    assert (verdict, found.fields["seq"]) == ("reply", 1)
    assert one.ask(seq=102)[0] == "dropped"
    assert [(one_.kind, one_.path) for one_ in one.alarms()] == [(PEER_RESTART, 0)]


@both
def test_a_peer_whose_clock_went_back_is_not_locked_out_for_ever(bench, program):
    one = bench(program)
    one.ask(seq=100)
    one.states[0]["peer_seen_ns"] -= 61 * 10**9
    assert one.ask(seq=1, epoch=5)[0] == "reply"


@both
def test_admin_down_is_heard_once(bench, program):
    one = bench(program)
    for seq, state in ((1, 0), (2, ADMIN_DOWN), (3, ADMIN_DOWN), (4, 0)):
        assert one.ask(seq=seq, peer_state=state)[0] == "reply"
    assert [(alarm.kind, alarm.count) for alarm in one.alarms()] == [(PEER_STATE, 1), (PEER_STATE, 0)]


@both
def test_above_the_rate_nothing_is_answered(bench, program):
    one = bench(program)
    one.configs[0]["reply_rate"], one.configs[0]["reply_burst"] = 1, 5
    verdicts = [one.ask(seq=seq)[0] for seq in range(1, 21)]
    assert verdicts == ["reply"] * 5 + ["dropped"] * 15
    assert one.counts() == {"reflected": 5, "limited": 15}
    one.states[0]["tokens_ns"] -= 2 * 10**9  # two seconds go by
    assert [one.ask(seq=seq)[0] for seq in range(21, 25)] == ["reply"] * 2 + ["dropped"] * 2


@both
def test_a_path_out_of_use_answers_nobody(bench, program):
    one = bench(program)
    one.configs[0]["flags"] = ANSWERS
    assert one.ask(seq=1)[0] == "dropped"
    one.configs[0]["flags"] = IN_USE
    assert one.ask(seq=1)[0] == "reply"


@both
@pytest.mark.parametrize(
    ("source", "dest"), [("10.0.0.3", "10.0.0.1"), ("10.0.0.2", "10.0.0.9"), ("fe80::2", "fe80::1")]
)
def test_strangers_are_passed_on_untouched(bench, program, source, dest):
    one = bench(program)
    sent = frame(source, dest, payload(PEER_KEY, seq=1, epoch=PEER_EPOCH))
    assert one.run(sent) == ("passed", sent)
    assert one.counts() == {}


@both
def test_a_peer_is_known_on_its_interface_only(bench, program):
    one = bench(program)
    key = (ip_address(one.peer), ip_address(one.local))
    peers = one.loaded.maps["peers"]
    peers.delete(peer_key(LOOPBACK, *key))
    peers.update(peer_key(LOOPBACK + 1, *key), bytes(4))
    assert one.ask(seq=1)[0] == "passed"
    peers.update(peer_key(0, *key), bytes(4))
    assert one.ask(seq=1)[0] == "reply"


OTHERS = {
    "another port": lambda a, b: frame(b, a, payload(PEER_KEY), ports=(5000, 863)),
    "a longer STAMP packet": lambda a, b: frame(b, a, payload(PEER_KEY) + bytes(4)),
    "plain RFC 8762": lambda a, b: frame(b, a, bytes(44)),
    "another private TLV": lambda a, b: frame(b, a, payload(PEER_KEY, tlv_type=252)),
    "another length of TLV": lambda a, b: frame(b, a, payload(PEER_KEY, tlv_length=20)),
    "a fragment": lambda a, b: frame(b, a, payload(PEER_KEY), fragment=0x2000),
    "a later fragment": lambda a, b: frame(b, a, payload(PEER_KEY), fragment=9),
    "IP options": lambda a, b: frame(b, a, payload(PEER_KEY), options=bytes(4)),
}  # fmt: skip


@both
@pytest.mark.parametrize("which", OTHERS)
def test_other_packets_are_passed_on_untouched(bench, program, which):
    one = bench(program)
    sent = OTHERS[which](one.local, one.peer)
    assert one.run(sent) == ("passed", sent)
    assert one.counts() == {}


@both
@pytest.mark.parametrize("family", PAIRS)
@pytest.mark.kernel
def test_every_length(bench, program, family):
    one = bench(program, family)
    whole = one.probe(seq=1) + bytes(40)
    enough = len(whole) - 40
    for length in range(shortest(program, whole), len(whole) + 1):
        if length >= enough:
            one.states[0]["peer_bitmap"] = one.states[0]["peer_newest"] = one.states[0]["peer_epoch"] = 0
        verdict, out = one.run(whole[:length])
        if length < enough:
            assert (verdict, out) == ("passed", whole[:length]), length
        else:  # what follows is the padding of a short frame
            assert verdict == "reply", length
            assert out[enough:] == whole[enough:length]


@both
def test_an_unfinished_checksum_of_the_sender_does_not_matter(bench, program):
    """XDP sees the pseudo header's sum alone when a virtual interface's sender leaves the rest to hardware."""
    one = bench(program)
    data = payload(PEER_KEY, seq=1, epoch=PEER_EPOCH)
    verdict, out = one.run(frame(one.peer, one.local, data, udp_checksum=0x1234))
    assert verdict == "reply"
    if program == "link_watch":
        assert parse(out).sound


@both
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=14, max_size=200), st.sampled_from([b"\x08\x00", b"\x86\xdd", b""]))
def test_any_frame_passes(shared, program, data, kind):
    sent = data[:12] + kind + data[14:] if kind else data
    sent = sent.ljust(shortest(program, sent), b"\0")
    assert shared(program).run(sent) == ("passed", sent)


@pytest.fixture(scope="module")
def shared(spec: ObjectSpec):
    with load(spec, programs=set(PROGRAMS)) as loaded:
        yield lambda program: Bench(loaded, program, *PAIRS["IPv4"])
