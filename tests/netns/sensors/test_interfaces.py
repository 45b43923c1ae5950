"""link_watch and xdp_counter while interfaces come and go, and where there is something in the way."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading

import pytest

from mapek.bpf import ObjectSpec, attach_xdp, load, object_path, read_xdp
from mapek.bpf.locks import Lock
from mapek.bpf.xdp import Link
from mapek.errors import AttachError, ConfigError, DegradedError, FeatureError
from mapek.model import Entity, Event
from mapek.sensors.batadv import Batadv
from mapek.sensors.link_watch import LinkWatch
from mapek.sensors.link_watch_kernel import Kernel
from mapek.sensors.mesh_filter import MeshFilter
from mapek.sensors.tc_classifier import TcClassifier
from mapek.sensors.xdp_counter import XdpCounter
from tests.netns.sensors.neighbour import Node, neighbour, topology
from tests.netns.sensors.wires import on_tc, run
from tests.support.machine import has, patience
from tests.support.stamp import parse


@pytest.fixture
def other(space, spec, request):
    with neighbour(space, spec, mode=getattr(request, "param", "native")) as found:
        yield found


def link(kind: str, name: str) -> Event:
    return Event(1, Entity("link", name, socket.if_nametoindex(name) if kind != "link.gone" else 0), kind)


def frame_of(touchpoint):
    """What it reads now; it must read something."""
    found = touchpoint.read()
    assert found is not None
    return found


def udp(counter, interface):
    """IPv4 UDP packets that it counted on an interface."""
    frame = frame_of(counter)
    row = [entity.name for entity in frame.entities].index(interface)
    return sum(
        int(value)
        for metric, value in zip(frame.schema.counters, frame.counters[row], strict=True)
        if metric.unit == "packets" and {("family", "ipv4"), ("protocol", "udp")} <= set(metric.labels)
    )


def reply(heard):
    """Is the next frame the reply to `other.probe`?"""
    try:
        raw = heard.recv(2048)
    except BlockingIOError:
        return False
    return raw[12:14] == b"\x08\x00" and parse(raw).ports == (862, 45000)


def troubles(watch):
    """What it says is missing, but for the timer that a kernel before 5.15 does not have."""
    lasting = () if has("bpf_timer") else ("bpf_timer",)
    return [word for word in watch.status().degraded if not any(name in word for name in lasting)]


@pytest.mark.kernel
async def test_deleted_and_made_again(other):
    node, watch = Node(topology()), LinkWatch({"interval_ms": patience(2.0), "pin": "no"})
    try:
        await watch.open(node.surroundings)
        await node.until(lambda: (other.states[:2]["reflected"] > 20).all())
        other.hush(0)  # what was silent before is so until it answers again
        await node.heard("path.silent")
        run("ip link del l0")
        watch.on_event(link("link.gone", "l0"))
        assert list(watch.status().attached) == ["l1"]
        assert any("l0: the interface is gone" in word for word in watch.status().degraded)
        other.states[0]["reflected"] = 0
        other.lay(0)
        # the kernel says both, one after the other, and says that it has an address
        for kind in ("link.new", "link.up", "address.new"):
            watch.on_event(link(kind, "l0"))
        await node.settled()
        back = await node.heard("path.back")
        assert back.entity.name == "b/l0"
        assert on_tc("l0") == on_tc("l1") == (0, 1)
        assert troubles(watch) == []
        # stamped once: the numbers that the neighbour saw go up by one with each probe that it answered
        row = other.states[0]
        first, seen = int(row["peer_newest"]), int(row["reflected"])
        await node.until(lambda: row["reflected"] >= seen + 50)
        assert abs((int(row["peer_newest"]) - first) - (int(row["reflected"]) - seen)) <= 1
        assert node.kinds() == ["path.silent", "path.back"]
    finally:
        await node.close(watch)


@pytest.mark.parametrize("comes_back", [True, False])
async def test_it_goes_while_it_is_attached_to(other, monkeypatch, comes_back):
    """Whoever attaches hears nothing of it: the first one is not attached yet, and the next one is not awaited."""
    attach, first = Kernel.attach, socket.if_nametoindex("l0")

    async def slow(kernel, interface, around):
        one = await attach(kernel, interface, around)
        if one.ifindex == first:
            run("ip link del l0")
            if comes_back:
                other.states[0]["reflected"] = 0
                other.lay(0)
        return one

    monkeypatch.setattr(Kernel, "attach", slow)
    node, watch = Node(topology()), LinkWatch({"interval_ms": 2.0, "pin": "no", "wait": True})
    try:
        await watch.open(node.surroundings)
        if comes_back:
            await node.until(lambda: other.states[0]["reflected"] > 20)
            assert troubles(watch) == []
            assert on_tc("l0") == on_tc("l1") == (0, 1)
        else:
            await node.until(lambda: other.states[1]["reflected"] > 20)
            assert any("l0: the interface is gone" in word for word in troubles(watch))
    finally:
        await node.close(watch)


@pytest.mark.parametrize(
    "make", [lambda: LinkWatch({"pin": "no", "wait": True}), lambda: XdpCounter({"interfaces": ["l0", "l1"]})]
)
async def test_the_loop_asks_nothing_that_waits(other, monkeypatch, make):
    """A link's ifindex waits for rtnl, and the number of a name that is away for modprobe."""
    asked: list[tuple[str, bool]] = []

    def watched(name, call):
        def asks(*args):
            # What this test lays itself is no sensor's asking.
            if sys._getframe(1).f_globals["__name__"].startswith("mapek."):
                asked.append((name, threading.get_ident() == here))
            return call(*args)

        return asks

    here = threading.get_ident()
    node, touchpoint = Node(topology()), make()
    try:
        for owner, name in ((Link, "_info"), (socket, "if_nametoindex")):
            monkeypatch.setattr(owner, name, watched(name, getattr(owner, name)))
        run("ip link del l0")
        await touchpoint.open(node.surroundings)
        assert list(touchpoint.status().attached) == ["l1"]
        other.lay(0)
        touchpoint.on_event(Event(1, Entity("link", "l0", 0), "link.up"))
        await node.until(lambda: len(touchpoint.status().attached) == 2)
        touchpoint.read()
    finally:
        await node.close(touchpoint)
    assert {name for name, _ in asked} == {"_info", "if_nametoindex"}
    assert not [name for name, on_the_loop in asked if on_the_loop]


