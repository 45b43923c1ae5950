"""xdp_counter by PROG_TEST_RUN: frames in, the one counter that moved out."""

from __future__ import annotations

import struct
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mapek.bpf import LoadedObject, ObjectSpec, PerCpuArrayMap, RingBuffer, load, object_path
from mapek.errors import FeatureError
from tests.netns.bpf.wires import Wire, counters
from tests.support import machine

MACS = b"\x02" * 6 + b"\x04" * 6
XDP_PASS = 2
# struct counter_sample: time_ns, ifindex, bytes, family, proto, vlan, pad, reserved
SAMPLE = struct.Struct("=QIIBBBBI")
V4, V6, OTHER = 0, 1, 2
TCP, UDP, ICMP, REST = 0, 1, 2, 3


def eth(kind: int, body: bytes, tags: tuple[int, ...] = ()) -> bytes:
    head = MACS + b"".join(struct.pack("!HH", tag, 5) for tag in tags)
    return head + struct.pack("!H", kind) + body


def ipv4(
    proto: int, body: bytes = bytes(20), fragment: int = 0, options: int = 0, first: int | None = None
) -> bytes:
    ihl = 5 + options
    head = struct.pack(
        "!BBHHHBBHII",
        0x40 | ihl if first is None else first,
        0,
        ihl * 4 + len(body),
        1,
        fragment,
        64,
        proto,
        0,
        1,
        2,
    )
    return head + bytes(options * 4) + body


def ipv6(proto: int, body: bytes = bytes(20), first: int = 0x60) -> bytes:
    return struct.pack("!BxxxHBB", first, len(body), proto, 64) + bytes(32) + body


def ext(following: int, units: int = 0) -> bytes:
    return bytes([following, units]) + bytes(6 + 8 * units)


def frag(following: int, offset: int = 0) -> bytes:
    return struct.pack("!BxHI", following, offset << 3, 7)


def auth(following: int) -> bytes:
    return bytes([following, 4]) + bytes(22)


ROWS = [
    ("tcp4", eth(0x0800, ipv4(6)), V4, TCP, 0),
    ("udp4", eth(0x0800, ipv4(17)), V4, UDP, 0),
    ("icmp4", eth(0x0800, ipv4(1)), V4, ICMP, 0),
    ("sctp4", eth(0x0800, ipv4(132)), V4, REST, 0),
    ("icmpv6 in ipv4 is no icmp", eth(0x0800, ipv4(58)), V4, REST, 0),
    ("options", eth(0x0800, ipv4(17, options=10)), V4, UDP, 0),
    ("first fragment", eth(0x0800, ipv4(17, fragment=0x2000)), V4, UDP, 0),
    ("last fragment", eth(0x0800, ipv4(17, fragment=0x0123)), V4, UDP, 0),
    ("header length 4", eth(0x0800, ipv4(17, first=0x44)), V4, REST, 0),
    ("version 6 in an ipv4 frame", eth(0x0800, ipv4(17, first=0x65)), V4, REST, 0),
    ("ipv4 cut short", eth(0x0800, ipv4(17)[:19]), V4, REST, 0),
    ("tcp6", eth(0x86DD, ipv6(6)), V6, TCP, 0),
    ("udp6", eth(0x86DD, ipv6(17)), V6, UDP, 0),
    ("icmp6", eth(0x86DD, ipv6(58)), V6, ICMP, 0),
    ("icmp in ipv6 is no icmp", eth(0x86DD, ipv6(1)), V6, REST, 0),
    ("version 4 in an ipv6 frame", eth(0x86DD, ipv6(17, first=0x40)), V6, REST, 0),
    ("ipv6 cut short", eth(0x86DD, ipv6(17)[:39]), V6, REST, 0),
    ("no next header", eth(0x86DD, ipv6(59)), V6, REST, 0),
    ("hop by hop", eth(0x86DD, ipv6(0, ext(58) + bytes(20))), V6, ICMP, 0),
    ("long destination options", eth(0x86DD, ipv6(60, ext(17, 3) + bytes(20))), V6, UDP, 0),
    ("routing and auth", eth(0x86DD, ipv6(43, ext(51) + auth(6) + bytes(20))), V6, TCP, 0),
    ("first fragment 6", eth(0x86DD, ipv6(44, frag(17) + bytes(20))), V6, UDP, 0),
    ("later fragment 6", eth(0x86DD, ipv6(44, frag(17, 100) + bytes(20))), V6, UDP, 0),
    ("later fragment of options", eth(0x86DD, ipv6(44, frag(60, 100) + b"\x11" * 20)), V6, REST, 0),
    ("four extension headers", eth(0x86DD, ipv6(0, ext(60) + ext(43) + ext(60) + ext(6))), V6, TCP, 0),
    ("five extension headers", eth(0x86DD, ipv6(0, ext(60) * 4 + ext(6) + bytes(20))), V6, REST, 0),
    ("extension past the end", eth(0x86DD, ipv6(0, ext(60, 200))), V6, REST, 0),
    ("extension cut short", eth(0x86DD, ipv6(0, b"\x11")), V6, REST, 0),
    ("arp", eth(0x0806, bytes(28)), OTHER, REST, 0),
    ("batman-adv", eth(0x4305, bytes(24)), OTHER, REST, 0),
    ("vlan", eth(0x0800, ipv4(17), (0x8100,)), V4, UDP, 1),
    ("qinq", eth(0x86DD, ipv6(6), (0x88A8, 0x8100)), V6, TCP, 1),
    ("double 8021q", eth(0x0800, ipv4(1), (0x8100, 0x8100)), V4, ICMP, 1),
    ("three tags", eth(0x0800, ipv4(17), (0x88A8, 0x8100, 0x8100)), OTHER, REST, 1),
    ("tag cut short", MACS + b"\x81\x00\x00", OTHER, REST, 1),
    ("bare ethernet", eth(0x0800, b""), V4, REST, 0),
]  # fmt: skip


