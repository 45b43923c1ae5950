"""net_events on real events, counted beside it by the kernel's SNMP counters and by the interfaces."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from mapek.bpf import syscall
from mapek.model import Event
from mapek.sensors.links import Links
from mapek.sensors.net_events import NetEvents
from mapek.sensors.tc_classifier import TcClassifier
from mapek.testing import check_touchpoint
from tests.netns.sensors.neighbour import Node, topology
from tests.netns.sensors.wires import Space, run
from tests.support import machine, veth

pytestmark = [pytest.mark.netns, pytest.mark.kernel]
with_btf = pytest.mark.needs("btf")


def snmp(name: str) -> int:
    """A counter of /proc/net/snmp or netstat of the present namespace ("TcpOutRsts", "TcpExtTCPSynRetrans")."""
    for file in ("snmp", "netstat"):
        lines = Path(f"/proc/thread-self/net/{file}").read_text("ascii").splitlines()
        for heads, values in zip(lines[::2], lines[1::2], strict=True):
            prefix = heads.split(":")[0]
            if name.startswith(prefix) and name.removeprefix(prefix) in heads.split():
                return int(values.split()[heads.split().index(name.removeprefix(prefix))])
    raise KeyError(name)


def counted(sensor: NetEvents) -> dict[tuple[str, str], int]:
    """(metric, label) -> count, without zeros."""
    frame = sensor.read()
    assert frame is not None
    return {
        (metric.name + ("_bytes" if metric.unit == "bytes" else ""), metric.labels[0][1]): int(value)
        for metric, value in zip(frame.schema.counters, frame.counters[0], strict=True)
        if value
    }


@pytest.fixture
def home(space: Space) -> Space:
    run("ip addr add fd00::1/128 dev lo")
    return space


def up(*names: str) -> bool:
    """Do they carry? Before that the kernel drops what is sent, some ms after it says that they are up."""
    links = json.loads(run("ip -j link show"))
    return all(one["operstate"] == "UP" for one in links if one["ifname"] in names)


def refuse(host: str, port: int = 9) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as out, suppress(ConnectionRefusedError):
        out.connect((host, port))


@with_btf
@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", "ipv4"), ("fd00::1", "ipv6")])
async def test_resets_of_a_closed_port(home: Space, host: str, family: str):
    node, sensor = Node(topology()), NetEvents({})
    try:
        await sensor.open(node.surroundings)
        before = snmp("TcpOutRsts")
        for _ in range(5):
            refuse(host)
        sent = snmp("TcpOutRsts") - before
        assert sent == 5
        found = counted(sensor)
        assert found["tcp_reset_received", family] == 5
        # kernels before 6.10 tell of resets of a socket only
        assert found.get(("tcp_reset_sent", family), 0) == (sent if machine.kernel() >= (6, 10) else 0)
        assert not {key for key in found if key[0].startswith("tcp") and key[1] != family}
        await node.until(lambda: "net.reset_received" in node.kinds())
        event = next(one for one in node.events if one.kind == "net.reset_received")
        assert event.entity.kind == "node"
        assert event.fields["destination"] == host
        assert event.fields["destination_port"] == 9
        assert event.fields["state"] == "syn_sent"
    finally:
        await node.close(sensor)


@with_btf
async def test_a_reset_of_a_connection(home: Space):
    node, sensor = Node(topology()), NetEvents({})
    try:
        await sensor.open(node.surroundings)
        before = snmp("TcpOutRsts"), snmp("TcpEstabResets")
        with socket.create_server(("127.0.0.1", 0)) as server:
            one = socket.create_connection(server.getsockname())
            other = server.accept()[0]
            other.send(b"unread")
            with other:
                # closing with unread data resets
                one.close()
        found = counted(sensor)
        assert found["tcp_reset_sent", "ipv4"] == snmp("TcpOutRsts") - before[0] == 1
        assert found["tcp_reset_received", "ipv4"] == 1
        # both ends are here
        assert snmp("TcpEstabResets") - before[1] == 2
    finally:
        await node.close(sensor)


@with_btf
async def test_drops_have_the_kernels_reason(home: Space):
    node, sensor = Node(topology()), NetEvents({})
    try:
        await sensor.open(node.surroundings)
        before = snmp("UdpNoPorts")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            for _ in range(20):
                with suppress(ConnectionRefusedError):
                    out.sendto(b"x", ("127.0.0.1", 9))
        assert snmp("UdpNoPorts") - before == 20
        reason = "no_socket" if machine.kernel() >= (5, 17) else "unspecified"
        assert counted(sensor)["drop", reason] >= 20
        if machine.kernel() >= (5, 17):
            assert counted(sensor)["drop", reason] == 20
        await node.until(lambda: node.kinds().count("net.drop") >= 10)
        drops = [one for one in node.events if one.kind == "net.drop" and one.fields["reason"] == reason]
        assert {
            (
                one.fields["source"],
                one.fields["destination"],
                one.fields["destination_port"],
                one.fields["protocol"],
            )
            for one in drops
        } >= {("127.0.0.1", "127.0.0.1", 9, "udp")}
        # 10 a second, of which a second's worth may come at once: the rest is counted
        assert node.kinds().count("net.drop") <= 11
        assert sensor.status().counts["unsampled"] >= 9
        assert sensor.status().counts["ring_drops"] == 0
    finally:
        await node.close(sensor)


@with_btf
async def test_a_receive_buffer_that_is_full(home: Space):
    """Dropped when the packet has a socket but may have lost its device."""
    node, sensor = Node(topology()), NetEvents({"samples_per_s": 0})
    try:
        await sensor.open(node.surroundings)
        before = snmp("UdpRcvbufErrors")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as to:
            to.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            to.bind(("127.0.0.1", 0))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
                for _ in range(50):
                    out.sendto(bytes(1000), to.getsockname())
        lost = snmp("UdpRcvbufErrors") - before
        assert lost > 30
        found = counted(sensor)
        reason = "socket_rcvbuff" if machine.kernel() >= (5, 17) else "unspecified"
        assert found.get(("drop", reason), 0) + sensor.status().counts["unattributed"] >= lost
        if machine.kernel() >= (6, 12):
            assert found["drop", reason] == lost
        assert node.events == []
    finally:
        await node.close(sensor)


@with_btf
async def test_retransmits(home: Space):
    """A peer that suddenly hears nothing, for a filter at its end drops all: data goes out again."""
    node, sensor, there = Node(topology()), NetEvents({}), Space.new()
    try:
        run(f"ip link add near type veth peer name far netns /proc/{os.getpid()}/fd/{there.fd}")
        run("ip addr add 10.9.0.1/24 dev near")
        run("ip link set near up")
        with there.entered():
            run("ip addr add 10.9.0.2/24 dev far")
            run("ip link set far up")
            server = socket.create_server(("10.9.0.2", 7))
        await sensor.open(node.surroundings)
        before = snmp("TcpRetransSegs")
        with server, socket.create_connection(("10.9.0.2", 7)) as out, server.accept()[0]:
            with there.entered():
                wall = TcClassifier({"interfaces": ["far"], "classes": {"all": "protocol=tcp verdict=drop"}})
                await wall.open(node.surroundings)
            out.sendall(bytes(100))
            await node.until(lambda: counted(sensor).get(("tcp_retransmit", "ipv4"), 0) >= 3, 10)
            assert snmp("TcpRetransSegs") - before == counted(sensor)["tcp_retransmit", "ipv4"]
            with there.entered():
                await wall.close()
        event = next(one for one in node.events if one.kind == "net.retransmit")
        assert (event.fields["source"], event.fields["destination"]) == ("10.9.0.1", "10.9.0.2")
        assert (event.fields["destination_port"], event.fields["state"]) == (7, "established")
    finally:
        await node.close(sensor)
        run("ip link del near")
        there.close()


@with_btf
async def test_a_syn_ack_again(home: Space):
    """A caller that does not hear our answers: its end of the wire drops them."""
    node, sensor, there = Node(topology()), NetEvents({}), Space.new()
    wall = TcClassifier({"interfaces": ["far"], "classes": {"all": "source_port=70 verdict=drop"}})
    try:
        run(f"ip link add near type veth peer name far netns /proc/{os.getpid()}/fd/{there.fd}")
        run("ip addr add 10.9.0.1/24 dev near")
        run("ip link set near up")
        with there.entered():
            run("ip addr add 10.9.0.2/24 dev far")
            run("ip link set far up")
            caller = socket.socket()
            caller.setblocking(False)
            await wall.open(node.surroundings)
        await sensor.open(node.surroundings)
        with socket.create_server(("10.9.0.1", 70)), caller:
            with suppress(BlockingIOError):
                caller.connect(("10.9.0.1", 70))
            await node.until(lambda: counted(sensor).get(("tcp_retransmit_synack", "ipv4"), 0) >= 1, 10)
            assert counted(sensor)["tcp_retransmit_synack", "ipv4"] == snmp("TcpRetransSegs")
            assert ("tcp_retransmit", "ipv4") not in counted(sensor)
    finally:
        await node.close(sensor, wall)
        run("ip link del near")
        there.close()


@with_btf
async def test_other_namespaces_are_not_ours(home: Space):
    node, ours, all_of_them, there = (
        Node(topology()),
        NetEvents({}),
        NetEvents({"all_namespaces": True}),
        Space.new(),
    )
    try:
        await ours.open(node.surroundings)
        await all_of_them.open(node.surroundings)
        with there.entered():
            for _ in range(6):
                refuse("127.0.0.1")
        assert counted(all_of_them)["tcp_reset_received", "ipv4"] >= 6
        assert counted(ours) == {}
    finally:
        await node.close(ours, all_of_them)
        there.close()


WITHOUT_BTF = """
import asyncio, json, socket, sys
from contextlib import suppress
sys.path.insert(0, {root!r})
from mapek.bpf import syscall
from mapek.model import Event
from mapek.sensors.links import Links
from mapek.sensors.net_events import NetEvents
from tests.netns.sensors.neighbour import Node, topology
from tests.netns.sensors.test_net_events import counted, refuse
from tests.netns.sensors.wires import run

