"""The netlink touchpoint on a kernel's real tables, read back with `ip -j`."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_network

import pytest

from mapek.errors import NetlinkError, PermanentError
from mapek.knowledge import Path, Peer, Topology
from mapek.model import Step
from mapek.sensors.netlink import Netlink
from mapek.sensors.netlink_routes import FIRST_ID
from tests.netns.sensors.neighbour import SECRET, Node
from tests.netns.sensors.wires import run

ADDRESSES = [ip_address("10.1.0.1"), ip_address("fd00::1")]
PREFIXES = ("10.1.0.2/32", "10.9.0.0/16", "fd00::2/128")


@pytest.fixture
def links(space):
    """Two links with link-local addresses, and the node's own addresses."""
    for k in (0, 1):
        run(f"ip link add l{k} type veth peer name r{k}")
        run(f"ip link set r{k} up")
        run(f"ip link set l{k} up")
        run(f"ip -6 addr add fe80::{k + 1}:1/64 dev l{k} nodad")
    run("ip addr add 10.1.0.1/32 dev lo")
    run("ip -6 addr add fd00::1/128 dev lo")


def topology(prefixes=PREFIXES, four=False):
    paths = tuple(
        Path("b", f"l{k}", ip_address(f"10.0.{k}.2" if four else f"fe80::{k + 1}:2"), None, k) for k in (0, 1)
    )
    peer = Peer("b", (ip_address("10.1.0.2"),), tuple(map(ip_network, prefixes)), paths, SECRET)
    return Topology("a", ADDRESSES, [peer])


@asynccontextmanager
async def routes(known=None, **options):
    node, netlink = Node(known or topology()), Netlink(options)
    try:
        await netlink.open(node.surroundings)
        yield netlink, node
    finally:
        await node.close(netlink)


def table(metric=None):
    """(prefix, metric, interface, gateway) of the routes with our protocol."""
    found = set()
    for version in "46":
        for one in json.loads(run(f"ip -{version} -j -N -details route show proto 109")):
            gateway = one.get("gateway") or one.get("via", {}).get("host", "")
            found.add((one["dst"], one["metric"], one["dev"], gateway))
    return {row for row in found if metric in (None, row[1])}


def nexthops():
    return {
        one["id"]: (one.get("dev"), one.get("gateway") or one.get("via", {}).get("host"))
        for one in json.loads(run("ip -j nexthop show") or "[]")
    }


def rows(metric, link):
    return {
        (dst, metric, f"l{link}", f"fe80::{link + 1}:2") for dst in ("10.1.0.2", "10.9.0.0/16", "fd00::2")
    }


def use(link, action="use_path"):
    return Step("netlink", action, {"peer": "b", "path": f"b/l{link}"})


@pytest.mark.parametrize("way", ["auto", "no"])
@pytest.mark.kernel
async def test_moves(links, way):
    async with routes(nexthops=way) as (netlink, node):
        assert table() == rows(10_000, 0) | rows(10_001, 1)
        first = await netlink.act(use(0))
        assert (first.changed, first.detail) == (True, "nothing -> b/l0")
        assert table() == rows(10_000, 0) | rows(10_001, 1) | rows(100, 0)
        assert not (await netlink.act(use(0))).changed
        moved = netlink.act_now(use(1))
        assert (moved.changed, moved.detail) == (True, "b/l0 -> b/l1")
        assert table(100) == rows(100, 1)
        assert nexthops() == ({FIRST_ID: ("l1", "fe80::2:2")} if way == "auto" else {})
        assert [event.entity.name for event in node.events if event.kind == "path.active"] == [
            "b/l0",
            "b/l0",
            "b/l1",
        ]
        # as a packet would go: IPv4 by an IPv6 neighbour
        (got,) = json.loads(run("ip -j route get 10.9.1.1"))
        assert (got["dev"], got["prefsrc"], got["via"]["host"]) == ("l1", "10.1.0.1", "fe80::2:2")
    assert table() == rows(10_000, 0) | rows(10_001, 1) | rows(100, 1)  # they outlive the agent


async def test_what_an_earlier_agent_left_is_adopted(links):
    async with routes() as (netlink, _):
        await netlink.act(use(1))
    before = (table(), nexthops())
    async with routes() as (netlink, node):
        assert (table(), nexthops()) == before
        assert [(event.kind, event.entity.name) for event in node.events] == [("path.active", "b/l1")]
        assert netlink.status().attached == {"routes to b": "b/l1"}
        assert not (await netlink.act(use(1))).changed


