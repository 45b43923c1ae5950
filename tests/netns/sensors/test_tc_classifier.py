"""tc_classifier on real packets, counted beside it by the interface, by a queue, and by who sent them."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mapek.bpf.tc import TcLink
from mapek.errors import AttachError, ConfigError
from mapek.model import Entity, Step
from mapek.sensors import hardware as asking
from mapek.sensors.hardware import Hardware, hardware
from mapek.sensors.tc_classifier import TcClassifier
from mapek.sensors.tc_classifier_classes import parse_classes
from mapek.testing import check_touchpoint
from tests.netns.sensors.neighbour import Node, topology
from tests.netns.sensors.wires import Space, on_tc, run

pytestmark = [pytest.mark.netns, pytest.mark.kernel]

MACS = b"\xff" * 6 + b"\x02" * 6
CLASSES = {"voice": "protocol=udp dscp=ef", "web": "port=80,443", "bad": "port=666 verdict=drop"}
VARIANTS = [pytest.param("tcx", marks=pytest.mark.needs("tcx")), "clsact"]


def udp4(port: int, dscp: int = 0, size: int = 50, tag: bytes = b"") -> bytes:
    ip = struct.pack("!BBHHHBBHII", 0x45, dscp << 2, 28 + size, 0, 0, 64, 17, 0, 0x0A000001, 0x0A000002)
    return MACS + tag + b"\x08\x00" + ip + struct.pack("!HHHH", 5, port, 8 + size, 0) + bytes(size)


def tcp6(port: int) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, 20, 6, 64) + bytes(32)
    return MACS + b"\x86\xdd" + head + struct.pack("!HHIIBBHHH", 5, port, 0, 0, 0x50, 0, 0, 0, 0)


FRAMES = {
    "voice": (udp4(9, 46), 7),
    "web": (tcp6(443), 11),
    "bad": (udp4(666), 5),
    "other": (udp4(9), 13),
}


@pytest.fixture
def quiet(space: Space) -> Space:
    """Nothing is sent but what the test sends."""
    for scope in ("all", "default"):
        with open(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6", "w", encoding="ascii") as file:
            file.write("1")
    run("ip link add near type veth peer name far")
    run("ip link set near arp off up")
    run("ip link set far arp off up")
    return space


@contextmanager
def sender(interface: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        out.bind((interface, 0))
        yield out


def send(interface: str, frames: dict[str, tuple[bytes, int]] = FRAMES) -> None:
    with sender(interface) as out:
        for frame, times in frames.values():
            for _ in range(times):
                try:
                    out.send(frame)
                except OSError as error:
                    # what egress drops, its sender hears of
                    if error.errno != errno.ENOBUFS or frame is not FRAMES["bad"][0]:
                        raise


def link_counters(interface: str) -> dict[str, dict[str, int]]:
    """rx and tx as the interface counted them."""
    found = json.loads(run(f"ip -s -j link show {interface}"))[0]["stats64"]
    return {way: {unit: int(found[way][unit]) for unit in ("packets", "bytes")} for way in ("rx", "tx")}


def counted(sensor: TcClassifier, interface: str = "near") -> dict[tuple[str, str, str], int]:
    """(class, direction, metric) -> count, without zeros."""
    frame = sensor.read()
    assert frame is not None
    row = [entity.name for entity in frame.entities].index(interface)
    return {
        (dict(metric.labels)["class"], dict(metric.labels)["direction"], metric.name): int(value)
        for metric, value in zip(frame.schema.counters, frame.counters[row], strict=True)
        if value
    }


def wanted(direction: str) -> dict[tuple[str, str, str], int]:
    found = {}
    for name, (frame, times) in FRAMES.items():
        found[name, direction, "packets"] = times
        found[name, direction, "bytes"] = times * len(frame)
    found["bad", direction, "dropped"] = FRAMES["bad"][1]
    return found


@pytest.mark.parametrize("variant", VARIANTS)
async def test_both_directions_exactly(quiet: Space, variant: str):
    node = Node(topology())
    sensor = TcClassifier({"interfaces": ["near"], "classes": CLASSES, "variant": variant})
    try:
        await sensor.open(node.surroundings)
        assert sensor.status().attached == {"near": f"tc {variant}"}
        before = link_counters("near"), link_counters("far")
        send("far")
        send("near")
        total = sum(times for _, times in FRAMES.values())
        await node.until(lambda: link_counters("near")["rx"]["packets"] == before[0]["rx"]["packets"] + total)
        assert counted(sensor) == wanted("ingress") | wanted("egress")
        after = link_counters("near"), link_counters("far")
        # what came in passed the driver before it came here; what goes out passes it only if it is not dropped
        size = sum(len(frame) * times for frame, times in FRAMES.values())
        lost, times = FRAMES["bad"]
        assert after[0]["rx"]["bytes"] - before[0]["rx"]["bytes"] == size
        assert after[1]["rx"]["packets"] - before[1]["rx"]["packets"] == total - times
        assert after[1]["rx"]["bytes"] - before[1]["rx"]["bytes"] == size - times * len(lost)
    finally:
        await node.close(sensor)
    assert run("tc filter show dev near ingress") == run("tc filter show dev near egress") == ""
    if variant == "tcx":
        assert on_tc("near") == (0, 0)


@pytest.mark.parametrize("variant", VARIANTS)
async def test_changing_classes_under_traffic_loses_no_count(quiet: Space, variant: str):
    node = Node(topology())
    sensor = TcClassifier({"interfaces": ["near"], "variant": variant})
    tables = [
        parse_classes(table)
        for table in (
            {"low": "port=9", "voice": "dscp=ef"},
            {"voice": "dscp=ef"},
            {},
            {"udp": "protocol=udp"},
        )
    ]
    stop, sent = threading.Event(), [0]

    def traffic() -> None:
        frames = [udp4(9), udp4(9, 46), udp4(10)]
        with sender("far") as out:
            while not stop.is_set():
                for frame in frames:
                    out.send(frame)
                sent[0] += len(frames)

    def total() -> int:
        return sum(n for (_, _, metric), n in counted(sensor).items() if metric == "packets")

    def by_name() -> dict[str, int]:
        return {name: n for (name, _, metric), n in counted(sensor).items() if metric == "packets"}

    try:
        await sensor.open(node.surroundings)
        before = link_counters("near")["rx"]["packets"]
        thread = threading.Thread(target=traffic)
        thread.start()
        seen, last = set(), by_name()
        try:
            for turn in range(24):
                assert await sensor.set_classes(tables[turn % len(tables)])
                at = total()
                await node.until(lambda at=at: total() > at + 30)
                now = by_name()
                assert now.get("other", 0) >= last.get("other", 0)
                assert now.get("removed", 0) >= last.get("removed", 0)
                seen |= set(now)
                last = now
        finally:
            stop.set()
            await asyncio.to_thread(thread.join)
        assert seen == {"low", "voice", "udp", "other", "removed"}
        await node.until(lambda: link_counters("near")["rx"]["packets"] == before + sent[0])
        assert total() == sent[0]
    finally:
        stop.set()
        await node.close(sensor)


async def test_a_class_keeps_its_counts_while_others_change(quiet: Space):
    node = Node(topology())
    sensor = TcClassifier({"interfaces": ["near"], "classes": CLASSES})
    try:
        await sensor.open(node.surroundings)
        send("far")
        await node.until(lambda: counted(sensor) == wanted("ingress"))
        step = Step("tc_classifier", "classify", {"new": "port=9", "voice": "protocol=udp dscp=ef"})
        assert (await sensor.act(step)).changed
        assert not (await sensor.act(step)).changed
        send("far")
        # "new" comes before "voice" now and takes its packets; 11 and 5 of the first round went to who is gone
        known = {
            ("voice", "ingress", "packets"): 7,
            ("new", "ingress", "packets"): 7 + 13,
            ("other", "ingress", "packets"): 13 + 11 + 5,
            ("removed", "ingress", "packets"): 11 + 5,
            ("removed", "ingress", "dropped"): 5,
        }
        await node.until(lambda: known.items() <= counted(sensor).items())
        with pytest.raises(ConfigError, match="verdict"):
            await sensor.act(Step("tc_classifier", "classify", {"a": "port=1 verdict=deny"}))
        assert [one.name for one in sensor.classes] == ["new", "voice"]
    finally:
        await node.close(sensor)


@pytest.mark.host
async def test_more_changes_than_there_are_slots(quiet: Space):
    """All 64 classes replaced by others again and again: each begins at zero, and the sum stays."""
    node = Node(topology())
    sensor = TcClassifier({"interfaces": ["near"]})
    try:
        await sensor.open(node.surroundings)
        sent = 0
        for turn in range(6):
            await sensor.set_classes(
                parse_classes({f"t{turn}-{n}": f"destination_port={1000 + n}" for n in range(64)})
            )
            send("far", {str(n): (udp4(1000 + n), 2) for n in range(64)})
            sent += 128
            own = {(f"t{turn}-{n}", "ingress", "packets"): 2 for n in range(64)}
            own |= {("removed", "ingress", "packets"): sent - 128} if turn else {}
            await node.until(
                lambda own=own: own == {k: v for k, v in counted(sensor).items() if k[2] == "packets"}
            )
    finally:
        await node.close(sensor)


@pytest.mark.parametrize("variant", VARIANTS)
async def test_counts_outlive_the_interface(quiet: Space, variant: str):
    node = Node(topology())
    sensor = TcClassifier({"interfaces": ["near"], "classes": CLASSES, "variant": variant})
    try:
        await sensor.open(node.surroundings)
        send("far")
        await node.until(lambda: counted(sensor) == wanted("ingress"))
        run("ip link del near")
        await node.until(lambda: sensor.status().degraded)
        assert not sensor.status().attached
        assert counted(sensor) == wanted("ingress")
        run("ip link add near type veth peer name far")
        run("ip link set near arp off up")
        run("ip link set far arp off up")
        await node.until(lambda: sensor.status().attached == {"near": f"tc {variant}"})
        await node.settled()
        assert sensor.status().degraded == ()
        send("far")
        twice = {key: 2 * value for key, value in wanted("ingress").items()}
        await node.until(lambda: counted(sensor) == twice)
    finally:
        await node.close(sensor)


async def test_merged_packets_count_as_a_queue_counts_them(space: Space):
    """A TCP stream between namespaces, which veth carries in packets of up to 64 KB."""
    node, there = Node(topology()), Space.new()
    sensor = TcClassifier({"interfaces": ["near"], "classes": {"stream": "protocol=tcp port=5001"}})
    try:
        run(f"ip link add near type veth peer name far netns /proc/{os.getpid()}/fd/{there.fd}")
        run("ip addr add 10.9.0.1/24 dev near")
        run("ip link set near up")
        # a queue of its own: veth has none, and only queues count segments
        run("tc qdisc add dev near root pfifo limit 10000")
        with there.entered():
            run("ip addr add 10.9.0.2/24 dev far")
            run("ip link set far up")
            listener = socket.create_server(("10.9.0.2", 5001))
        await sensor.open(node.surroundings)

        def held() -> tuple[int, int]:
            queue = json.loads(run("tc -s -j qdisc show dev near"))[0]
            return queue["packets"], queue["bytes"]

        def ours() -> tuple[int, int]:
            found = counted(sensor)
            return tuple(
                sum(n for (_, way, m), n in found.items() if (way, m) == ("egress", metric))
                for metric in ("packets", "bytes")
            )

        # The interface says hello by itself, maybe before the classifier listens.
        begun = held(), ours()
        while begun[0] != held():
            begun = held(), ours()

        def since(which: int) -> tuple[int, int]:
            now = (held, ours)[which]()
            return now[0] - begun[which][0], now[1] - begun[which][1]

        def drain() -> int:
            with listener, listener.accept()[0] as one:
                return sum(map(len, iter(lambda: one.recv(1 << 20), b"")))

        def fill() -> None:
            with socket.create_connection(("10.9.0.2", 5001)) as out:
                out.sendall(bytes(4_000_000))

        drained = asyncio.ensure_future(asyncio.to_thread(drain))
        await asyncio.to_thread(fill)
        assert await drained == 4_000_000

        await node.until(lambda: since(0) == since(1))
        packets, size = since(1)
        assert packets > 4_000_000 // 1460
        assert size > 4_000_000 + packets * 54
        assert counted(sensor)["stream", "egress", "packets"] > 0.99 * packets
    finally:
        await node.close(sensor)
        run("ip link del near")
        there.close()


@pytest.mark.needs("tun")
async def test_packets_without_an_ethernet_header(space: Space):
    """A tun device, as WireGuard's, hands over bare IP packets; fd in, fd out, in this namespace."""
    node = Node(topology())
    sensor = TcClassifier({"interfaces": ["tun9"], "classes": CLASSES | {"back": "source_port=7"}})
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"tun9", 0x0001 | 0x1000))
        run("ip addr add 10.8.0.1/24 dev tun9")
        run("ip link set tun9 up")
        await sensor.open(node.surroundings)
        for frame, times in FRAMES.values():
            for _ in range(times):
                os.write(tun, frame[14:])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.bind(("10.8.0.1", 7))
            for _ in range(3):
                out.sendto(b"x" * 10, ("10.8.0.2", 9))
        found = counted(sensor, "tun9")
        for name, (frame, times) in FRAMES.items():
            assert found[name, "ingress", "packets"] == times
            assert found[name, "ingress", "bytes"] == times * (len(frame) - 14)
        assert found["back", "egress", "packets"] == 3
        assert found["back", "egress", "bytes"] == 3 * 38
    finally:
        await node.close(sensor)
        os.close(tun)