async def main():
    run("ip link set lo up")
    run("ip addr add fd00::1/128 dev lo")
    node, sensor = Node(topology()), NetEvents({{"variant": "tracepoint", "samples_per_s": 1000.0}})
    await sensor.open(node.surroundings)
    for host in ("127.0.0.1", "fd00::1"):
        for _ in range(5):
            refuse(host, 4077)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        for _ in range(20):
            with suppress(ConnectionRefusedError):
                out.sendto(b"x", ("127.0.0.1", 9))
    await node.until(lambda: "net.drop" in node.kinds() and "net.reset_received" in node.kinds())
    told = [dict(one.fields) for one in node.events if one.kind == "net.reset_received"]
    status = sensor.status()
    print(json.dumps([list(counted(sensor).items()), told, status.attached, status.degraded]))
    await node.close(sensor)

asyncio.run(main())
"""


def test_without_btf(tmp_path: Path):
    """By classic tracepoints, in a mount namespace that has tracefs; it counts all network namespaces."""
    script = tmp_path / "inside.py"
    script.write_text(WITHOUT_BTF.format(root=str(Path(__file__).resolve().parents[3])))
    inside = f"""
        [ -d /sys/kernel/tracing/events ] || mount -t tracefs tracefs /sys/kernel/tracing || exit
        exec {sys.executable} {script}
    """
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", inside], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr[-3000:]
    items, told, attached, degraded = json.loads(done.stdout)
    found = {tuple(key): value for key, value in items}
    assert attached == dict.fromkeys(
        ("tcp_retransmit_skb", "tcp_retransmit_synack", "tcp_send_reset", "tcp_receive_reset", "kfree_skb"),
        "tracepoint",
    )
    assert any("all network namespaces" in line for line in degraded)
    for family in ("ipv4", "ipv6"):
        assert found["tcp_reset_received", family] >= 5
        assert found.get(("tcp_reset_sent", family), 0) >= (5 if machine.kernel() >= (6, 10) else 0)
    assert found["drop", "no_socket" if machine.kernel() >= (5, 17) else "unspecified"] >= 20
    for host in ("127.0.0.1", "fd00::1"):
        ours = [one for one in told if (one["destination"], one["destination_port"]) == (host, 4077)]
        assert len(ours) == 5


@with_btf
@pytest.mark.host
async def test_keeps_the_contract(home: Space):
    await check_touchpoint(lambda: NetEvents({"packets": True}))


@with_btf
@pytest.mark.host
async def test_what_the_kernel_skipped_is_said(home: Space, monkeypatch):
    """It skips a program that interrupts itself, and tells of each program how often."""
    info = syscall.info

    def told(fd: int, size: int) -> bytearray:
        data = info(fd, size)
        if syscall.kind(fd) == "prog":
            struct.pack_into("=Q", data, 208, 3)  # recursion_misses
        return data

    node, sensor = Node(topology()), NetEvents({})
    try:
        await sensor.open(node.surroundings)
        assert sensor.status().counts["recursions"] == 0
        monkeypatch.setattr(syscall, "info", told)
        assert sensor.status().counts["recursions"] == 3 * 5
    finally:
        monkeypatch.undo()
        await node.close(sensor)


@with_btf
async def test_packets_of_each_interface(space: Space):
    node, sensor = Node(topology()), NetEvents({"packets": True})
    try:
        with open("/proc/sys/net/ipv6/conf/default/disable_ipv6", "w", encoding="ascii") as file:
            file.write("1")
        run("ip link add near type veth peer name far")
        for name in ("near", "far"):
            run(f"ip link set {name} arp off up")
        await node.until(lambda: up("near", "far"))
        await sensor.open(node.surroundings)
        frame = b"\xff" * 6 + b"\x02" * 6 + b"\x08\x00" + bytes(100)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
            out.bind(("far", 0))
            for _ in range(37):
                out.send(frame)
        await node.until(lambda: counted(sensor).get(("received", "near"), 0) == 37)
        found = {key: value for key, value in counted(sensor).items() if key[1] in ("near", "far")}
        assert found == {
            ("received", "near"): 37,
            ("received_bytes", "near"): 37 * 100,
            ("sent", "far"): 37,
            ("sent_bytes", "far"): 37 * len(frame),
        }
    finally:
        await node.close(sensor)


@with_btf
async def test_counts_follow_the_name(space: Space):
    """Another interface takes the name of one that was renamed: neither counts what the other carried."""
    node, sensor, renamed = Node(topology()), NetEvents({"packets": True, "samples_per_s": 0}), []

    def received() -> dict[str, int]:
        names = ("near", "other", "extra")
        return {
            name: n for (what, name), n in counted(sensor).items() if what == "received" and name in names
        }

    def carried(interface: str) -> int:
        return int(json.loads(run(f"ip -s -j link show {interface}"))[0]["stats64"]["rx"]["packets"])

    def send(interface: str, times: int) -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
            out.bind((interface, 0))
            for _ in range(times):
                out.send(b"\xff" * 6 + b"\x02" * 6 + b"\x08\x00" + bytes(100))

    def hear(event: Event) -> None:
        if event.kind == "link.renamed":
            renamed.append(event.entity.name)

    links = node.surroundings.shared(Links)
    try:
        with open("/proc/sys/net/ipv6/conf/default/disable_ipv6", "w", encoding="ascii") as file:
            file.write("1")
        for name, peer in (("near", "far"), ("extra", "artxe")):
            run(f"ip link add {name} type veth peer name {peer}")
            for end in (name, peer):
                run(f"ip link set {end} arp off up")
        await node.until(lambda: up("near", "far", "extra", "artxe"))
        await sensor.open(node.surroundings)
        await links.join(hear, node.clock.now_ns)
        send("far", 5)
        send("artxe", 9)
        await node.until(lambda: received() == {"near": 5, "extra": 9})
        # These nobody reads before the name goes to another.
        send("far", 4)
        await node.until(lambda: carried("near") == 9)
        for name, then in (("near", "other"), ("extra", "near")):
            run(f"ip link set {name} down")
            run(f"ip link set {name} name {then}")
            run(f"ip link set {then} up")
        await node.until(lambda: renamed == ["other", "near"] and up("far", "artxe", "near", "other"))
        assert received() == {"near": 9, "extra": 9}
        send("far", 3)
        send("artxe", 2)
        await node.until(lambda: received() == {"near": 9 + 2, "other": 3, "extra": 9})
    finally:
        links.leave(hear)
        await node.close(sensor)


@pytest.mark.host
@with_btf
@pytest.mark.parametrize("told", [True, False], ids=["told", "what the kernel said was lost"])
async def test_interfaces_that_are_gone_make_room(space: Space, told: bool):
    """Eighty interfaces, never more than eight at once."""
    node, sensor = Node(topology()), NetEvents({"packets": True, "samples_per_s": 0})
    names = [(f"a{n}", f"b{n}") for n in range(4)]
    links = node.surroundings.shared(Links)
    try:
        with open("/proc/sys/net/ipv6/conf/default/disable_ipv6", "w", encoding="ascii") as file:
            file.write("1")
        await sensor.open(node.surroundings)
        if not told:
            links.leave(links._listeners[0])
        for _ in range(10):
            for near, far in names:
                veth.pair(near, far)
            await node.until(lambda: up(*(name for pair in names for name in pair)))
            for near, _ in names:
                with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
                    out.bind((near, 0))
                    out.send(b"\xff" * 6 + b"\x02" * 6 + b"\x88\xb5" + bytes(100))
            found = counted(sensor)
            for near, _ in names:
                veth.delete(near)
            links.hear_now()
        rows = [found["sent", near] for near, _ in names] + [found["received", far] for _, far in names]
        others = found.get(("received", "other"), 0) + found.get(("sent", "other"), 0)
        assert sensor.status().counts["map_full"] == others
        if told:
            assert rows == [10] * 8
        else:
            # Until somebody looks, those that come to a full map share a row.
            assert sum(rows) == 80 - others
            assert 0 < others <= 8
            assert min(rows) >= 9
    finally:
        await node.close(sensor)


@pytest.mark.host
@with_btf
async def test_an_interface_too_many_is_counted_with_the_others(space: Space):
    """The map is full after 63 interfaces: further ones share a row, and that is said."""
    node, sensor = Node(topology()), NetEvents({"packets": True, "samples_per_s": 0})
    try:
        with open("/proc/sys/net/ipv6/conf/default/disable_ipv6", "w", encoding="ascii") as file:
            file.write("1")
        await sensor.open(node.surroundings)
        for n in range(40):
            run(f"ip link add a{n} type veth peer name b{n}")
            run(f"ip link set a{n} arp off up")
            run(f"ip link set b{n} arp off up")
        await node.until(lambda: up(*(f"{end}{n}" for end in "ab" for n in range(40))))
        for n in range(40):
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
                out.bind((f"a{n}", 0))
                out.send(b"\xff" * 6 + b"\x02" * 6 + b"\x08\x00" + bytes(100))
        await node.until(lambda: sum(v for (m, _), v in counted(sensor).items() if m == "received") == 40)
        found = counted(sensor)
        assert sum(value for (metric, _), value in found.items() if metric == "sent") == 40
        others = found["received", "other"] + found["sent", "other"]
        assert others == sensor.status().counts["map_full"] >= 80 - 63
    finally:
        await node.close(sensor)
