"""batadv on real frames: what a hand-made mesh sends over a veth pair, counted against what was sent."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess

import numpy as np
import pytest

from mapek.errors import AttachError, ConfigError
from mapek.knowledge import Topology
from mapek.model import Frame
from mapek.sensors import batadv
from mapek.sensors.batadv import SCHEMA, Batadv
from tests.netns.sensors.neighbour import Node
from tests.netns.sensors.wires import Space, Wire, on_tc, run
from tests.support.decode_batadv import elp, frame, iv_ogm

pytestmark = pytest.mark.netns

A, B, C = (bytes([2, 0, 0, 0, 0, last]) for last in (1, 2, 3))
NAMES = [metric.name for metric in SCHEMA.counters]
GAUGES = [metric.name for metric in SCHEMA.gauges]


def sender(interface: str = "far") -> socket.socket:
    out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    out.bind((interface, 0))
    return out


def reading(sensor: Batadv) -> dict[str, dict[str, float]]:
    """Entity name -> what its row says."""
    found = sensor.read()
    assert isinstance(found, Frame)
    return {
        entity.name: dict(zip([*NAMES, *GAUGES], [*counters, *gauges], strict=True))
        for entity, counters, gauges in zip(
            found.entities, found.counters.tolist(), found.gauges.tolist(), strict=True
        )
    }


def programs_on(interface: str) -> int:
    """How many programs the kernel says are attached where frames come in."""
    return on_tc(interface)[0] + run(f"ip -o link show {interface}").count("prog/xdp")


def link_counts(row: dict[str, float]) -> tuple[float, ...]:
    return tuple(row[name] for name in NAMES)


def known(sensor: Batadv) -> set[bytes]:
    """What the kernel's map has as this node's addresses."""
    assert sensor._own is not None
    return {key.tobytes()[:6] for key in sensor._own.items()[0]}


def name(mac: bytes, interface: str = "near") -> str:
    return f"{mac.hex(':')}/{interface}"


@pytest.fixture
async def node() -> Node:
    return Node(Topology("a"))


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("mode", "where"), [("native", "xdp native"), ("generic", "xdp generic"), ("tc", "tc ")]
)
async def test_counts_what_was_sent_and_what_was_not(wire: Wire, node: Node, mode: str, where: str):
    sensor = Batadv({"interfaces": ["near"], "mode": mode})
    try:
        await sensor.open(node.surroundings)
        assert sensor.status().attached["near"].startswith(where)
        dropped = set(range(10, 400, 7))
        with sender() as out:
            for number in range(400):
                if number not in dropped:
                    out.send(frame(A, iv_ogm(A, number - 100), iv_ogm(C, number // 3)).ljust(60, b"\0"))
                    out.send(frame(B, elp(B, number)).ljust(60, b"\0"))
        sent = 400 - len(dropped)
        await node.until(lambda: reading(sensor) and sensor.status().counts["frames"] == 2 * sent)
        rows = reading(sensor)
        assert link_counts(rows[name(A)]) == (sent, len(dropped), 0, 0, 0, sent)
        assert link_counts(rows[name(B)]) == (sent, len(dropped), 0, 0, 0, 0)
        assert link_counts(rows["other/near"]) == (0,) * 6
        assert rows[name(A)]["originators"] == 1
        assert rows[name(B)]["interval"] == 0.5
        assert rows[name(B)]["silent"] == 0
        counts = sensor.status().counts
        assert {key: value for key, value in counts.items() if value} == {"frames": 2 * sent}
    finally:
        await node.close(sensor)


async def test_frames_of_this_node_and_of_a_vlan(wire: Wire, node: Node):
    sensor = Batadv({"interfaces": ["near"], "mode": "tc"})
    try:
        run("ip link set near address 02:00:00:00:00:77")
        own = bytes.fromhex("020000000077")
        await sensor.open(node.surroundings)
        with sender() as out:
            out.send(frame(own, elp(own, 1)))
            out.send(frame(A, iv_ogm(own, 1), iv_ogm(A, 1)))
            # the kernel takes the tag out of the frame before tc sees it
            out.send(frame(B, elp(B, 1), tag=0x8100))
        await node.until(lambda: reading(sensor) and sensor.status().counts["tagged"] == 1)
        rows = reading(sensor)
        assert set(rows) == {name(A), "other/near"}
        counts = sensor.status().counts
        assert (counts["frames"], counts["own"], counts["tagged"]) == (1, 2, 1)
        # another address: what the old one sends is a stranger's
        run("ip link set near address 02:00:00:00:00:78")
        await node.until(lambda: own not in known(sensor))
        with sender() as out:
            out.send(frame(own, elp(own, 1)))
            out.send(frame(bytes.fromhex("020000000078"), elp(own, 1)))
        await node.until(lambda: name(own) in reading(sensor))
        await node.until(lambda: reading(sensor) and sensor.status().counts["own"] == 3)
    finally:
        await node.close(sensor)


async def test_its_own_addresses_are_known_before_a_program_runs(
    wire: Wire, node: Node, monkeypatch: pytest.MonkeyPatch
):
    """A row that an own frame made would stay until it is forgotten, and fall silent."""
    join, told = batadv.join_ingress, []

    async def joins(*args, **options):
        told.append(known(sensor))
        return await join(*args, **options)

    monkeypatch.setattr(batadv, "join_ingress", joins)
    run("ip link set near address 02:00:00:00:00:77")
    later = bytes.fromhex("020000000099")
    sensor = Batadv({"interfaces": ["near"]})
    try:
        await sensor.open(node.surroundings)
        assert [bytes.fromhex("020000000077") in one for one in told] == [True]
        run("ip link add late address 02:00:00:00:00:99 type veth peer name etal")
        await node.until(lambda: later in known(sensor))
        with sender() as out:
            out.send(frame(later, elp(later, 1)))
        await node.until(lambda: reading(sensor) and sensor.status().counts["own"] == 1)
        assert set(reading(sensor)) == {"other/near"}
        run("ip link del late")
        await node.until(lambda: later not in known(sensor))
    finally:
        await node.close(sensor)


async def test_more_own_addresses_than_there_is_room_for(wire: Wire, node: Node):
    """Those of the mesh come first; one that goes makes room."""
    pair = "link add m{0} address 02:00:00:01:00:{0:02x} type veth peer name y{0} address 02:00:00:01:01:{0:02x}\n"
    lines = "".join(map(pair.format, range(40)))
    subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)
    run("ip link add mesh0 address 02:00:00:00:00:42 type veth peer name zmesh")
    sensor = Batadv({"interfaces": ["mesh0"], "mode": "tc"})
    try:
        await sensor.open(node.surroundings)
        there = {bytes.fromhex(one["address"].replace(":", "")) for one in json.loads(run("ip -j link"))}
        there.discard(bytes(6))
        assert len(known(sensor)) == 64
        assert bytes.fromhex("020000000042") in known(sensor)
        assert sensor.status().counts["own_not_known"] == len(there) - 64
        for k in range(40):
            run(f"ip link del m{k}")
        await node.until(lambda: known(sensor) == {one for one in there if one[3] != 1})
    finally:
        await node.close(sensor)


async def test_silence_is_noticed_and_so_is_the_return(wire: Wire, node: Node):
    sensor = Batadv({"interfaces": ["near"], "silent_after": 4})
    try:
        await sensor.open(node.surroundings)
        with sender() as out:
            for number in range(3):
                out.send(frame(A, elp(A, number, interval_ms=50)))
            await node.until(lambda: name(A) in reading(sensor))
            assert node.kinds() == []
            await node.until(lambda: reading(sensor)[name(A)]["silent"] == 1)
            silent = node.events[-1]
            assert (silent.kind, silent.entity.name) == ("neighbour.silent", name(A))
            assert silent.fields["interval_ns"] == 50_000_000
            heard = silent.fields["heard_ns"]
            assert isinstance(heard, int)
            assert 200_000_000 < silent.time_ns - heard < 1_000_000_000
            out.send(frame(A, elp(A, 9, interval_ms=50)))
            await node.until(lambda: reading(sensor)[name(A)]["silent"] == 0)
        assert node.kinds() == ["neighbour.silent", "neighbour.back"]
        assert reading(sensor)[name(A)]["broadcasts_lost"] == 6
    finally:
        await node.close(sensor)


async def test_who_has_a_row_keeps_it_and_nothing_is_lost(wire: Wire, node: Node):
    sensor = Batadv({"interfaces": ["near"], "neighbours": 2})
    macs = [bytes([2, 0, 0, 0, 1, last]) for last in range(6)]
    try:
        await sensor.open(node.surroundings)
        with sender() as out:
            for mac in macs[:2]:
                out.send(frame(mac, elp(mac, 1)))
            await node.until(lambda: len(reading(sensor)) == 3)
            for number in range(2, 12):
                for mac in macs[2:]:
                    out.send(frame(mac, elp(mac, 2 * number)))
            await node.until(lambda: reading(sensor)["other/near"]["broadcasts_received"] == 40)
        rows = reading(sensor)
        assert set(rows) == {name(macs[0]), name(macs[1]), "other/near"}
        assert link_counts(rows["other/near"]) == (40, 36, 0, 0, 0, 0)
        assert all(rows[name(mac)]["broadcasts_received"] == 1 for mac in macs[:2])
    finally:
        await node.close(sensor)


async def test_an_interface_that_comes_back_keeps_its_counts(wire: Wire, node: Node):
    sensor = Batadv({"interfaces": ["near"]})
    try:
        await sensor.open(node.surroundings)
        with sender() as out:
            out.send(frame(A, elp(A, 1)))
        await node.until(lambda: name(A) in reading(sensor))
        run("ip link del near")
        await node.until(lambda: sensor.status().degraded)
        assert "near: the interface is gone" in sensor.status().degraded[0]
        assert reading(sensor)[name(A)]["broadcasts_received"] == 1
        run("ip link add near type veth peer name far")
        run("ip link set near up")
        run("ip link set far up")
        await node.until(lambda: "near" in sensor.status().attached)
        await node.settled()
        with sender() as out:
            out.send(frame(A, elp(A, 3)))
        await node.until(lambda: reading(sensor)[name(A)]["broadcasts_received"] == 2)
        assert reading(sensor)[name(A)]["broadcasts_lost"] == 1
    finally:
        await node.close(sensor)


async def test_two_cpus_at_once_lose_no_count(wire: Wire, node: Node, space: Space):
    """Two senders on two CPUs share one neighbour's numbers: each number comes once, in any order within 60."""
    sensor = Batadv({"interfaces": ["near"]})
    try:
        await sensor.open(node.surroundings)
        rounds, width = 300, 30

        def send(half: int) -> None:
            with sender() as out:
                for first in range(0, rounds * width, width):
                    for number in range(first + half, first + width, 2):
                        out.send(frame(A, elp(A, number)))

        await asyncio.gather(*(asyncio.to_thread(send, half) for half in (0, 1)))
        await node.until(lambda: reading(sensor) and sensor.status().counts["frames"] == rounds * width)
        row = reading(sensor)[name(A)]
        came = sum(row[one] for one in ("broadcasts_received", "broadcasts_repeated"))
        # a thread may be held up for longer than 64 numbers: then the other's are a restart, and counted all the same
        assert came == rounds * width
        if not row["sequence_restarts"]:
            assert row["broadcasts_lost"] == row["broadcasts_late"]
    finally:
        await node.close(sensor)