@pytest.mark.kernel
async def test_down_and_up(other):
    node, watch = Node(topology()), LinkWatch({"interval_ms": patience(2.0), "pin": "no"})
    try:
        await watch.open(node.surroundings)
        await node.until(lambda: (other.states[:2]["reflected"] > 20).all())
        watch.read()
        run("ip link set l0 down")
        await node.until(lambda: any("probe b/l0" in word for word in watch.status().degraded))
        run("ip link set l0 up")
        seen = int(other.states[0]["reflected"])
        await node.until(lambda: other.states[0]["reflected"] > seen + 20)
        watch.read()
        await node.until(lambda: troubles(watch) == [])
        assert node.kinds("b/l1") == []
    finally:
        await node.close(watch)


async def test_waits_for_an_interface_and_for_an_address(other):
    run("ip link del l0")
    node = Node(topology())
    with pytest.raises(AttachError, match=r"watch l0: there is no such interface; .*wait"):
        await (strict := LinkWatch({"pin": "no"})).open(node.surroundings)
    await strict.close()
    watch = LinkWatch({"pin": "no", "wait": True, "interval_ms": 2.0})
    try:
        await watch.open(node.surroundings)
        assert list(watch.status().attached) == ["l1"]
        other.lay(0)
        watch.on_event(link("link.up", "l0"))
        await node.settled()
        assert set(watch.status().attached) == {"l0", "l1"}
        await node.until(lambda: other.states[0]["reflected"] > 5)
    finally:
        await node.close(watch)


@pytest.mark.parametrize(("mode", "other"), [("native", "native"), ("tc", "generic")], indirect=["other"])
@pytest.mark.kernel
async def test_a_probe_with_a_vlan_tag_is_passed_on(other, mode):
    """On tc the stack has taken the tag off before the program sees the frame."""
    node, watch = Node(topology()), LinkWatch({"interval_ms": 2.0, "pin": "no", "mode": mode})
    try:
        await watch.open(node.surroundings)
        other.probe(0, 1, tag=b"\x81\x00\x00\x07")
        other.probe(0, 2)
        await node.until(lambda: watch.status().counts["reflected"] > 0)
        assert watch.status().counts["reflected"] == 1
    finally:
        await node.close(watch)


