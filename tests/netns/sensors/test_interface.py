"""interface on real links; the oracles are sysfs, `ip`, `tc` and veth's own knowledge of its peer."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from mapek.errors import AttachError
from mapek.knowledge import check_frame
from mapek.sensors.interface import Interface
from mapek.sensors.interface_wire import STATISTICS, Dumper
from tests.netns.sensors.neighbour import Node, topology
from tests.netns.sensors.wires import run
from tests.support.machine import patience


@pytest.fixture
def links(space):
    lay(0)
    lay(1)
    return space


def lay(k):
    run(f"ip link add l{k} type veth peer name r{k}")
    for name in (f"l{k}", f"r{k}"):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")  # or it speaks by itself
        run(f"ip link set {name} up")
    deadline = time.monotonic() + patience(5)
    while any(operstate(f"{side}{k}") != "UP" for side in "lr"):
        # until the kernel has noticed the carrier, what is sent falls into the void and is not counted
        assert time.monotonic() < deadline, f"l{k} does not come up"
        time.sleep(0.005)


def operstate(interface):
    return json.loads(run(f"ip -j link show dev {interface}"))[0]["operstate"]


def send(interface, times=1, size=60):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        out.bind((interface, 0))
        for _ in range(times):
            out.send(b"\xff" * 12 + b"\x88\xb5" + bytes(size - 14))


@asynccontextmanager
async def counting(**options):
    node, sensor = Node(topology()), Interface(options)
    sensor.period_ns = 60_000_000
    try:
        await sensor.open(node.surroundings)
        yield sensor, node
    finally:
        await node.close(sensor)


async def fresh(sensor, node):
    """What a look that began after this call found."""
    now, found = node.clock.now_ns(), []

    def later():
        frame = sensor.read()
        if frame is not None and frame.time_ns > now + 5_000_000:
            found.append(frame)
        return found

    await node.until(later)
    check_frame(found[0])
    return found[0]


def cell(frame, link, name, side=None, statistic=None):
    (row,) = [k for k, entity in enumerate(frame.entities) if entity.name == link]
    labels = {"side": side} if side else {"statistic": statistic} if statistic else {}
    (column,) = [
        k for k, one in enumerate(frame.schema.counters) if one.name == name and dict(one.labels) == labels
    ]
    assert frame.valid[row], f"{link} is away"
    return int(frame.counters[row, column])


def gauge(frame, link, name):
    row = [entity.name for entity in frame.entities].index(link)
    return frame.gauges[row, [one.name for one in frame.schema.gauges].index(name)]


@pytest.mark.kernel
async def test_every_statistic_is_the_kernels(links):
    run("ip link set r1 down")
    async with counting() as (sensor, node):
        send("l0", 5, 100)
        send("r0", 3, 200)
        frame = await fresh(sensor, node)
        assert [str(one) for one in frame.entities] == ["link l0", "link l1"]
        for name in ("l0", "l1"):
            told = json.loads(run(f"ip -s -s -j link show dev {name}"))[0]["stats64"]
            told = {f"{side}_{key}": value for side in ("rx", "tx") for key, value in told[side].items()}
            for statistic in ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets", "rx_dropped", "tx_dropped"):
                assert cell(frame, name, statistic) == told[statistic]
        assert cell(frame, "l0", "tx_packets") == 5
        assert cell(frame, "l0", "tx_bytes") == 500
        assert (cell(frame, "l0", "rx_packets"), cell(frame, "l0", "rx_bytes")) == (3, 600)
        assert cell(frame, "l1", "carrier_down") >= 1
        assert [gauge(frame, name, "operstate") for name in ("l0", "l1")] == [6, 3]


async def test_proc_net_dev_says_the_same(space):
    async with counting(interfaces=["lo"]) as (sensor, node):
        run("ping -c 2 -i 0.01 -q 127.0.0.1") if Path("/bin/ping").exists() else _loop_back()
        frame = await fresh(sensor, node)
        lines = [line.split(":") for line in Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]]
        told = {name.strip(): list(map(int, rest.split())) for name, rest in lines}["lo"]
        for place, statistic in {0: "rx_bytes", 1: "rx_packets", 8: "tx_bytes", 9: "tx_packets"}.items():
            assert cell(frame, "lo", statistic) == told[place] > 0


def _loop_back():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        for _ in range(3):
            out.sendto(b"x" * 100, ("127.0.0.1", 9))


async def test_what_the_queue_holds_and_drops(links):
    run("tc qdisc add dev l0 root tbf rate 8kbit burst 200 limit 1000")
    run("tc qdisc add dev l0 clsact")
    run("tc filter add dev l0 ingress u32 match u32 0 0")  # without a filter nothing goes through it
    async with counting(interfaces=["l0"]) as (sensor, node):
        send_what_it_takes("l0", 40, 100)
        send("r0", 4, 100)
        for _ in range(20):  # a packet may leave between the two looks
            frame = await fresh(sensor, node)
            root, ingress = told("l0")
            row = {
                name: cell(frame, "l0", f"qdisc_{name}", "egress")
                for name in ("drops", "overlimits", "packets")
            }
            if row["packets"] == root["packets"] and row["overlimits"] == root["overlimits"]:
                break
        assert root["kind"] == "tbf"
        assert row["drops"] == root["drops"] > 0
        assert cell(frame, "l0", "qdisc_bytes", "egress") == root["bytes"]
        assert cell(frame, "l0", "qdisc_requeues", "egress") == root["requeues"]
        assert gauge(frame, "l0", "qdisc_backlog") == root["backlog"] > 0
        assert gauge(frame, "l0", "qdisc_queue") == root["qlen"] > 0
        assert cell(frame, "l0", "qdisc_packets", "ingress") == ingress["packets"] == 4
        assert sensor.status().attached == {"l0": "netlink, qdisc tbf"}


def send_what_it_takes(interface, times, size):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        out.bind((interface, 0))
        for _ in range(times):
            try:
                out.send(b"\xff" * 12 + b"\x88\xb5" + bytes(size - 14))
            except OSError:
                continue  # ENOBUFS: the queue dropped it, which is what is counted


def told(interface):
    """Root and ingress as `tc` has them."""
    found = json.loads(run(f"tc -s -j qdisc show dev {interface}"))
    return next(one for one in found if one.get("root")), next(
        one for one in found if one["kind"] == "clsact"
    )


async def test_the_drivers_own_statistics(links):
    async with counting(ethtool=True) as (sensor, node):
        frame = await fresh(sensor, node)
        for k in (0, 1):
            peer = socket.if_nametoindex(f"r{k}")
            assert cell(frame, f"l{k}", "driver", statistic="peer_ifindex") == peer
        assert frame.schema == sensor.schema()
        assert len(frame.schema.counters) > len(STATISTICS) + 12
        assert sensor.status().degraded == ()


async def test_gone_and_back_and_renamed(links):
    async with counting() as (sensor, node):
        send("l0", 7)
        first = await fresh(sensor, node)
        assert cell(first, "l0", "tx_packets") == 7
        run("ip link del l0")
        await node.until(lambda: any("l0: there is no such" in word for word in sensor.status().degraded))
        away = await fresh(sensor, node)
        assert away.valid.tolist() == [False, True]
        assert away.entities == first.entities
        assert np.isnan(away.gauges[0]).all()
        lay(0)
        await node.until(lambda: sensor.status().degraded == ())
        send("l0", 2)
        back = await fresh(sensor, node)
        assert cell(back, "l0", "tx_packets") == 2
        assert back.entities[0].generation == socket.if_nametoindex("l0") != first.entities[0].generation
        run("ip link set l0 down")
        run("ip link set l0 name other")
        await node.until(lambda: sensor.status().degraded)
        assert (await fresh(sensor, node)).valid.tolist() == [False, True]
        run("ip link set other name l0")
        await node.until(lambda: sensor.status().degraded == ())
        assert cell(await fresh(sensor, node), "l0", "tx_packets") == 2  # the same one


async def test_all_interfaces_as_they_come_and_go(links):
    async with counting(interfaces=["*"]) as (sensor, node):
        frame = await fresh(sensor, node)
        assert {one.name for one in frame.entities} == {"lo", "l0", "r0", "l1", "r1"}
        lay(2)
        await node.until(lambda: {"l2", "r2"} <= set(sensor.status().attached))
        run("ip link del l0")
        await node.until(lambda: "l0" not in sensor.status().attached)
        frame = await fresh(sensor, node)
        assert {one.name for one in frame.entities} == {"lo", "l1", "r1", "l2", "r2"}
        assert frame.valid.all()


async def test_more_interfaces_than_rows(links, monkeypatch):
    monkeypatch.setattr("mapek.sensors.interface_rows.MOST_ROWS", 3)
    monkeypatch.setattr("mapek.sensors.interface.MOST_ROWS", 3)
    async with counting(interfaces=["*"]) as (sensor, node):
        frame = await fresh(sensor, node)
        kept = frame.entities
        assert len(kept) == 3
        assert sensor.status().counts["rows_left_out"] == 2
        assert any("2 interfaces beyond 3" in word for word in sensor.status().degraded)
        lay(2)
        await node.until(lambda: sensor.status().counts["rows_left_out"] == 4)
        assert (await fresh(sensor, node)).entities == kept


async def test_reading_costs_the_same_for_many_rows(links):
    """It runs on the event loop: what it calls must not grow with the interfaces."""

    async def calls(sensor, node):
        made = []
        while not made:  # until a look has brought a frame
            before = sys.getprofile()
            sys.setprofile(lambda frame, event, what: made.append(event) if "call" in event else None)
            try:
                frame = sensor.read()
            finally:
                sys.setprofile(before)
            if frame is None:
                made.clear()
                await asyncio.sleep(0.001)
        return len(made), len(frame.entities)

    async with counting(interfaces=["*"], ethtool=True) as (sensor, node):
        few = await calls(sensor, node)
        for k in range(2, 22):
            run(f"ip link add l{k} type veth peer name r{k}")
        await node.until(lambda: "r21" in sensor.status().attached)
        many = await calls(sensor, node)
    assert many[1] == few[1] + 40
    assert many[0] < few[0] + 20  # with or without a timer to cancel


async def test_none_is_there(space):
    node, sensor = Node(topology()), Interface({})
    with pytest.raises(AttachError, match="count on l0: there is no such interface"):
        await sensor.open(node.surroundings)
    await node.close(sensor)


def test_a_dump_that_something_crosses_is_made_again(links):
    """While links come and go, no dump lacks one that was there all the time."""
    for k in range(2, 60):
        run(f"ip link add l{k} type veth peer name r{k}")
    stop = threading.Event()

    def stir():
        while not stop.is_set():
            run("ip link add stir type veth peer name rits")
            run("ip link del stir")

    stirring = threading.Thread(target=stir)
    dumper = Dumper.new()
    stirring.start()
    try:
        for _ in range(2000):
            names = {link.name for link in dumper.links().values()}
            assert names >= {"lo", *(f"{side}{k}" for side in "lr" for k in range(60))}
            if dumper.counts["interrupted_dumps"] >= 3:
                break
        assert dumper.counts["interrupted_dumps"] >= 3
    finally:
        stop.set()
        stirring.join()
        dumper.close()


async def test_lost_link_messages_are_counted_and_made_up_for(links):
    async with counting() as (sensor, node):
        heard = sensor._links._heard
        heard.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        for _ in range(12):
            run("ip link set l1 mtu 1400")
            run("ip link set l1 mtu 1500")
        run("ip link del l0")
        await node.until(lambda: sensor.status().counts["overruns"])
        await node.until(lambda: any("l0: there is no such" in word for word in sensor.status().degraded))
