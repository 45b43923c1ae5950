"""tc_classifier by PROG_TEST_RUN: frames in, the one place that counted out, beside a decoder in Python."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mapek.bpf import ArrayMap, LoadedObject, ObjectSpec, create_map, load, object_path
from mapek.bpf.cpus import cpu_slots
from mapek.bpf.maps import BPF_F_MMAPABLE
from mapek.sensors.tc_classifier_classes import TrafficClass, parse_classes
from mapek.sensors.tc_classifier_table import SLOT_OTHER, SLOTS, TABLE, build

pytestmark = [pytest.mark.netns, pytest.mark.kernel]

UNSPEC, SHOT = 0xFFFFFFFF, 2
MACS = b"\x02" * 6 + b"\x04" * 6


class Bench:
    """The loaded programs with a table of classes; class i counts in slot 2 i + 1."""

    def __init__(self, loaded: LoadedObject) -> None:
        self.loaded = loaded
        cpus = cpu_slots()
        self.counters = loaded.map("counters", ArrayMap).view(np.uint64).reshape(cpus, 2, SLOTS, 3)

    def use(self, **classes: str) -> tuple[TrafficClass, ...]:
        parsed = parse_classes(classes)
        with create_map("array", 4, TABLE.itemsize, 1, flags=BPF_F_MMAPABLE) as inner:
            assert isinstance(inner, ArrayMap)
            inner.view(TABLE)[:] = build(parsed, {one.name: 2 * i + 1 for i, one in enumerate(parsed)})
            self.loaded.maps["table"].update(bytes(4), struct.pack("=I", inner.fd))
        self.names = {2 * i + 1: one.name for i, one in enumerate(parsed)} | {SLOT_OTHER: "other"}
        return parsed

    def run(self, frame: bytes, way: str = "in", **context: int) -> tuple[str, tuple[int, ...], int]:
        """(class, (packets, bytes, drops), verdict) of one frame; only one place may move."""
        before = self.counters.sum(0)
        program = self.loaded.programs[f"tc_class_{way}"]
        done = program.test_run(frame, ctx=skb(**context) if context else None)
        assert done.data == frame
        moved = self.counters.sum(0) - before
        places = np.argwhere(moved[:, :, 0])
        assert len(places) == 1
        direction, slot = places[0]
        assert direction == ("in", "out").index(way)
        assert moved.sum() == moved[direction, slot].sum()
        return self.names[int(slot)], tuple(moved[direction, slot].tolist()), done.retval


def skb(mark: int = 0, gso_segs: int = 0, gso_size: int = 0) -> bytes:
    """struct __sk_buff: what of it a test run takes."""
    context = bytearray(192)
    struct.pack_into("=I", context, 8, mark)
    struct.pack_into("=I", context, 164, gso_segs)
    struct.pack_into("=I", context, 176, gso_size)
    return bytes(context)


@pytest.fixture
def bench() -> Iterator[Bench]:
    spec = ObjectSpec.read(object_path("tc_classifier"))
    with load(spec, max_entries={"counters": cpu_slots()}) as loaded:
        yield Bench(loaded)


def eth(kind: int, body: bytes, tags: tuple[int, ...] = ()) -> bytes:
    return MACS + b"".join(struct.pack("!HH", tag, 5) for tag in tags) + struct.pack("!H", kind) + body


def l4(source: int, destination: int, more: int = 16) -> bytes:
    # a TCP header of 20 bytes, of which UDP takes the first 8
    return struct.pack("!HHIIBBHHH", source, destination, 0, 0, 0x50, 0, 0, 0, 0) + bytes(more)


def ipv4(proto: int, body: bytes, dscp: int = 0, fragment: int = 0, options: int = 0) -> bytes:
    total = 20 + 4 * options + len(body)
    head = struct.pack("!BBHHHBBHII", 0x45 + options, dscp << 2 | 1, total, 1, fragment, 64, proto, 0, 1, 2)
    return head + bytes(4 * options) + body


def ipv6(proto: int, body: bytes, dscp: int = 0) -> bytes:
    word = 6 << 28 | (dscp << 2 | 2) << 20 | 0xABCDE
    return struct.pack("!IHBB", word, len(body), proto, 64) + bytes(32) + body


def ext(following: int, units: int = 0) -> bytes:
    return bytes([following, units]) + bytes(6 + 8 * units)


def frag(following: int, offset: int = 0) -> bytes:
    return struct.pack("!BxHI", following, offset << 3, 7)


CLASSES = {
    "voice": "protocol=udp dscp=ef",
    "ssh": "protocol=tcp port=22",
    "web": "protocol=tcp,udp destination_port=80,443,8000-8099",
    "from-dns": "source_port=53",
    "marked": "mark=0x10/0xf0",
    "bulk": "dscp=cs1,le",
    "ping": "protocol=icmp,icmpv6",
    "sctp": "protocol=sctp",
}

ROWS = [
    ("udp ef", eth(0x0800, ipv4(17, l4(1, 2), 46)), "voice"),
    ("the first that matches has it", eth(0x0800, ipv4(17, l4(1, 443), 46)), "voice"),
    ("tcp ef", eth(0x0800, ipv4(6, l4(1, 2), 46)), "other"),
    ("udp6 ef", eth(0x86DD, ipv6(17, l4(1, 2), 46)), "voice"),
    ("one bit less of dscp", eth(0x86DD, ipv6(17, l4(1, 2), 44)), "other"),
    ("to 22", eth(0x0800, ipv4(6, l4(9, 22))), "ssh"),
    ("from 22", eth(0x0800, ipv4(6, l4(22, 9))), "ssh"),
    ("22 of udp", eth(0x0800, ipv4(17, l4(22, 9))), "other"),
    ("to 443", eth(0x0800, ipv4(6, l4(9, 443))), "web"),
    ("from 443", eth(0x0800, ipv4(6, l4(443, 9))), "other"),
    ("first of the range", eth(0x0800, ipv4(17, l4(9, 8000))), "web"),
    ("last of the range", eth(0x0800, ipv4(17, l4(9, 8099))), "web"),
    ("before the range", eth(0x0800, ipv4(17, l4(9, 7999))), "other"),
    ("behind the range", eth(0x0800, ipv4(17, l4(9, 8100))), "other"),
    ("from 53, sctp", eth(0x0800, ipv4(132, l4(53, 9))), "from-dns"),
    ("sctp to 53", eth(0x0800, ipv4(132, l4(9, 53))), "sctp"),
    ("options", eth(0x0800, ipv4(6, l4(9, 22), options=10)), "ssh"),
    ("first fragment", eth(0x0800, ipv4(17, l4(53, 9), fragment=0x2000)), "from-dns"),
    ("later fragment has no ports", eth(0x0800, ipv4(17, l4(53, 9), fragment=0x0123)), "other"),
    ("later fragment has a dscp", eth(0x0800, ipv4(17, l4(53, 9), 46, fragment=0x0123)), "voice"),
    ("later fragment 6", eth(0x86DD, ipv6(44, frag(17, 100) + l4(53, 9))), "other"),
    ("first fragment 6", eth(0x86DD, ipv6(44, frag(17) + l4(53, 9))), "from-dns"),
    ("behind extension headers", eth(0x86DD, ipv6(0, ext(60) + ext(43, 2) + ext(6) + l4(22, 9))), "ssh"),
    ("too many extension headers", eth(0x86DD, ipv6(0, ext(60) * 4 + ext(6) + l4(22, 9))), "other"),
    ("icmp", eth(0x0800, ipv4(1, bytes(8))), "ping"),
    ("icmpv6", eth(0x86DD, ipv6(58, bytes(8))), "ping"),
    ("an esp packet's spi is no port", eth(0x0800, ipv4(50, l4(53, 9))), "other"),
    ("bulk", eth(0x0800, ipv4(6, l4(1, 2), 8)), "bulk"),
    ("bulk without ports", eth(0x86DD, ipv6(47, bytes(8), 1)), "bulk"),
    ("vlan", eth(0x0800, ipv4(6, l4(1, 22)), (0x8100,)), "ssh"),
    ("qinq", eth(0x86DD, ipv6(6, l4(1, 22)), (0x88A8, 0x8100)), "ssh"),
    ("three tags", eth(0x0800, ipv4(6, l4(1, 22)), (0x88A8, 0x8100, 0x8100)), "other"),
    ("arp", eth(0x0806, bytes(28)), "other"),
    ("tcp cut behind its ports", eth(0x0800, ipv4(6, l4(1, 22)[:4])), "ssh"),
    ("tcp cut within its ports", eth(0x0800, ipv4(6, l4(1, 22)[:3])), "other"),
    ("version 6 in an ipv4 frame", eth(0x0800, b"\x65" + ipv4(17, l4(53, 9))[1:]), "other"),
]  # fmt: skip


@pytest.mark.parametrize(("frame", "wanted"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
@pytest.mark.parametrize("way", ["in", "out"])
def test_frames(bench: Bench, frame: bytes, wanted: str, way: str):
    bench.use(**CLASSES)
    assert bench.run(frame, way) == (wanted, (1, len(frame), 0), UNSPEC)


def test_marks(bench: Bench):
    bench.use(**CLASSES, exact="mark=7", both="protocol=udp mark=9", zero="protocol=gre mark=0")
    udp, arp = eth(0x0800, ipv4(17, l4(1, 2))), eth(0x0806, bytes(28))
    for frame, mark, wanted in (
        (arp, 0x1F, "marked"),
        (arp, 0x20, "other"),
        (udp, 7, "exact"),
        (udp, 9, "both"),
        (arp, 9, "other"),
        (eth(0x0800, ipv4(47, bytes(8))), 0, "zero"),
        (eth(0x0800, ipv4(47, bytes(8))), 1, "other"),
    ):
        assert bench.run(frame, mark=mark)[0] == wanted, (mark, wanted)


def test_drop(bench: Bench):
    bench.use(bad="port=666 verdict=drop", good="protocol=udp verdict=observe")
    frame = eth(0x0800, ipv4(17, l4(666, 1)))
    assert bench.run(frame) == ("bad", (1, len(frame), 1), SHOT)
    assert bench.run(frame, "out") == ("bad", (1, len(frame), 1), SHOT)
    assert bench.run(eth(0x0800, ipv4(17, l4(667, 1))))[::2] == ("good", UNSPEC)


@pytest.mark.parametrize(
    ("frame", "headers"),
    [
        (eth(0x0800, ipv4(6, l4(1, 22, 3000))), 54),
        (eth(0x86DD, ipv6(6, l4(1, 22, 3000))), 74),
        (eth(0x0800, ipv4(17, l4(1, 80, 3000))), 42),
    ],
    ids=["tcp", "tcp6", "udp"],
)
def test_a_merged_packet_counts_as_its_segments(bench: Bench, frame: bytes, headers: int):
    bench.use(**CLASSES)
    size = 1000
    segments = -(-(len(frame) - headers) // size)
    wanted = (segments, len(frame) + (segments - 1) * headers, 0)
    assert bench.run(frame, "out", gso_segs=segments, gso_size=size)[1] == wanted
    # the kernel's count is believed where there is one
    assert bench.run(frame, "out", gso_segs=2, gso_size=size)[1] == (2, len(frame) + headers, 0)


@pytest.mark.host
def test_without_a_table_all_is_other(bench: Bench):
    bench.names = {SLOT_OTHER: "other"}
    assert bench.run(eth(0x0800, ipv4(6, l4(1, 22))))[::2] == ("other", UNSPEC)


@pytest.mark.host
def test_64_classes_and_each_has_its_bit(bench: Bench):
    bench.use(**{f"c{port}": f"destination_port={port}" for port in range(1000, 1064)})
    for port in (1000, 1001, 1031, 1032, 1062, 1063):
        assert bench.run(eth(0x0800, ipv4(17, l4(5, port))))[0] == f"c{port}"
    assert bench.run(eth(0x0800, ipv4(17, l4(5, 1064))))[0] == "other"


NUMBERS = st.sampled_from([0, 1, 22, 53, 80, 443, 65535])
PORTS = st.lists(st.tuples(NUMBERS, NUMBERS).map(sorted).map(tuple), max_size=2).map(tuple)
SETS = st.frozensets(st.sampled_from([0, 1, 6, 17, 46]), max_size=2)
RULES = st.lists(
    st.builds(
        TrafficClass, st.just("x"), SETS, PORTS, PORTS, PORTS, SETS,
        st.lists(st.sampled_from([(1, 1), (2, 3), (0, 4)]), max_size=2).map(tuple), st.booleans(),
    ),
    max_size=6,
)  # fmt: skip


def first(rules: list[TrafficClass], proto: int, dscp: int, mark: int, ports: tuple[int, int] | None):
    """What each class says, read as a person would."""

    def within(ranges, port):
        return any(low <= port <= high for low, high in ranges)

    for index, one in enumerate(rules):
        if one.protocols and proto not in one.protocols:
            continue
        if one.dscp and dscp not in one.dscp:
            continue
        if one.marks and not any(mark & mask == value for value, mask in one.marks):
            continue
        if ports is None and (one.ports or one.source_ports or one.destination_ports):
            continue
        if ports is not None:
            source, destination = ports
            if one.source_ports and not within(one.source_ports, source):
                continue
            if one.destination_ports and not within(one.destination_ports, destination):
                continue
            if one.ports and not (within(one.ports, source) or within(one.ports, destination)):
                continue
        return index
    return None


@pytest.mark.host
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    RULES,
    st.sampled_from([0, 1, 6, 17]),
    st.sampled_from([0, 1, 17, 46]),
    st.sampled_from([0, 1, 2, 3, 5]),
    NUMBERS,
    NUMBERS,
    st.sampled_from([4, 6]),
)
def test_any_classes_match_as_they_read(bench: Bench, rules, proto, dscp, mark, source, destination, version):
    classes = [
        TrafficClass(f"c{i}", *(getattr(one, name) for name in TrafficClass.__slots__[1:]))
        for i, one in enumerate(rules)
    ]
    with create_map("array", 4, TABLE.itemsize, 1, flags=BPF_F_MMAPABLE) as inner:
        assert isinstance(inner, ArrayMap)
        inner.view(TABLE)[:] = build(classes, {one.name: i for i, one in enumerate(classes)})
        bench.loaded.maps["table"].update(bytes(4), struct.pack("=I", inner.fd))
    bench.names = {i: i for i in range(len(classes))} | {SLOT_OTHER: None}
    if version == 6 and proto == 0:
        proto = 59  # in IPv6, 0 is an extension header
    body = l4(source, destination)
    frame = eth(0x0800, ipv4(proto, body, dscp)) if version == 4 else eth(0x86DD, ipv6(proto, body, dscp))
    ports = (source, destination) if proto in (6, 17) else None
    wanted = first(classes, proto, dscp, mark, ports)
    found, counts, verdict = bench.run(frame, mark=mark)
    assert found == wanted
    dropped = wanted is not None and classes[wanted].drop
    assert (counts, verdict) == ((1, len(frame), int(dropped)), SHOT if dropped else UNSPEC)


@pytest.mark.parametrize("name", ["behind extension headers", "qinq", "options"])
def test_every_truncation_counts_once_and_passes(bench: Bench, name: str):
    bench.use(**CLASSES)
    frame = next(row[1] for row in ROWS if row[0] == name)
    # recent kernels take no test frame whose IP header is cut short, unless a VLAN tag hides it
    shortest = {b"\x08\x00": 34, b"\x86\xdd": 54}.get(frame[12:14], 15)
    for length in range(shortest, len(frame)):
        assert bench.run(frame[:length])[1:] == ((1, length, 0), UNSPEC)


@pytest.mark.host
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([0x0800, 0x86DD, 0x8100, 0x88A8, 0x0806]), st.binary(min_size=1, max_size=200))
def test_any_frame_counts_once_and_passes(bench: Bench, kind: int, body: bytes):
    bench.names = dict.fromkeys(range(SLOTS), "any")
    frame = eth(kind, body, (0x8100,))
    assert bench.run(frame)[1:] == ((1, len(frame), 0), UNSPEC)