@pytest.mark.needs("tcx")
@pytest.mark.parametrize(
    ("mode", "told", "other"),
    [
        ("native", "xdp native", "native"),
        ("generic", "xdp generic", "generic"),
        ("tc", "tc tcx", "generic"),
        ("auto", "xdp native", "native"),
    ],
    indirect=["other"],
)
@pytest.mark.kernel
async def test_modes(other, mode, told):
    node, watch = Node(topology()), LinkWatch({"interval_ms": 2.0, "pin": "no", "mode": mode})
    try:
        await watch.open(node.surroundings)
        assert all(word.startswith(told) for word in watch.status().attached.values())
        xdp = read_xdp(socket.if_nametoindex("l0"))
        assert (xdp.mode if xdp else "tc") == told.split()[-1].replace("tcx", "tc")
        await node.until(lambda: watch.status().counts["answered"] > 20)
        with other.tap(0) as heard:
            other.probe(0, 1)
            await node.until(lambda: watch.status().counts["reflected"] == 1)
            # the reply went out and arrived: the neighbour, which sent no such probe by itself, rejects it;
            # only from what tc redirected the kernel keeps generic XDP away
            await node.until(lambda: other.states[0]["rejected"] == 1 or (mode == "tc" and reply(heard)))
    finally:
        await node.close(watch)
    assert read_xdp(socket.if_nametoindex("l0")) is None
    assert on_tc("l0") == on_tc("l1") == (0, 0)


ON_INGRESS = {
    "batadv": (lambda mode: Batadv({"interfaces": ["l0"], "mode": mode}), "tc"),
    "mesh_filter": (lambda mode: MeshFilter({"interfaces": ["l0"], "mode": mode}), "tc"),
    "xdp_counter": (lambda mode: XdpCounter({"interfaces": ["l0"], "mode": mode}), "xdp generic"),
    "link_watch": (lambda mode: LinkWatch({"pin": "no", "wait": True, "mode": mode}), "tc"),
}


@pytest.mark.parametrize("other", ["generic"], indirect=True)
@pytest.mark.parametrize("name", ON_INGRESS)
@pytest.mark.kernel
async def test_auto_goes_on_where_the_driver_refuses(other, name):
    """veth has native XDP for what fits into a page: a peer's MTU of 9000 is out of range."""
    with other.space.entered():
        run("ip link set r0 mtu 9000")
        run("ip link set r1 mtu 9000")
    make, told = ON_INGRESS[name]
    node = Node(topology())
    native, touchpoint = make("native"), make("auto")
    try:
        with pytest.raises(FeatureError, match=r"l[01] .* refuses native XDP \(ERANGE: "):
            await native.open(node.surroundings)
        await native.close()
        await touchpoint.open(node.surroundings)
        assert touchpoint.status().attached["l0"].startswith(told)
        assert any("ERANGE" in word for word in touchpoint.status().degraded) == (told == "tc")
    finally:
        await node.close(native, touchpoint)
    assert read_xdp(socket.if_nametoindex("l0")) is None
    assert on_tc("l0") == (0, 0)


@pytest.mark.kernel
async def test_link_watch_goes_to_tc_beside_a_foreign_program(other):
    node, watch = Node(topology()), LinkWatch({"pin": "no", "interval_ms": 2.0})
    index = socket.if_nametoindex("l0")
    with load(ObjectSpec.read(object_path("empty"))) as loaded, attach_xdp(loaded.programs["empty"], index):
        before = read_xdp(index)
        try:
            await watch.open(node.surroundings)
            told = watch.status().attached
            assert told["l0"].startswith("tc ")
            assert told["l1"].startswith("xdp native")
            assert any("program 'empty'" in word for word in watch.status().degraded)
            await node.until(lambda: (other.states[:2]["reflected"] > 5).all())
            await node.until(lambda: watch.status().counts["answered"] > 20)
        finally:
            await node.close(watch)
        assert read_xdp(index) == before


@pytest.mark.parametrize("name", ["mesh_filter", "batadv", "link_watch"])
async def test_nobody_goes_to_tc_beside_another_agent(other, name):
    node, touchpoint = Node(topology()), ON_INGRESS[name][0]("auto")
    locks = [Lock.take(f"if{socket.if_nametoindex(one)}", "test", one) for one in ("l0", "l1")]
    try:
        with pytest.raises(AttachError, match=f"the agent with pid {os.getpid()} has it"):
            await touchpoint.open(node.surroundings)
        assert on_tc("l0") == on_tc("l1") == (0, 0)
    finally:
        await node.close(touchpoint)
        for lock in locks:
            lock.release()


