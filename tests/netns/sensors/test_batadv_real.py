"""batadv and batman_adv on the real module: three nodes in a line, batctl and the sender's own frames as oracles."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from mapek.knowledge import Topology
from mapek.sensors.batadv import SCHEMA, Batadv
from mapek.sensors.batman_adv import BatmanAdv
from tests.netns.sensors.neighbour import Node
from tests.netns.sensors.wires import Space, run
from tests.support.decode_batadv import decode

pytestmark = [pytest.mark.netns, pytest.mark.kernel, pytest.mark.needs("batman_adv", "batctl")]

PATIENCE_S = 120.0
_SO_RCVBUFFORCE = 33


@dataclass
class Line:
    """a - b - c; the test sits in b, whose interfaces are ba and bc. Between a and b is a bridge, in w."""

    algo: str
    spaces: dict[str, Space]

    def mac(self, node: str, interface: str) -> str:
        with self.spaces[node].entered():
            return str(json.loads(run(f"ip -j link show {interface}"))[0]["address"])

    def batctl(self, table: str) -> list[dict[str, object]]:
        """What batctl says in b."""
        with self.spaces["b"].entered():
            found: list[dict[str, object]] = json.loads(run(f"batctl meshif bat0 {table}"))
            return found


@pytest.fixture(params=["BATMAN_IV", pytest.param("BATMAN_V", marks=pytest.mark.needs("batman_v"))], ids=str)
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    subprocess.run(["modprobe", "batman-adv"], check=True)
    made = Line(request.param, {name: Space.new() for name in "abcw"})
    try:
        for name, space in made.spaces.items():
            with space.entered():
                for key in ("all", "default"):
                    with open(f"/proc/sys/net/ipv6/conf/{key}/disable_ipv6", "w", encoding="ascii") as file:
                        file.write("1")
                if name == "w":
                    run("ip link add lan type bridge")
                    run("ip link set lan up")
                    continue
                run(f"batctl routing_algo {made.algo}")
                run("ip link add bat0 type batadv")
                run("batctl meshif bat0 bridge_loop_avoidance 0")
                run("ip link set bat0 up")
        for one, other in (("a", "w"), ("b", "w"), ("b", "c")):
            near, far = {"aw": ("ab", "wa"), "bw": ("ba", "wb"), "bc": ("bc", "cb")}[one + other]
            path = f"/proc/{os.getpid()}/fd/{made.spaces[other].fd}"
            with made.spaces[one].entered():
                run(f"ip link add {near} mtu 1560 type veth peer name {far} mtu 1560 netns {path}")
                run(f"ip link set {near} up master bat0")
            with made.spaces[other].entered():
                run(f"ip link set {far} up master {'lan' if other == 'w' else 'bat0'}")
        with made.spaces["b"].entered():
            yield made
    finally:
        for space in made.spaces.values():
            with space.entered():
                for _, interface in socket.if_nameindex():
                    if interface in ("bat0", "lan", "ab", "ba", "bc"):
                        subprocess.run(["ip", "link", "del", interface], check=False, capture_output=True)
            space.close()


def tap(space: Space, interface: str) -> socket.socket:
    """Hears every frame of an interface, those going out too."""
    with space.entered():
        heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        heard.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 22)
        heard.bind((interface, 3))
        heard.setblocking(False)
        return heard


def sent_numbers(heard: socket.socket, mac: bytes) -> list[int]:
    """The numbers of what its owner sent of itself: ELP, or OGMs of IV."""
    found = []
    while True:
        try:
            data, address = heard.recvfrom(4096)
        except BlockingIOError:
            return found
        if address[2] != socket.PACKET_OUTGOING:
            continue
        for one in decode(data):
            if one.neighbour == mac and (
                one.kind == "elp" or (one.kind == "iv_ogm" and one.originator == mac)
            ):
                found.append(one.seqno)


def rows_of(sensor: Batadv) -> dict[str, dict[str, int]]:
    frame = sensor.read()
    assert frame is not None
    names = [metric.name for metric in SCHEMA.counters]
    return {
        entity.name: dict(zip(names, counters, strict=True))
        for entity, counters in zip(frame.entities, frame.counters.tolist(), strict=True)
    }


async def mesh_is_up(line: Line, node: Node) -> None:
    """b knows a and c, and so do they each other's primary addresses."""
    await node.until(lambda: len({one["orig_address"] for one in line.batctl("oj")}) == 2, PATIENCE_S)
    await node.until(lambda: len(line.batctl("nj")) == 2, PATIENCE_S)
    if line.algo == "BATMAN_IV":  # which rises over the first seconds from nothing
        await node.until(
            lambda: all(int(str(o["tq"])) > 200 for o in line.batctl("oj") if o.get("best")), PATIENCE_S
        )


def below(row):
    """The mesh interface's port that a row of batctl is about; older kernels tell its index only."""
    return row.get("hard_ifname") or socket.if_indextoname(int(row["hard_ifindex"]))