async def test_what_is_not_ours_is_left_alone(links):
    run(f"ip nexthop add id {FIRST_ID} via fe80::1:77 dev l0")
    run("ip route add 10.9.0.0/16 dev l0 metric 200")
    run("ip route add 10.77.0.0/16 dev l1 metric 100")
    theirs = run("ip route show proto boot")
    async with routes() as (netlink, node):
        for link in (0, 1, 0):
            await netlink.act(use(link))
            await asyncio.sleep(0.02)  # the kernel's echo of each move is heard before the next one
        assert nexthops() == {FIRST_ID: ("l0", "fe80::1:77"), FIRST_ID + 1: ("l0", "fe80::1:2")}
        run("ip route del 10.77.0.0/16")
        run(f"ip nexthop del id {FIRST_ID}")
        run("ip route add 10.78.0.0/16 dev lo")
        run("ip link add marker type veth peer name its_peer")
        await node.heard("link.new")
        assert not any(event.kind.startswith(("route.", "nexthop.")) for event in node.events)
    assert "10.9.0.0/16 dev l0" in theirs
    assert "10.9.0.0/16 dev l0 scope link metric 200" in run("ip route show proto boot")


async def test_what_goes_down_with_a_link_is_laid_again(links):
    async with routes() as (netlink, node):
        await netlink.act(use(0))
        run("ip link set l0 down")
        await node.heard("link.down")
        assert nexthops() == {}
        assert table() >= rows(10_001, 1)  # never without a route
        assert (await netlink.act(use(1))).changed
        assert table() == rows(10_001, 1) | rows(100, 1)
        run("ip link set l0 up")
        run("ip -6 addr add fe80::1:1/64 dev l0 nodad")
        await node.heard("link.up")
        await node.until(lambda: table() == rows(10_000, 0) | rows(10_001, 1) | rows(100, 1))


@pytest.mark.kernel
async def test_a_route_in_use_comes_back_with_its_link(links):
    """The kernel flushes a nexthop object with its link and tells nobody; with no other path nobody moves."""
    async with routes() as (netlink, node):
        await netlink.act(use(0))
        run("ip link set l0 down")
        await node.heard("link.down")
        assert table(100) == set()
        run("ip link set l0 up")
        run("ip -6 addr add fe80::1:1/64 dev l0 nodad")
        await node.heard("link.up")
        await node.until(lambda: table() == rows(10_000, 0) | rows(10_001, 1) | rows(100, 0))
        assert netlink.status().counts["repairs"] >= 1


@pytest.mark.kernel
async def test_carrier_loss_is_heard_and_survived(links):
    async with routes() as (netlink, node):
        await netlink.act(use(0))
        run("ip link set r0 down")
        await node.heard("link.down")
        await netlink.act(use(1))
        assert table(100) == rows(100, 1)
        run("ip link set r0 up")
        await node.heard("link.up")
        await node.until(lambda: table() == rows(10_000, 0) | rows(10_001, 1) | rows(100, 1))


async def test_an_interface_made_again_has_its_routes_again(links, monkeypatch):
    asked = []
    async with routes() as (netlink, node):
        # It knows the numbers from what it hears: asking for a name that is away may wait for modprobe.
        monkeypatch.setattr(socket, "if_nametoindex", asked.append)
        await netlink.act(use(1))
        run("ip link del l0")
        await node.heard("link.gone", 1)
        run("ip link add l0 type veth peer name r0")
        run("ip link set r0 up")
        run("ip link set l0 up")
        run("ip -6 addr add fe80::1:1/64 dev l0 nodad")
        await node.heard("link.up")
        await node.until(lambda: table() == rows(10_000, 0) | rows(10_001, 1) | rows(100, 1))
        assert (await netlink.act(use(0))).changed
        assert table(100) == rows(100, 0)
    assert not asked


async def test_paths_over_an_alternative_name(links):
    run("ip link property add dev l1 altname uplink")
    known = topology()
    b = known.peers["b"]
    paths = (b.paths[0], dataclasses.replace(b.paths[1], interface="uplink"))
    async with routes(Topology("a", ADDRESSES, [dataclasses.replace(b, paths=paths)])) as (netlink, node):
        run("ip link set l0 down")
        await node.heard("link.down")
        step = Step("netlink", "use_path", {"peer": "b", "path": "b/uplink"})
        assert (await netlink.act(step)).changed
        assert table(100) == rows(100, 1)


