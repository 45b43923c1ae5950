"""The netlink decoder: messages as the kernel lays them out in, events out."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapek.model import Entity
from mapek.sensors.netlink_events import Decoder

UP, LOWER = 0x1, 0x10000


def attribute(kind, data):
    return struct.pack("=HH", 4 + len(data), kind) + data.ljust(-(-len(data) // 4) * 4, b"\0")


def message(kind, body):
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def link(kind, name, ifindex=3, flags=UP | LOWER, family=0, mac=b"", hardware=1):
    body = struct.pack("=BxHiII", family, hardware, ifindex, flags, 0)
    return message(kind, body + attribute(3, name.encode() + b"\0") + (attribute(1, mac) if mac else b""))


def route(kind, prefix, length, protocol, table=254, oif=3, metric=7):
    family = 2 if "." in prefix else 10
    body = struct.pack("=BBBBBBBBI", family, length, 0, 0, table, protocol, 0, 1, 0)
    body += attribute(1, ip_address(prefix).packed) + attribute(4, struct.pack("=I", oif))
    return message(kind, body + attribute(6, struct.pack("=I", metric)))


def heard(decoder, *messages):
    return list(decoder.events(b"".join(messages), lambda: 5))


def test_the_address_of_a_link():
    decoder = Decoder()
    told = [
        heard(decoder, link(16, "l0", mac=b"\2\0\0\0\0\1")),
        heard(decoder, link(16, "l0", mac=b"\2\0\0\0\0\2")),
        heard(decoder, link(16, "l0", mac=b"\2\0\0\0\0\2")),
        heard(decoder, link(16, "gre", 4, mac=b"\x0a\0\0\1", hardware=778)),
        heard(decoder, link(16, "gre", 4, mac=b"\x0a\0\0\2", hardware=778)),
    ]
    assert [[event.kind for event in events] for events in told] == [
        ["link.new"], ["link.readdressed"], [], ["link.new"], [],
    ]  # fmt: skip
    assert told[1][0].fields["mac"] == "02:00:00:00:00:02"
    assert [one.mac.hex() for one in decoder.links.values()] == ["020000000002", ""]


def test_the_life_of_a_link():
    decoder = Decoder()
    told = [
        heard(decoder, link(16, "l0", flags=0)),
        heard(decoder, link(16, "l0", flags=UP)),
        heard(decoder, link(16, "l0")),
        heard(decoder, link(16, "l0")),
        heard(decoder, link(16, "l0", flags=UP)),
        heard(decoder, link(16, "wan", flags=UP)),
        heard(decoder, link(16, "wan", family=7, flags=0)),
        heard(decoder, link(17, "wan")),
    ]
    assert [[event.kind for event in events] for events in told] == [
        ["link.new"], [], ["link.up"], [], ["link.down"], ["link.renamed"], [], ["link.gone"],
    ]  # fmt: skip
    assert told[2][0].entity == Entity("link", "l0", 3)
    assert told[5][0].fields == {"up": True, "carrier": False, "before": "l0"}
    assert decoder.links == {}


def test_a_dump_after_lost_messages_tells_what_changed():
    decoder = Decoder()
    heard(decoder, link(16, "l0", 3), link(16, "l1", 4), link(16, "l2", 5))
    dump = [(16, link(16, "l0", 3)[16:]), (16, link(16, "l1", 4, 0)[16:]), (16, link(16, "l9", 9)[16:])]
    found = [(event.kind, event.entity.name) for event in decoder.refreshed(dump, 6)]
    assert found == [("link.down", "l1"), ("link.new", "l9"), ("link.gone", "l2")]
    assert list(decoder.refreshed(dump, 7)) == []


@pytest.mark.parametrize(("prefix", "length"), [("10.9.0.0", 16), ("fd00:9::", 32)])
def test_routes(prefix, length):
    (event,) = heard(Decoder(), route(25, prefix, length, 109))
    assert event.kind == "route.gone"
    assert event.fields == {"prefix": f"{prefix}/{length}", "protocol": 109, "ifindex": 3, "metric": 7}
    assert heard(Decoder(), route(24, prefix, length, 2))[0].kind == "route.new"
    assert heard(Decoder(), route(24, prefix, length, 2, table=255)) == []


@pytest.mark.parametrize(("kind", "word"), [(104, "nexthop.new"), (105, "nexthop.gone")])
def test_nexthops(kind, word):
    body = (
        struct.pack("=BBBBI", 2, 0, 109, 0, 0)
        + attribute(1, struct.pack("=I", 77))
        + attribute(5, struct.pack("=I", 3))
    )
    (event,) = heard(Decoder(), message(kind, body))
    assert (event.kind, event.fields) == (word, {"nexthop": 77, "protocol": 109, "ifindex": 3})


@pytest.mark.parametrize("address", ["10.0.0.1", "fe80::1"])
def test_addresses(address):
    decoder = Decoder()
    heard(decoder, link(16, "l0"))
    body = struct.pack("=BBBBI", 2 if "." in address else 10, 24, 0, 0, 3) + attribute(
        1, ip_address(address).packed
    )
    (new,), (gone,) = heard(decoder, message(20, body)), heard(decoder, message(21, body))
    assert (new.kind, gone.kind) == ("address.new", "address.gone")
    assert (new.entity, new.fields["address"]) == (Entity("link", "l0", 3), f"{address}/24")


@pytest.mark.parametrize("kind", [16, 17, 20, 21, 24, 25, 104, 105])
@given(body=st.binary(max_size=120))
def test_any_body_is_an_event_or_counted(kind, body):
    decoder = Decoder()
    events = heard(decoder, message(kind, body).ljust(160, b"\0"))
    assert len(events) + decoder.undecoded <= 1


def test_what_is_cut_short_is_counted():
    decoder = Decoder()
    assert heard(decoder, message(16, b"abc\0"), message(104, bytes(8))) == []
    assert decoder.undecoded == 2