@pytest.mark.timeout(400)
@pytest.mark.each_row
async def test_the_sensor_says_what_batctl_says(line: Line):
    node, sensor = Node(Topology("b")), BatmanAdv({})
    try:
        await mesh_is_up(line, node)
        await sensor.open(node.surroundings)
        status = sensor.status()
        about = json.loads(run("batctl meshif bat0 mj"))
        assert (
            status.attached["bat0"]
            == f"{line.algo} {about['version']}"
            == f"{about['algo_name']} {about['version']}"
        )
        assert {"bat0/ba": "active", "bat0/bc": "active"}.items() <= status.attached.items()
        assert status.degraded == ()
        sensor.read()
        dumps = sensor.status().counts["dumps"]
        await node.until(lambda: sensor.status().counts["dumps"] > dumps, PATIENCE_S)
        asked = node.clock.now_ns()
        originators, neighbours = line.batctl("oj"), line.batctl("nj")
        frame = sensor.read()
        assert frame is not None
        late_ms = (node.clock.now_ns() - frame.time_ns) / 1e6 + (node.clock.now_ns() - asked) / 1e6
        table = {entity.name: row for entity, row in zip(frame.entities, frame.gauges.tolist(), strict=True)}
        names = [metric.name for metric in frame.schema.gauges]
        best = {f"{one['orig_address']}/{below(one)}": one for one in originators if one.get("best")}
        near = {f"{one['neigh_address']}/{below(one)}": one for one in neighbours}
        assert set(best) == {f"{line.mac('a', 'ab')}/ba", f"{line.mac('c', 'cb')}/bc"}
        assert set(table) == set(best) | set(near)
        for name, row in table.items():
            said = dict(zip(names, row, strict=True))
            assert (said["neighbour"], said["originator"]) == (name in near, name in best)
            if name in best:
                if line.algo == "BATMAN_IV":
                    # a quality moves by some steps between two readings
                    assert abs(said["transmit_quality"] * 255 - float(str(best[name]["tq"]))) <= 16
                    assert said["transmit_quality"] > 0.5
                else:
                    assert said["throughput"] == float(str(best[name]["throughput"])) * 1e3
                # heard anew between the two, at most an OGM interval of 1 s and its jitter
                assert (
                    abs(said["originator_age"] * 1e3 - float(str(best[name]["last_seen_msecs"])))
                    <= 2500 + late_ms
                )
            if name in near:
                assert (
                    abs(said["neighbour_age"] * 1e3 - float(str(near[name]["last_seen_msecs"])))
                    <= 2500 + late_ms
                )
                if line.algo == "BATMAN_V":
                    assert said["neighbour_throughput"] == float(str(near[name]["throughput"])) * 1e3
    finally:
        await node.close(sensor)


@pytest.mark.timeout(400)
@pytest.mark.needs("netem")
@pytest.mark.each_row
async def test_loss_is_what_the_sender_sent_and_did_not_come(line: Line):
    """The oracle hears what leaves a; the bridge behind it drops, and tells nobody."""
    subprocess.run(["modprobe", "sch_netem"], check=True)
    node, sensor = Node(Topology("b")), Batadv({"interfaces": ["ba", "bc"]})
    a = line.mac("a", "ab")
    name, mac = f"{a}/ba", bytes.fromhex(a.replace(":", ""))
    numbers: list[int] = []
    heard = tap(line.spaces["a"], "ab")

    def received() -> int:
        return rows_of(sensor).get(name, {}).get("broadcasts_received", 0)

    def settled() -> tuple[int, dict[str, int]]:
        """How many a had sent, and the row then: nothing was sent while it was read."""
        while True:
            numbers.extend(sent_numbers(heard, mac))
            row = rows_of(sensor)[name]
            if not (more := sent_numbers(heard, mac)):
                return len(numbers), row
            numbers.extend(more)

    try:
        await mesh_is_up(line, node)
        with line.spaces["a"].entered():
            run(
                "batctl hardif ab elp_interval 100" if line.algo == "BATMAN_V" else "batctl orig_interval 100"
            )
        await sensor.open(node.surroundings)
        await node.until(lambda: received() >= 3, PATIENCE_S)
        sent_before, before = settled()
        with line.spaces["w"].entered():
            run("tc qdisc add dev wb root netem loss 30%")
        await node.until(lambda: received() >= before["broadcasts_received"] + 100, PATIENCE_S)
        with line.spaces["w"].entered():
            run("tc qdisc del dev wb root")
        now = received()
        await node.until(lambda: received() >= now + 3, PATIENCE_S)  # a gap is closed by what comes after it
        sent, after = settled()
    finally:
        heard.close()
        await node.close(sensor)
    moved = {key: after[key] - before[key] for key in after}
    print(f"{line.algo}: sent {sent - sent_before}, {moved}")
    assert len(set(numbers)) == len(numbers)
    assert (
        moved["broadcasts_received"] + moved["broadcasts_lost"] - moved["broadcasts_late"]
        == sent - sent_before
    )
    assert 0.15 < moved["broadcasts_lost"] / (sent - sent_before) < 0.5
    assert moved["sequence_restarts"] == moved["broadcasts_repeated"] == 0