async def test_a_foreign_hand_on_our_nexthop_is_told_and_held(links):
    async with routes() as (netlink, node):
        await netlink.act(use(0))
        run(f"ip nexthop replace id {FIRST_ID} via fe80::2:2 dev l1 protocol 109")
        event = await node.heard("nexthop.new")
        assert (event.entity.name, event.fields["ifindex"]) == ("b", socket.if_nametoindex("l1"))
        assert (await netlink.act(use(0, "hold"))).changed
        assert nexthops() == {FIRST_ID: ("l0", "fe80::1:2")}
        run(f"ip nexthop del id {FIRST_ID}")
        await node.heard("nexthop.gone")
        await netlink.act(use(0, "hold"))
        assert table() == rows(10_000, 0) | rows(10_001, 1) | rows(100, 0)


async def test_a_flush_that_crosses_a_move_is_read_back(links):
    async with routes() as (netlink, node):
        await netlink.act(use(0))
        await node.until(lambda: "nexthop.new" not in node.kinds())
        netlink.act_now(use(1))
        run(f"ip nexthop del id {FIRST_ID}")
        event = await node.heard("nexthop.differs")
        assert (event.fields["expected"], event.fields["found"]) == ("b/l1", "nothing")


async def test_a_route_of_ours_that_somebody_deletes(links):
    async with routes() as (netlink, node):
        await netlink.act(use(0))
        run("ip route del 10.9.0.0/16 metric 100")
        event = await node.heard("route.gone")
        assert event.entity.name == "b"
        await netlink.act(use(0, "hold"))
        assert table(100) == rows(100, 0)


async def test_lost_messages_are_counted_and_asked_for_anew(links):
    async with routes() as (netlink, node):
        await netlink.act(use(0))
        netlink._heard.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        for number in range(60):
            run(f"ip route add 10.100.{number}.0/24 dev lo")
        run("ip link set l1 down")
        run("ip link del l0")
        await node.until(lambda: netlink.status().counts["overruns"])
        event = await node.heard("netlink.overrun")
        assert event.entity.name == "b"
        assert {(event.kind, event.entity.name) for event in node.events} >= {
            ("link.down", "l1"),
            ("link.gone", "l0"),
        }
        assert netlink.read().valid.tolist() == [False, True]


async def test_a_thousand_prefixes(links):
    many = [f"10.{k // 256 + 100}.{k % 256}.0/24" for k in range(1000)]
    async with routes(topology(["10.1.0.2/32", *many])) as (netlink, _):
        assert len(table(10_000)) == len(table(10_001)) == 1001
        await netlink.act(use(0))
        assert len(table(100)) == 1001
        netlink.act_now(use(1))
        assert {row[2] for row in table(100)} == {"l1"}


async def test_ipv4_neighbours(links):
    for k in (0, 1):
        run(f"ip addr add 10.0.{k}.1/24 dev l{k}")
    async with routes(topology(["10.1.0.2/32", "10.9.0.0/16"], four=True)) as (netlink, _):
        await netlink.act(use(1))
        assert table(100) == {(dst, 100, "l1", "10.0.1.2") for dst in ("10.1.0.2", "10.9.0.0/16")}


async def test_refusals(links):
    async with routes() as (netlink, _):
        with pytest.raises(
            PermanentError, match="use_path b over b/l9: no such path is prepared; known: b/l0, b/l1"
        ):
            await netlink.act(Step("netlink", "use_path", {"peer": "b", "path": "b/l9"}))
        with pytest.raises(PermanentError, match="no such action"):
            await netlink.act(use(0, "burn"))
        run("ip link set l1 down")
        with pytest.raises(NetlinkError) as raised:
            await netlink.act(use(1))
        assert raised.value.code
        assert "\n" not in str(raised.value)


async def test_frames(links):
    run("ip link set r1 down")
    async with routes() as (netlink, node):
        frame = netlink.read()
        assert [entity.name for entity in frame.entities] == ["l0", "l1"]
        assert [metric.name for metric in frame.schema.gauges] == ["up", "carrier"]
        assert frame.gauges.tolist() == [[1, 1], [1, 0]]
        run("ip link set l0 down")
        await node.heard("link.down")
        assert netlink.read().gauges[0].tolist()[0] == 0
