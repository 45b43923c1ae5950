"""Our rtnetlink bytes by pyroute2's decoder, and what a hostile or broken buffer does to ours."""

from __future__ import annotations

import struct
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ndmsg import ndmsg  # noqa: F401 - registers the families that rtmsg refers to
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from mapek.bpf import rtnl
from mapek.sensors import netlink_wire as wire


def decoded(message):
    found = rtmsg(message)
    found.decode()
    return found


def route(prefix, metric=100, **fields):
    return decoded(wire.route(ip_network(prefix), metric, **fields))


@pytest.mark.parametrize(
    ("prefix", "source", "gateway", "family", "attribute"),
    [
        ("10.9.0.0/16", "10.1.0.1", "10.0.0.2", 2, "RTA_GATEWAY"),
        ("fd00:9::/32", "fd00::1", "fe80::2", 10, "RTA_GATEWAY"),
        ("10.9.0.0/16", "10.1.0.1", "fe80::2", 2, "RTA_VIA"),
    ],
)
def test_a_route_by_gateway(prefix, source, gateway, family, attribute):
    found = route(prefix, 7, source=ip_address(source), ifindex=3, gateway=ip_address(gateway))
    assert found["header"]["type"] == wire.RTM_NEWROUTE == 24
    assert found["header"]["flags"] == wire.REQUEST | wire.ACK | wire.CREATE | wire.REPLACE == 0x505
    assert (found["family"], found["dst_len"], found["table"]) == (family, ip_network(prefix).prefixlen, 254)
    assert (found["proto"], found["type"], found["scope"], found["flags"]) == (109, 1, 0, 4)
    assert found.get_attr("RTA_DST") == str(ip_network(prefix).network_address)
    assert (found.get_attr("RTA_PRIORITY"), found.get_attr("RTA_OIF")) == (7, 3)
    assert found.get_attr("RTA_PREFSRC") == source
    via = found.get_attr(attribute)
    assert (via["addr"] if attribute == "RTA_VIA" else via) == gateway
    if attribute == "RTA_VIA":
        assert via["family"] == 10
        assert found.get_attr("RTA_GATEWAY") is None


def test_a_route_by_nexthop_object():
    message = wire.route(ip_network("fd00:9::/32"), 7, nexthop_id=0x6D000001)
    found = decoded(message)
    assert found["flags"] == 0  # onlink is the object's to say
    assert found.get_attr("RTA_OIF") is None
    assert found.get_attr("RTA_GATEWAY") is None
    assert struct.pack("=HHI", 8, 30, 0x6D000001) in message


@pytest.mark.parametrize("gateway", ["10.0.0.2", "fe80::2"])
def test_a_nexthop(gateway):
    message = wire.nexthop(0x6D000001, 7, ip_address(gateway))
    ((kind, body),) = rtnl.split(message)
    assert kind == wire.RTM_NEWNEXTHOP == 104
    # struct nhmsg: family, scope, protocol, reserved, flags (RTNH_F_ONLINK)
    family = 2 if "." in gateway else 10
    assert struct.unpack_from("=BBBBI", body) == (family, 0, 109, 0, 4)
    assert wire.nexthop_fields(body) == (0x6D000001, 109, 7, ip_address(gateway).packed)


@given(st.lists(st.tuples(st.integers(0, 65535), st.binary(max_size=40)), max_size=200))
def test_portions_are_whole_and_lose_nothing(bodies):
    messages = [struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body for kind, body in bodies]
    padded = [message.ljust(-(-len(message) // 4) * 4, b"\0") for message in messages]
    parts = list(wire.portions(b"".join(padded)))
    assert b"".join(part for part, _ in parts) == b"".join(padded)
    assert [count for _, count in parts] == [len(list(rtnl.split(part))) for part, _ in parts]
    assert sum(count for _, count in parts) == len(bodies)
    assert all(count <= wire.AT_ONCE for _, count in parts)
    assert list(rtnl.split(b"".join(padded))) == bodies


@given(st.binary(max_size=300))
def test_any_buffer_is_taken_apart_without_a_crash(data):
    for _, body in rtnl.split(data):
        wire.nexthop_fields(body)
        rtnl.attributes(body, 8)
    assert sum(16 + len(body) for _, body in rtnl.split(data)) <= len(data)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", []),
        (struct.pack("=IHHII", 15, 1, 0, 0, 0), []),  # shorter than its own header
        (struct.pack("=IHHII", 0, 1, 0, 0, 0), []),  # would never end
        (struct.pack("=IHHII", 17, 1, 0, 0, 0), []),  # longer than what there is
        (struct.pack("=IHHII", 17, 1, 0, 0, 0) + b"abcd", [(1, b"a")]),
    ],
)
def test_lengths(data, found):
    assert list(rtnl.split(data)) == found


def test_attributes():
    body = struct.pack("=HHIHHI", 8, 1, 5, 8, 0x8000 | 2, 6) + struct.pack("=HH", 3, 9)
    assert rtnl.attributes(body, 0) == {1: struct.pack("=I", 5), 2: struct.pack("=I", 6)}
    assert wire.nexthop_fields(b"short") is None
    assert wire.nexthop_fields(bytes(8)) is None


def test_a_refusal_says_what_is_missing():
    assert "CAP_NET_ADMIN" in str(wire.refusal(1, "move", "b/l0"))
    assert str(wire.refusal(101, "move", "b/l0")).startswith("move b/l0: Network is unreachable; see")