async def test_no_interface_and_wrong_options(node: Node, space: Space):
    sensor = Batadv({"interfaces": ["nobody"]})
    with pytest.raises(AttachError, match="listen on nobody: there is no such interface"):
        await sensor.open(node.surroundings)
    await node.close(sensor)
    for options, word in (
        ({"mode": "offload"}, "mode"),
        ({"neighbours": 0}, "neighbours"),
        ({"silent_after": 1}, "silent_after"),
        ({"forget_s": 1.0}, "forget_s"),
    ):
        with pytest.raises(ConfigError, match=word):
            Batadv(options)


async def test_full_tables_are_counted(wire: Wire, node: Node):
    sensor = Batadv({"interfaces": ["near"], "neighbours": 32})
    try:
        await sensor.open(node.surroundings)
        with sender() as out:
            for index in range(1200):
                mac = bytes([2, 1, 0, 0, *index.to_bytes(2, "big")])
                out.send(frame(mac, elp(mac, 1)))
        await node.until(lambda: sensor.read() and sensor.status().counts["frames"] == 1200)
        rows = reading(sensor)
        assert len(rows) == 33
        assert sum(row["broadcasts_received"] for row in rows.values()) == 1024
        assert sensor.status().counts["neighbours_full"] == 176
        assert np.isnan(rows["other/near"]["interval"])
    finally:
        await node.close(sensor)