def moved(loaded: LoadedObject, frame: bytes) -> dict[int, tuple[int, int]]:
    before = counters(loaded)
    result = loaded.programs["xdp_counter"].test_run(frame)
    assert result.retval == XDP_PASS
    assert result.data == frame
    change = counters(loaded) - before
    return {key: (int(p), int(b)) for key, (p, b) in enumerate(change) if p or b}


@pytest.mark.parametrize(
    ("frame", "family", "proto", "tagged"), [row[1:] for row in ROWS], ids=[r[0] for r in ROWS]
)
@pytest.mark.kernel
def test_frames(counter: LoadedObject, frame: bytes, family: int, proto: int, tagged: int):
    assert moved(counter, frame) == {(family * 4 + proto) * 2 + tagged: (1, len(frame))}


@pytest.mark.parametrize("name", ["udp4", "four extension headers", "qinq"])
def test_every_truncation_counts_once_and_passes(counter: LoadedObject, name: str):
    frame = next(row[1] for row in ROWS if row[0] == name)
    for length in range(14, len(frame)):  # the kernel takes no test frame below an Ethernet header
        change = moved(counter, frame[:length])
        assert list(change.values()) == [(1, length)]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([0x0800, 0x86DD, 0x8100, 0x88A8, 0x0806]), st.binary(min_size=0, max_size=200))
def test_any_frame_counts_once_and_passes(counter: LoadedObject, kind: int, body: bytes):
    frame = eth(kind, body)
    assert list(moved(counter, frame).values()) == [(1, len(frame))]


@pytest.mark.kernel
def test_samples_are_one_in_n_and_carry_the_frame():
    got: list[bytes] = []
    spec = ObjectSpec.read(object_path("xdp_counter"))
    with (
        load(spec, rodata={"sample_every": 8}) as loaded,
        RingBuffer(loaded.maps["samples"], got.append) as ring,
    ):
        frame = eth(0x86DD, ipv6(17), (0x88A8, 0x8100))
        loaded.programs["xdp_counter"].test_run(frame, repeat=64)
        assert ring.consume() == 8
        assert ring.records == 8
    records = [SAMPLE.unpack(record) for record in got]
    stamps = [record[0] for record in records]
    assert stamps == sorted(stamps)
    assert 0 <= time.monotonic_ns() - stamps[-1] < 10_000_000_000
    # A test run has the loopback device for its interface.
    assert {record[1:] for record in records} == {(1, len(frame), V6, UDP, 2, 0, 0)}


@pytest.mark.kernel
def test_a_test_run_may_name_the_interface(wire: Wire):
    got: list[bytes] = []
    frame = eth(0x0800, ipv4(6))
    with load(ObjectSpec.read(object_path("xdp_counter")), rodata={"sample_every": 1}) as loaded:
        # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        ctx = struct.pack("=6I", 0, len(frame), 0, wire.near, 0, 0)
        if machine.kernel() < (5, 15):
            with pytest.raises(FeatureError, match=r"kernel 5\.15"):
                loaded.programs["xdp_counter"].test_run(frame, ctx=ctx)
            return
        assert loaded.programs["xdp_counter"].test_run(frame, ctx=ctx).data == frame
        with RingBuffer(loaded.maps["samples"], got.append) as ring:
            ring.consume()
    assert [SAMPLE.unpack(record)[1] for record in got] == [wire.near]


@pytest.mark.kernel
def test_a_full_ring_loses_samples_and_counts_them():
    spec = ObjectSpec.read(object_path("xdp_counter"))
    with load(spec, rodata={"sample_every": 1}, max_entries={"samples": 4096}) as loaded:
        loaded.programs["xdp_counter"].test_run(eth(0x0800, ipv4(17)), repeat=1000)
        seen, lost = loaded.map("sampling", PerCpuArrayMap).summed()[1][:, 0].tolist()
        got: list[bytes] = []
        with RingBuffer(loaded.maps["samples"], got.append) as ring:
            ring.consume()
        assert seen == 1000
        assert 0 < len(got) == 1000 - lost
        assert counters(loaded).sum(axis=0)[0] == 1000


def test_without_sampling_nothing_goes_to_the_ring(counter: LoadedObject):
    got: list[bytes] = []
    counter.programs["xdp_counter"].test_run(eth(0x0800, ipv4(17)), repeat=100)
    with RingBuffer(counter.maps["samples"], got.append) as ring:
        assert ring.consume() == 0
    assert counter.map("sampling", PerCpuArrayMap).summed()[1].sum() == 0
