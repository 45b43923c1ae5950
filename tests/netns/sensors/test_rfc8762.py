"""link_watch and a STAMP implementation that knows nothing of it, over a real link: sockets against the kernel."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace

import pytest

from mapek.bpf import ObjectSpec, attach_xdp, load, object_path
from mapek.knowledge import Topology
from mapek.sensors.link_watch import LinkWatch
from tests.netns.sensors.neighbour import Node, address, topology
from tests.netns.sensors.wires import STXCSUM, Space, ethtool, run
from tests.support.stamp_plain import Reflector, Reply, parse_reply, request, stamp, wall_ns

PORT = 862


def assigned() -> None:
    """Until no address of this namespace is tentative: the kernel ends that from a work queue."""
    deadline = time.monotonic() + 10
    while "tentative" in run("ip -6 addr show"):
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def other(space):
    """A namespace with the far ends of l0 and l1.

    A veth end delivers what its peer sent by native XDP_TX only while it has a program itself: an empty one.
    """
    made = Space.new()
    try:
        for link in (0, 1):
            run(f"ip link add l{link} type veth peer name r{link}")
            run(f"ip link set r{link} netns /proc/{os.getpid()}/fd/{made.fd}")
        for family in ("IPv4", "link-local"):
            size = 24 if family == "IPv4" else 64
            for link in (0, 1):
                run(f"ip addr add {address(family, link, 1)}/{size} dev l{link}")
                with made.entered():
                    run(f"ip addr add {address(family, link, 2)}/{size} dev r{link}")
        for link in (0, 1):
            run(f"ip link set l{link} up")
            with made.entered():
                run(f"ip link set r{link} up")
                if link == 0:
                    with load(ObjectSpec.read(object_path("empty"))) as loaded:
                        attached = attach_xdp(loaded.programs["empty"], socket.if_nametoindex("r0"), "native")
        with attached:
            assigned()
            with made.entered():
                assigned()
            yield made
    finally:
        made.close()


def foreign(family="IPv4", links=(0, 1)) -> Topology:
    """The peer speaks RFC 8762 only, and there is no key."""
    peer = topology(family).peers["b"]
    paths = tuple(path for path in peer.paths if path.preference in links)
    return Topology("a", [], [replace(peer, addresses=(), paths=paths, key=b"", unauthenticated=True)])


@contextmanager
def reflecting(other: Space, at: str, **how: object):
    with other.entered():
        reflector = Reflector(at, **how)  # type: ignore[arg-type]
    with reflector:
        yield reflector


def counter(watch: LinkWatch, name: str, row: int = 0) -> int:
    frame = watch.read()
    assert frame is not None
    names = [metric.name for metric in frame.schema.counters]
    return int(frame.counters[row][names.index(name)])


def beyond(watch: LinkWatch, name: str, count: int) -> Callable[[], bool]:
    return lambda: counter(watch, name) >= count


MODES = ["native", "generic", "tc"]


@pytest.mark.kernel
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", [{}, {"stateful": True, "ptp": True}, {"ssid": True}], ids=str)
async def test_our_probes_and_a_foreign_reflector(other, mode, how):
    node = Node(foreign(links=(0,)))
    watch = LinkWatch({"interval_ms": 2.0, "pin": "no", "mode": mode})
    with reflecting(other, address("IPv4", 0, 2), **how) as reflector:
        try:
            await watch.open(node.surroundings)
            await node.until(beyond(watch, "answered", 40))
            reflector.answers = False
            silent = await node.heard("path.silent")
            assert silent.entity.name == "b/l0"
            # all that it replied was counted, the last when it has come, and nothing else
            await node.until(lambda: counter(watch, "answered") == reflector.replied)
            reflector.answers = True
            await node.heard("path.back")
        finally:
            await node.close(watch)
        assert watch.status().up is False
    assert {len(data) for data in reflector.requests} == {44}
    numbers = [int.from_bytes(data[:4]) for data in reflector.requests]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("family", ["IPv4", "link-local"])
async def test_losses_on_the_way_there_and_back(other, family):
    lost_there, lost_back = frozenset({10, 11, 20}), frozenset({30, 40, 41, 42})
    node, watch = Node(foreign(family, links=(0,))), LinkWatch({"interval_ms": 2.0, "pin": "no"})
    with other.entered():
        scope = socket.if_nametoindex("r0")
    with reflecting(
        other, address(family, 0, 2), scope=scope, stateful=True, skip=lost_there, swallow=lost_back
    ):
        try:
            await watch.open(node.surroundings)
            await node.until(beyond(watch, "answered", 80))
            assert (counter(watch, "forward_lost"), counter(watch, "reverse_lost")) == (3, 4)
            await node.until(lambda: counter(watch, "lost") == 7)
        finally:
            await node.close(watch)


async def test_another_port(other):
    node = Node(foreign(links=(0,)))
    watch = LinkWatch({"interval_ms": 2.0, "pin": "no", "port": 9862})
    with reflecting(other, address("IPv4", 0, 2), port=9862) as reflector:
        try:
            await watch.open(node.surroundings)
            await node.until(beyond(watch, "answered", 20))
        finally:
            await node.close(watch)
    assert reflector.replied >= 20


def sender(other: Space, family: str, ttl: int) -> socket.socket:
    """A Session-Sender's socket on the far end of l0, connected to our end."""
    v6 = family != "IPv4"
    with other.entered():
        made = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
        scope = socket.if_nametoindex("r0")
    level, option = (
        (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) if v6 else (socket.IPPROTO_IP, socket.IP_TTL)
    )
    made.setsockopt(level, option, ttl)
    made.settimeout(5)
    ours, theirs = (address(family, 0, side) for side in (2, 1))
    try:
        made.bind((ours, 0, 0, scope) if v6 else (ours, 0))
        made.connect((theirs, PORT, 0, scope) if v6 else (theirs, PORT))
    except OSError:
        made.close()
        raise
    return made