async def test_a_tag_that_the_kernel_keeps_apart_is_counted(quiet: Space):
    """The kernel takes a VLAN tag out of what arrives before tc sees it: 4 bytes that are on the wire all the same."""
    node = Node(topology())
    sensor = TcClassifier({"interfaces": ["near"], "classes": CLASSES})
    try:
        await sensor.open(node.surroundings)
        frame = udp4(9, 46, tag=struct.pack("!HH", 0x8100, 5))
        send("far", {"voice": (frame, 4)})
        send("near", {"voice": (frame, 3)})
        await node.until(lambda: len(counted(sensor)) == 4)
        assert counted(sensor) == {
            ("voice", "ingress", "packets"): 4,
            ("voice", "ingress", "bytes"): 4 * len(frame),
            ("voice", "egress", "packets"): 3,
            ("voice", "egress", "bytes"): 3 * len(frame),
        }
    finally:
        await node.close(sensor)


@pytest.mark.parametrize("variant", VARIANTS)
async def test_what_it_does_not_drop_goes_on_to_other_programs(quiet: Space, variant: str):
    node = Node(topology())
    first, second = (
        TcClassifier({"interfaces": ["near"], "classes": classes, "variant": variant})
        for classes in (CLASSES, {})
    )
    try:
        # a tcx program is appended, a clsact filter of the same priority comes before the older ones
        for one in (first, second) if variant == "tcx" else (second, first):
            await one.open(node.surroundings)
        send("far")
        await node.until(lambda: counted(first) == wanted("ingress"))
        passed = sum(times for name, (_, times) in FRAMES.items() if name != "bad")
        assert counted(second)["other", "ingress", "packets"] == passed
        await first.close()
        send("far")
        total = passed + sum(times for _, times in FRAMES.values())
        await node.until(lambda: counted(second)["other", "ingress", "packets"] == total)
    finally:
        await node.close(first, second)