@pytest.mark.parametrize("make", [LinkWatch, XdpCounter])
@pytest.mark.kernel
async def test_a_foreign_program_stays(other, make):
    node = Node(topology())
    index = socket.if_nametoindex("l0")
    with load(ObjectSpec.read(object_path("empty"))) as loaded:
        with attach_xdp(loaded.programs["empty"], index):
            before = read_xdp(index)
            assert before is not None
            own = {"interfaces": ["l0"]} if make is XdpCounter else {"pin": "no", "mode": "native"}
            touchpoint = make(own)
            with pytest.raises(AttachError) as raised:
                await touchpoint.open(node.surroundings)
            assert read_xdp(index) == before
            await node.close(touchpoint)
            assert read_xdp(index) == before
        assert f"id {before.program_id}" in str(raised.value)
        assert "\n" not in str(raised.value)
    assert read_xdp(socket.if_nametoindex("l1")) is None
    assert on_tc("l0") == on_tc("l1") == (0, 0)


async def test_a_pin_without_a_bpffs(other, monkeypatch, tmp_path):
    monkeypatch.setattr("mapek.bpf.pins.BPFFS", tmp_path)
    node, watch = Node(topology()), LinkWatch({"pin": "yes"})
    try:
        with pytest.raises(DegradedError, match="no writable bpffs; mount -t bpf"):
            await watch.open(node.surroundings)
    finally:
        await watch.close()
    watch = LinkWatch({"pin": "auto"})
    try:
        await watch.open(node.surroundings)
        assert [word for word in watch.status().degraded if "does not outlive" in word]
    finally:
        await node.close(watch)


@pytest.mark.kernel
async def test_the_counter_counts_what_arrives(other):
    node, counter = Node(topology()), XdpCounter({"interfaces": ["l0", "l1"], "sample_every": 1})
    try:
        await counter.open(node.surroundings)
        before = frame_of(counter)
        for seq in range(1, 6):
            other.probe(0, seq)
        names = [(metric.name, metric.unit, dict(metric.labels)) for metric in before.schema.counters]

        def moved():
            change = frame_of(counter).counters - before.counters
            return {
                (row, *names[column][:2], names[column][2]["family"], names[column][2]["protocol"]): int(
                    value
                )
                for row, line in enumerate(change.tolist())
                for column, value in enumerate(line)
                if value and names[column][2]["family"] == "ipv4"
            }

        await node.until(lambda: len(moved()) == 2)
        await node.until(lambda: moved()[0, "receive", "packets", "ipv4", "udp"] == 5)
        assert moved() == {
            (0, "receive", "packets", "ipv4", "udp"): 5,
            (0, "receive", "bytes", "ipv4", "udp"): 570,
        }
        await node.until(lambda: sum(event.fields["family"] == "ipv4" for event in node.events) == 5)
        samples = [event for event in node.events if event.fields["family"] == "ipv4"]
        assert [event.fields["bytes"] for event in samples] == [114] * 5
        assert {event.entity for event in samples} == {Entity("link", "l0", socket.if_nametoindex("l0"))}
    finally:
        await node.close(counter)


@pytest.mark.kernel
async def test_the_counter_follows_its_interface(other):
    """It hears of its interfaces by itself, and goes on counting where it was."""
    node, counter = Node(topology()), XdpCounter({})
    try:
        await counter.open(node.surroundings)
        for seq in range(1, 4):
            other.probe(0, seq)
        await node.until(lambda: udp(counter, "l0") == 3)
        run("ip link del l0")
        await node.until(lambda: counter.status().degraded)
        assert "l0: the interface is gone" in counter.status().degraded[0]
        assert counter.status().attached == {"l1": "xdp native"}
        assert udp(counter, "l0") == 3
        other.lay(0)
        await node.until(lambda: "l0" in counter.status().attached)
        await node.settled()
        assert counter.status().attached == {"l0": "xdp native", "l1": "xdp native"}
        assert not counter.status().degraded
        for seq in range(1, 5):
            other.probe(0, seq)
        await node.until(lambda: udp(counter, "l0") == 3 + 4)
        assert {entity.generation for entity in frame_of(counter).entities} == {
            socket.if_nametoindex("l0"), socket.if_nametoindex("l1")
        }  # fmt: skip
    finally:
        await node.close(counter)