def exchange(made: socket.socket, data: bytes) -> tuple[Reply, int]:
    """What came back, and the round trip in ns."""
    before = time.monotonic_ns()
    made.send(data)
    raw = made.recv(2048)
    return parse_reply(raw), time.monotonic_ns() - before


@pytest.mark.kernel
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("offload", [False, True], ids=["whole checksums", "checksums left to hardware"])
@pytest.mark.parametrize("family", ["IPv4", "link-local"])
async def test_a_foreign_sender_and_our_reflector(other, mode, offload, family):
    """The stack of the far end checks the checksum of each reply before the socket sees it."""
    node, watch = (
        Node(foreign(family, links=(0,))),
        LinkWatch({"interval_ms": 1000, "pin": "no", "mode": mode}),
    )
    with other.entered():
        ethtool("r0", STXCSUM, offload)
    try:
        await watch.open(node.surroundings)
        with sender(other, family, 33) as made:
            for seq, more in enumerate((b"", b"\x80\x01\x00\x04abcd", bytes(3), bytes(1000), bytes(1))):
                for ptp in (False, True):
                    sent = stamp(time.time_ns(), ptp)
                    error = 0x8001 | (0x4000 if ptp else 0)
                    found, round_trip = exchange(made, request(seq, sent, error, ssid=7, more=more))
                    assert found.sender_sent == sent
                    assert (found.seq, found.sender_seq, found.sender_error) == (seq, seq, error)
                    assert (found.ssid, found.sender_ttl, found.more) == (7, 33, more)
                    assert found.ptp is ptp
                    there = wall_ns(*found.received, ptp) - wall_ns(*sent, ptp)
                    # one machine, one clock: the one-way delay is within the round trip and our clock's error
                    assert -12e6 < there < round_trip + 12e6
        assert counter(watch, "reflected") == 10
    finally:
        await node.close(watch)


async def test_nobody_is_answered_unless_declared(other):
    node, watch = Node(topology()), LinkWatch({"interval_ms": 1000, "pin": "no"})
    try:
        await watch.open(node.surroundings)
        with sender(other, "IPv4", 64) as made, pytest.raises(ConnectionRefusedError):
            exchange(made, request(1))
        assert counter(watch, "reflected") == 0
    finally:
        await node.close(watch)


async def test_our_clock_follows_a_step_of_the_wall_clock(other, monkeypatch):
    node, watch = Node(foreign(links=(0,))), LinkWatch({"interval_ms": 1000, "pin": "no"})
    step = 3600 * 10**9
    try:
        await watch.open(node.surroundings)
        with sender(other, "IPv4", 64) as made:
            early = wall_ns(*exchange(made, request(1))[0].received)
            monkeypatch.setattr("mapek.sensors.link_watch.wall_ns", lambda: time.time_ns() + step)
            watch.read()
            late = wall_ns(*exchange(made, request(2))[0].received)
        assert step <= late - early < step + 10e9
    finally:
        await node.close(watch)