@pytest.mark.host
async def test_a_name_that_moved_on_is_not_asked_for_its_type(quiet: Space):
    """The kernel tells the type by name, and that may be another interface's by then."""
    found = hardware(Entity("link", "near", socket.if_nametoindex("near")), "look at")
    assert (found.kind, found.link_header) == (1, 14)
    assert found.address.hex(":") == json.loads(run("ip -j link show near"))[0]["address"]
    with pytest.raises(AttachError, match="look at near: another interface has this name"):
        hardware(Entity("link", "near", socket.if_nametoindex("far")), "look at")
    with pytest.raises(AttachError, match="No such device"):
        hardware(Entity("link", "nobody", 9999), "look at")


@pytest.mark.host
async def test_the_type_is_asked_for_beside_the_loop(quiet: Space, monkeypatch):
    node, sensor, asked = Node(topology()), TcClassifier({"interfaces": ["near"]}), []

    def watched(link: Entity, tried: str) -> Hardware:
        asked.append(threading.current_thread())
        return hardware(link, tried)

    monkeypatch.setattr(asking, "hardware", watched)
    try:
        await sensor.open(node.surroundings)
        assert asked
        assert threading.current_thread() not in asked
    finally:
        await node.close(sensor)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.host
async def test_leaving_is_repeatable_where_it_was_cut(quiet: Space, variant: str, monkeypatch):
    """The last one first, and what is not undone is not forgotten."""
    node = Node(topology())
    sensor = TcClassifier({"interfaces": ["near"], "variant": variant})
    try:
        await sensor.open(node.surroundings)
        (counting,) = sensor._interfaces.attached.values()
        first, last = counting.links
        taken, detach = [], type(last).detach_async

        async def cut(link: TcLink) -> None:
            if link is first and taken == [last]:
                taken.append(None)
                raise asyncio.CancelledError
            await detach(link)
            taken.append(link)

        monkeypatch.setattr(type(last), "detach_async", cut)
        with pytest.raises(asyncio.CancelledError):
            await counting.leave()
        assert counting.links == [first]
        await counting.leave()
        assert taken == [last, None, first]
        assert counting.links == []
        assert run("tc filter show dev near ingress") == run("tc filter show dev near egress") == ""
    finally:
        await node.close(sensor)


def test_the_variant_that_doctor_asks_for():
    assert TcClassifier({"variant": "clsact"}).wanted_variant == "clsact"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.host
async def test_keeps_the_contract(quiet: Space, variant: str):
    step = Step("tc_classifier", "classify", {"all": "protocol=udp"})
    options = {"interfaces": ["near"], "classes": CLASSES, "variant": variant}
    await check_touchpoint(lambda: TcClassifier(options), step=step)
    assert run("tc filter show dev near ingress") == run("tc filter show dev near egress") == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": {"a": "port=70000"}}, 'a: has port "70000"; it is a number from 0 to 65535'),
        ({"classes": {"other": "port=7"}}, "other: is no name for a class"),
        ({"classes": ["port=7"]}, "classes: is a list, not a table"),
        ({"variant": "xdp"}, "variant"),
    ],
)
@pytest.mark.host
def test_wrong_options(options: dict[str, object], words: str):
    with pytest.raises(ConfigError) as raised:
        TcClassifier(options)
    assert words in str(raised.value)
