"""`stamp` on tc egress: numbers, dates and signs our probes and nothing else; by test runs and on a real veth."""

from __future__ import annotations

import socket
import struct
import time
from ipaddress import ip_address

import pytest

from mapek.bpf import attach_tc_async
from mapek.sensors.link_watch_layout import ADMIN_DOWN, IN_USE
from mapek.sensors.prober import Prober, Target
from mapek.sensors.stamp import template
from tests.netns.sensors.programs import OWN_EPOCH, OWN_KEY, PAIRS
from tests.netns.sensors.wires import STXCSUM, ethtool, run
from tests.support.machine import has
from tests.support.stamp import Datagram, checksum, frame, parse, payload, pseudo

both = pytest.mark.parametrize(
    "program", [pytest.param("stamp", marks=pytest.mark.needs("bpf_timer")), "stamp_untimed"]
)


@both
@pytest.mark.parametrize("family", PAIRS)
@pytest.mark.kernel
def test_a_probe(bench, program, family):
    one = bench(program, family)
    for number in (1, 2, 3):
        before = time.monotonic_ns()
        verdict, out = one.run(frame(one.local, one.peer, template(0)))
        after = time.monotonic_ns()
        found = parse(out)
        assert verdict == "passed"
        assert found.sound
        fields = found.fields
        sent_ns = fields["sec"] * 10**9 + fields["nsec"]
        assert before <= sent_ns <= after
        assert fields == {
            **dict.fromkeys(fields, 0), "seq": number, "sec": fields["sec"], "nsec": fields["nsec"],
            "error_estimate": 0x4001, "ssid": 1, "tlv_flags": 0x80, "tlv_type": 253, "tlv_length": 24,
            "epoch": OWN_EPOCH,
        }  # fmt: skip
        assert found.signed_with(OWN_KEY)
        assert tuple(one.states[0]["window"][number]) == (sent_ns, number, 0)
        assert one.states[0]["last_sent_ns"] == sent_ns
    assert one.counts() == {"sent": 3}


@both
def test_a_stopping_agent_says_so(bench, program):
    one = bench(program)
    one.configs[0]["flags"] = IN_USE | ADMIN_DOWN
    assert parse(one.run(frame(one.local, one.peer, template(0)))[1]).fields["peer_state"] == 1


@both
def test_no_checksum_stays_none(bench, program):
    one = bench(program)
    out = one.run(frame(one.local, one.peer, template(0), udp_checksum=0))[1]
    assert out[40:42] == b"\0\0"
    assert parse(out).signed_with(OWN_KEY)


FOREIGN = {
    "plain RFC 8762": lambda a, b: frame(a, b, bytes(44)),
    "longer than ours": lambda a, b: frame(a, b, template(0) + b"x"),
    "to another address": lambda a, b: frame(a, "10.0.0.77", template(0)),
    "of a path that is not in use": lambda a, b: frame(a, b, template(1)),
    "of no path": lambda a, b: frame(a, b, template(64)),
    "without a path": lambda a, b: frame(a, b, payload(None, ssid=0)),
    "to another port": lambda a, b: frame(a, b, template(0), ports=(5, 861)),
    "an answer": lambda a, b: frame(a, b, payload(OWN_KEY, role=1), ports=(862, 862)),
    "a fragment": lambda a, b: frame(a, b, template(0), fragment=0x2000),
    "not UDP": lambda a, b: frame(a, b, template(0)).replace(b"\x40\x11", b"\x40\x06", 1),
}  # fmt: skip


@both
@pytest.mark.parametrize("which", FOREIGN)
def test_foreign_packets_stay_as_they_are(bench, program, which):
    one = bench(program)
    sent = FOREIGN[which](one.local, one.peer)
    assert one.run(sent) == ("passed", sent)
    assert one.counts() == {}
    assert one.states[0]["next_seq"] == 1


@both
def test_another_interface(bench, program):
    one = bench(program)
    one.configs[0]["ifindex"] = 77
    sent = frame(one.local, one.peer, template(0))
    assert one.run(sent) == ("passed", sent)
    one.configs[0]["ifindex"] = 0  # whatever way the route takes
    assert one.run(sent)[1] != sent


@both
def test_what_has_no_answer_after_64_more_is_lost(bench, program):
    one = bench(program)
    sent = frame(one.local, one.peer, template(0))
    for _ in range(64):
        one.run(sent)
    assert one.counts() == {"sent": 64}
    for _ in range(3):
        one.run(sent)
    assert one.counts() == {"sent": 67, "lost": 3}
    one.states[0]["window"][4]["rtt_ns"] = 9
    one.run(sent)
    assert one.counts() == {"sent": 68, "lost": 3}
    for _ in range(1000):
        one.run(sent)
    assert one.counts() == {"sent": 1068, "lost": 1003}


@pytest.mark.parametrize("offload", [False, True], ids=["in software", "left to hardware"])
@pytest.mark.parametrize("family", PAIRS)
@pytest.mark.kernel
async def test_on_a_veth(wire, bench, family, offload):
    """What leaves a real socket: stamped, with the checksum whole or, with offload, as the stack left it."""
    program = "stamp" if has("bpf_timer") else "stamp_untimed"
    one = bench(program, family)
    run(
        f"ip -6 addr add {one.local}/64 dev near nodad"
        if ":" in one.local
        else f"ip addr add {one.local}/24 dev near"
    )
    run(f"ip neigh add {one.peer} lladdr 02:00:00:00:00:02 dev near")
    ethtool("near", STXCSUM, offload)
    one.configs[0]["ifindex"] = wire.near
    prober = Prober(10**9)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as heard:
        heard.bind(("far", 3))
        heard.settimeout(5)
        async with await attach_tc_async(one.loaded.programs[program], wire.near, "egress"):
            target = Target(0, wire.near, ip_address(one.local), ip_address(one.peer))
            assert prober.send(prober.prepare([target], 3)) == 3
            got: list[Datagram] = []
            while len(got) < 3:
                raw = heard.recv(2048)
                if b"\x03\x5e" in raw[34:60] and len(raw) in (114, 134):
                    got.append(parse(raw))
                    last = raw
    prober.close()
    assert prober.failed == {}
    assert [found.fields["seq"] for found in got] == [1, 2, 3]
    assert all(found.signed_with(OWN_KEY) for found in got)
    assert {found.ports[1] for found in got} == {862}
    assert {str(found.source) for found in got} == {one.local}
    if offload:
        udp = last[34:] if family == "IPv4" else last[54:]
        partial = ~checksum(pseudo(got[-1].source, got[-1].dest, len(udp))) & 0xFFFF
        assert struct.unpack("!H", udp[6:8])[0] == partial
    else:
        assert all(found.sound for found in got)
