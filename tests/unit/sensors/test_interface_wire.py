"""rtnetlink's answers: bytes in, counters out; damaged ones are refused or left out."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapek.errors import ConfigError
from mapek.sensors.interface import Interface
from mapek.sensors.interface_wire import STATISTICS, link_counters, messages, qdisc_counters


def attribute(kind, data):
    return struct.pack("=HH", 4 + len(data), kind) + data.ljust(-(-len(data) // 4) * 4, b"\0")


def link(*attributes, family=0, ifindex=7):
    return struct.pack("=BxHiII", family, 1, ifindex, 0x1043, 0) + b"".join(attributes)


def qdisc(*attributes, parent=0xFFFFFFFF):
    return struct.pack("=BxxxiIII", 0, 7, 0x80010000, parent, 2) + b"".join(attributes)


NUMBERS = tuple(range(1, 25))
NAME = attribute(3, b"l0\0")
STATS = attribute(23, struct.pack("=24Q", *NUMBERS))
BASIC = attribute(1, struct.pack("=QI4x", 1 << 40, 3))
QUEUE = attribute(3, struct.pack("=5I", 4, 5, 6, 7, 2**32 - 1))


def test_a_link():
    found = link_counters(
        link(NAME, attribute(16, b"\6"), STATS, attribute(47, b"\2\0\0\0"), attribute(48, b"\1\0\0\0"))
    )
    assert (found.ifindex, found.name, found.operstate) == (7, "l0", 6)
    assert dict(zip(STATISTICS, found.statistics, strict=True)) == dict(zip(STATISTICS, NUMBERS, strict=True))
    assert (found.carrier_up, found.carrier_down) == (2, 1)


def test_a_link_of_a_newer_kernel_has_more_statistics():
    assert link_counters(link(NAME, attribute(23, struct.pack("=26Q", *range(1, 27))))).statistics == NUMBERS


@pytest.mark.parametrize(
    "body", [link(NAME, STATS, family=7), link(NAME), link(NAME, attribute(23, bytes(184)))]
)
def test_a_link_that_is_none(body):
    assert link_counters(body) is None


@pytest.mark.parametrize(
    "body",
    [b"", link()[:15], link(STATS), link(NAME, STATS, ifindex=0), link(NAME, STATS, attribute(47, b"\2"))],
)
def test_a_damaged_link(body):
    with pytest.raises((struct.error, ValueError)):
        link_counters(body) or struct.unpack("=I", b"")


@pytest.mark.parametrize(
    ("inner", "packets", "queue"),
    [
        (BASIC + QUEUE, 3, (6, 7, 2**32 - 1, 4, 5)),
        (BASIC, 3, (0, 0, 0, 0, 0)),
        (BASIC + attribute(8, struct.pack("=Q", 1 << 33)), 1 << 33, (0, 0, 0, 0, 0)),
    ],
)
@pytest.mark.parametrize("parent", [0xFFFFFFFF, 0xFFFFFFF1])
def test_a_qdisc(inner, packets, queue, parent):
    found = qdisc_counters(qdisc(attribute(1, b"pfifo\0"), attribute(7, inner), parent=parent))
    assert (found.ifindex, found.kind, found.ingress) == (7, "pfifo", parent == 0xFFFFFFF1)
    assert (found.bytes, found.packets) == (1 << 40, packets)
    assert (found.drops, found.requeues, found.overlimits, found.qlen, found.backlog) == queue


@pytest.mark.parametrize(
    "body", [qdisc(attribute(7, BASIC), parent=0x10001), qdisc(), qdisc(attribute(7, QUEUE))]
)
def test_a_qdisc_that_does_not_count(body):
    assert qdisc_counters(body) is None


@given(st.binary(max_size=300))
def test_noise(data):
    for _, _, _, body in messages(data):
        assert len(body) <= len(data)
    for decode in (link_counters, qdisc_counters):
        try:
            decode(data)
        except (struct.error, ValueError):
            continue


def test_messages_stop_at_a_length_that_cannot_be():
    good = struct.pack("=IHHII", 20, 16, 2, 9, 0) + b"body"
    assert messages(good + good) == [(16, 2, 9, b"body")] * 2
    for length in (0, 15, 21, 2**32 - 1):
        assert messages(good + struct.pack("=IHHII", length, 16, 2, 9, 0) + b"body") == [(16, 2, 9, b"body")]


@pytest.mark.parametrize("options", [{"interfaces": "l0"}, {"interfaces": [1]}, {"ethtool": 1}])
def test_wrong_options(options):
    with pytest.raises(ConfigError):
        Interface(options)