async def test_it_tries_again_where_somebody_elses_program_is_in_the_way(other, monkeypatch):
    """No event tells that the hook is free: only trying does."""
    monkeypatch.setattr("mapek.sensors.interfaces.FIRST_RETRY_NS", 10_000_000)
    node, counter = Node(topology()), XdpCounter({"mode": "native"})
    with load(ObjectSpec.read(object_path("empty"))) as foreign:
        link = attach_xdp(foreign.programs["empty"], socket.if_nametoindex("l1"))
        try:
            await counter.open(node.surroundings)
            assert counter.status().attached == {"l0": "xdp native"}
            assert "program 'empty'" in counter.status().degraded[0]
        finally:
            link.detach()
    try:
        await node.until(lambda: "l1" in counter.status().attached)
        assert not counter.status().degraded
    finally:
        await node.close(counter)
    assert read_xdp(socket.if_nametoindex("l1")) is None


async def test_another_interface_takes_the_name(other):
    """The one with the configured name is counted on; a renamed one is let go when its name is taken."""
    node, counter = Node(topology()), XdpCounter({"interfaces": ["l1"]})
    try:
        await counter.open(node.surroundings)
        first = socket.if_nametoindex("l1")
        run("ip link set l1 down")
        run("ip link set l1 name away")
        run("ip link set away up")
        await asyncio.sleep(0)
        assert counter.status().attached == {"l1": "xdp native"}
        run("ip link set l0 down")
        run("ip link set l0 name l1")
        second = socket.if_nametoindex("l1")
        await node.until(lambda: frame_of(counter).entities[0].generation == second)
        await node.settled()
        assert read_xdp(first) is None
        assert read_xdp(second) is not None
    finally:
        await node.close(counter)


@pytest.mark.kernel
async def test_both_share_an_interface(other):
    """The counter comes before the reflector in the chain; taking one off leaves the other."""
    node = Node(topology())
    counter, watch = XdpCounter({}), LinkWatch({"interval_ms": 2.0, "pin": "no"})
    try:
        await asyncio.gather(counter.open(node.surroundings), watch.open(node.surroundings))
        await node.until(lambda: watch.status().counts["answered"] > 20)
        assert frame_of(counter).counters.sum() > 20
        await counter.close()
        answered = watch.status().counts["answered"]
        await node.until(lambda: watch.status().counts["answered"] > answered + 20)
    finally:
        await node.close(counter, watch)
    assert read_xdp(socket.if_nametoindex("l0")) is None


@pytest.mark.parametrize("other", ["generic"], indirect=True)
@pytest.mark.kernel
async def test_on_tc_the_classifier_counts_what_the_filter_drops_before_the_reflector_sees_it(other):
    """Whoever came first: here the last in line."""
    node = Node(topology())
    watch = LinkWatch({"interval_ms": 1000, "pin": "no", "mode": "tc"})
    shut = MeshFilter({"interfaces": ["l0"], "mode": "tc", "unknown": "deny", "spare_probes": False})
    classes = TcClassifier({"interfaces": ["l0"], "classes": {"asked": "protocol=udp source_port=45000"}})

    def asked() -> int:
        frame = frame_of(classes)
        names = [(dict(one.labels), one.name) for one in frame.schema.counters]
        return int(frame.counters[0, names.index(({"class": "asked", "direction": "ingress"}, "packets"))])

    try:
        for one in (watch, shut, classes):
            await one.open(node.surroundings)
        for seq in range(1, 11):
            other.probe(0, seq)
        await node.until(lambda: asked() == 10)
        unknown = frame_of(shut).entities.index(Entity("identity", "unknown"))
        drops = [one.name for one in frame_of(shut).schema.counters].index("drops")
        assert frame_of(shut).counters[unknown, drops] >= 10
        assert watch.status().counts["reflected"] == 0
    finally:
        await node.close(classes, shut, watch)


@pytest.mark.parametrize(
    ("make", "options", "word"),
    [
        (LinkWatch, {"mode": "offload"}, "mode"),
        (LinkWatch, {"interval_ms": 0.1}, "interval_ms"),
        (LinkWatch, {"pin": True}, "pin"),
        (XdpCounter, {"interfaces": "l0"}, "interfaces"),
        (XdpCounter, {"sample_every": -1}, "sample_every"),
    ],
)
def test_wrong_options(make, options, word):
    with pytest.raises(ConfigError, match=word):
        make(options)
