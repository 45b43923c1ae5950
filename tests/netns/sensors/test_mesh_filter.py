"""mesh_filter on real packets: what UDP sockets sent and received, and the kernel's own counters, are the oracle."""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

import pytest

from mapek.errors import ConfigError, DegradedError
from mapek.knowledge import Path, Peer, Topology
from mapek.model import Step
from mapek.sensors.identities import ALLOW, DENY, Entry, Identities
from mapek.sensors.link_watch import LinkWatch
from mapek.sensors.mesh_filter import MeshFilter, step
from mapek.sensors.probe_port import ProbePort
from tests.netns.sensors.neighbour import Node
from tests.netns.sensors.wires import Space, run
from tests.support.machine import patience
from tests.support.mesh_frames import HOP, MAC_B, batadv, ether, frame

pytestmark = pytest.mark.kernel

OURS = {4: "10.7.0.100", 6: "fd07::100"}
SENDERS = [f"10.7.0.{n}" for n in range(1, 5)] + [f"fd07::{n}" for n in range(1, 5)]
PORT = 4000
SO_RCVBUFFORCE = 33
COLUMNS = ("packets", "bytes", "drops", "would_drop")


def name(sender: str) -> str:
    """The SPIFFE ID of a sender; .1 and ::1 are one identity."""
    return f"spiffe://example.org/node/{int(ip_address(sender)) & 0xFF}"


def quiet(address: str) -> str:
    """Usable at once."""
    return " nodad" if ":" in address else ""


@dataclass
class Far:
    """The other end of l0, with many addresses; and our sockets, which count what comes."""

    space: Space
    home: Space

    def lay(self) -> None:
        with self.space.entered():
            run("ip link add r0 type veth peer name l0")
            run(f"ip link set l0 netns /proc/{os.getpid()}/fd/{self.home.fd}")
            run("ip link set r0 address 02:00:00:00:00:0e")
            run("ip link set r0 up")
            for sender in SENDERS:
                run(f"ip addr add {sender}/{64 if ':' in sender else 24} dev r0{quiet(sender)}")
        run("ip link set l0 up")
        for family, address in OURS.items():
            run(f"ip addr add {address}/{24 if family == 4 else 64} dev l0{quiet(address)}")

    def send(self, amounts: dict[str, int], size: int = 100) -> Counter[str]:
        """Send so many datagrams from each address; what arrived by sender, as the receiving sockets saw it."""
        arrived: Counter[str] = Counter()
        heard = {family: self._socket(family) for family in (4, 6)}
        try:
            with self.space.entered():
                for sender, amount in amounts.items():
                    family = ip_address(sender).version
                    kind = socket.AF_INET if family == 4 else socket.AF_INET6
                    with socket.socket(kind, socket.SOCK_DGRAM) as out:
                        out.bind((sender, 0))
                        for _ in range(amount):
                            out.sendto(bytes(size), (OURS[family], PORT))
            # All is sent in this thread's softirqs or the peer's NAPI; a last frame of ours says that it is through.
            self._through()
            while select.select(list(heard.values()), [], [], 0)[0]:
                for one in heard.values():
                    while True:
                        try:
                            arrived[one.recvfrom(2048)[1][0]] += 1
                        except BlockingIOError:
                            break
        finally:
            for one in heard.values():
                one.close()
        return arrived

    def raw(self, data: bytes, times: int = 1) -> None:
        """Send frames as they are."""
        with self.space.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
            out.bind(("r0", 0))
            for _ in range(times):
                out.send(data)

    def tap(self, kind: int) -> socket.socket:
        """What gets past XDP on l0, of one EtherType."""
        return socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(kind))

    def _socket(self, family: int) -> socket.socket:
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        one = socket.socket(kind, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        one.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
        one.bind((OURS[family], PORT))
        return one

    def _through(self) -> None:
        """A frame that no filter drops comes after all others."""
        with self.tap(0x88CC) as heard:
            heard.bind(("l0", 0x88CC))
            self.raw(ether(0x88CC, bytes(46), HOP))
            assert select.select([heard], [], [], 5)[0], "what was sent last did not arrive"


@pytest.fixture
def far(space: Space) -> Iterator[Far]:
    other = Space.new()
    try:
        one = Far(other, space)
        one.lay()
        yield one
    finally:
        other.close()


def kernel_counted() -> tuple[int, int]:
    """(packets, bytes) that l0 received, as the driver counts them."""
    shown = json.loads(run("ip -j -s link show l0"))[0]["stats64"]["rx"]
    return int(shown["packets"]), int(shown["bytes"])


def at_one_moment(touchpoint: MeshFilter) -> tuple[tuple[int, int], tuple[int, int]]:
    """(packets, bytes) as the driver counts them and as the filter does, while nothing came between."""
    while True:
        kernel = kernel_counted()
        rows = table(touchpoint).values()
        if kernel_counted() == kernel:
            return kernel, (sum(row["packets"] for row in rows), sum(row["bytes"] for row in rows))


def registered(node: Node) -> Identities:
    """Each address of the far side is an identity's, IPv4 and IPv6 of one number the same."""
    registry = node.surroundings.shared(Identities)
    for number in range(1, 5):
        prefixes = (ip_network(f"10.7.0.{number}"), ip_network(f"fd07::{number}"))
        registry.put(Entry(f"spiffe://example.org/node/{number}", prefixes, number=number))
    return registry


def table(touchpoint: MeshFilter) -> dict[str, dict[str, int]]:
    """Rows that are not all zero, by identity."""
    found = touchpoint.read()
    assert found is not None
    return {
        entity.name: dict(zip(COLUMNS, map(int, row), strict=True))
        for entity, row in zip(found.entities, found.counters, strict=True)
        if row.any()
    }


def node_of_its_own() -> Node:
    return Node(Topology("a", [], []))


@pytest.fixture(params=["native", "generic", "tc"])
def mode(request) -> str:
    return request.param


async def test_counts_are_exactly_what_was_sent(far, mode):
    node = node_of_its_own()
    touchpoint = MeshFilter({"interfaces": ["l0"], "mode": mode})
    try:
        registered(node)
        far.send(dict.fromkeys(SENDERS, 1))  # neighbours are known from here on
        await touchpoint.open(node.surroundings)
        before, already = at_one_moment(touchpoint)
        amounts = {sender: 50 * place for place, sender in enumerate(SENDERS, 1)}
        assert far.send(amounts) == amounts
        rows = table(touchpoint)
        for number in range(1, 5):
            sent = amounts[f"10.7.0.{number}"], amounts[f"fd07::{number}"]
            # what a neighbour solicits by itself comes on top, and is counted
            extra = rows[f"spiffe://example.org/node/{number}"]["packets"] - sum(sent)
            assert 0 <= extra <= 3
            size = sent[0] * (14 + 20 + 8 + 100) + sent[1] * (14 + 40 + 8 + 100)
            assert 0 <= rows[f"spiffe://example.org/node/{number}"]["bytes"] - size <= extra * 86
        (packets, size), ours = (
            tuple(now - then for now, then in zip(ends, begun, strict=True))
            for ends, begun in zip(at_one_moment(touchpoint), (before, already), strict=True)
        )
        assert ours[0] == packets
        if mode != "native":  # where it has XDP, veth counts no Ethernet headers
            assert ours[1] == size
        assert touchpoint.status().attached["l0"].startswith("tc" if mode == "tc" else f"xdp {mode}")
        assert all(row["drops"] == row["would_drop"] == 0 for row in rows.values())
    finally:
        await node.close(touchpoint)


async def test_quarantine_stops_and_release_lets_through(far, mode):
    node = node_of_its_own()
    touchpoint = MeshFilter({"interfaces": ["l0"], "mode": mode})
    two = "spiffe://example.org/node/2"
    everybody = dict.fromkeys(SENDERS, 20)
    others = {sender: 20 for sender in SENDERS if name(sender) != two}
    try:
        registered(node)
        await touchpoint.open(node.surroundings)
        assert far.send(everybody) == everybody
        done = await touchpoint.act(step("quarantine", two))
        assert done.changed
        assert not (await touchpoint.act(step("quarantine", two))).changed
        assert far.send(everybody) == others
        assert table(touchpoint)[two]["drops"] == 40
        # its neighbour entry can be made anew all the same
        with far.space.entered():
            run("ip neigh flush dev r0")
        run("ip neigh flush dev l0")
        assert far.send(everybody) == others
        assert (await touchpoint.act(Step("mesh_filter", "observe", {"on": True}))).changed
        assert far.send(everybody) == everybody
        assert table(touchpoint)[two]["drops"] == 80
        assert table(touchpoint)[two]["would_drop"] == 40
        assert (await touchpoint.act(Step("mesh_filter", "observe", {"on": False}))).changed
        assert not (await touchpoint.act(Step("mesh_filter", "observe", {"on": False}))).changed
        assert (await touchpoint.act(step("release", two))).changed
        assert not (await touchpoint.act(step("release", two))).changed
        assert far.send(everybody) == everybody
    finally:
        await node.close(touchpoint)


@pytest.mark.host
async def test_undo_restores_what_was(far):
    node = node_of_its_own()
    touchpoint = MeshFilter({"interfaces": ["l0"]})
    one = "spiffe://example.org/node/1"
    try:
        registered(node)
        await touchpoint.open(node.surroundings)
        assert (await touchpoint.act(step("limit", one, rate=1, burst=5))).changed
        plan = step("quarantine", one)
        assert (await touchpoint.act(plan)).changed
        assert not (await touchpoint.act(plan)).changed
        assert far.send({"10.7.0.1": 10}) == {}
        assert plan.undo is not None
        assert (await touchpoint.act(plan.undo)).changed
        assert not (await touchpoint.act(plan.undo)).changed
        assert far.send({"10.7.0.1": 10}) == {"10.7.0.1": 5}
    finally:
        await node.close(touchpoint)


async def test_a_limit_holds_over_time(far):
    """What passed is within the rate times the time it took and one burst."""
    node = node_of_its_own()
    touchpoint = MeshFilter({"interfaces": ["l0"]})
    try:
        registered(node)
        await touchpoint.open(node.surroundings)
        rate, burst = 200, 100
        far.send({"10.7.0.3": 1})
        began = node.clock.now_ns()
        await touchpoint.act(step("limit", name("10.7.0.3"), rate=rate, burst=burst))
        passed = far.send({"10.7.0.3": 2 * burst})["10.7.0.3"]
        # Until here credit may have gone by unused: it is full until the first packet, on a slow machine for long.
        spent = last = node.clock.now_ns()
        while last - began < 300_000_000:
            last = node.clock.now_ns()
            passed += far.send({"10.7.0.3": burst})["10.7.0.3"]
        most = burst + rate * (node.clock.now_ns() - began) / 1e9
        least = burst + rate * (last - spent) / 1e9
        assert least - 1 <= passed <= most
        row = table(touchpoint)[name("10.7.0.3")]
        assert row["packets"] - row["drops"] - passed in (1, 2, 3)  # the one before, and who asked for whom
    finally:
        await node.close(touchpoint)


async def test_inside_the_mesh(far, mode):
    """Frames that batman-adv carries: counted by their inner source, and quarantined by it."""
    node = node_of_its_own()
    touchpoint = MeshFilter({"interfaces": ["l0"], "mode": mode})
    inner = {kind: batadv(kind, frame("10.7.0.2")) for kind in (0x40, 0x42, 0x01)}
    try:
        registry = registered(node)
        registry.put(Entry("spiffe://example.org/mac", macs=(MAC_B,)))
        await touchpoint.open(node.surroundings)
        with far.tap(0x4305) as heard:
            heard.bind(("l0", 0x4305))
            for denied in (False, True):
                if denied:
                    await touchpoint.act(step("quarantine", name("10.7.0.2")))
                    await touchpoint.act(step("quarantine", "spiffe://example.org/mac"))
                for times, data in enumerate(inner.values(), 3):
                    far.raw(data, times)
                far.raw(batadv(0x40, frame("192.0.2.1", MAC_B)), 7)
                far.raw(batadv(0x00, bytes(24)), 2)
                far.raw(batadv(0x41, bytes(64)), 2)
                far._through()
                assert len(list(received(heard))) == (4 if denied else 3 + 4 + 5 + 7 + 4)
        rows = table(touchpoint)
        assert rows[name("10.7.0.2")]["packets"] == 2 * (3 + 4 + 5)
        assert rows[name("10.7.0.2")]["drops"] == 3 + 4 + 5
        assert rows["spiffe://example.org/mac"] | {"bytes": 0} == {
            "packets": 14, "bytes": 0, "drops": 7, "would_drop": 0
        }  # fmt: skip
        counts = touchpoint.status().counts
        assert counts["control"] == 4
        assert counts["undecoded"] == 4
    finally:
        await node.close(touchpoint)


def received(heard: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            yield heard.recv(2048)
        except BlockingIOError:
            return


async def test_unknown_can_be_denied(far):
    node = node_of_its_own()
    touchpoint = MeshFilter({"interfaces": ["l0"], "unknown": "deny"})
    try:
        registry = registered(node)
        registry.remove(name("10.7.0.4"))
        await touchpoint.open(node.surroundings)
        arrived = far.send(dict.fromkeys(SENDERS, 10))
        assert set(arrived) == {sender for sender in SENDERS if name(sender) != name("10.7.0.4")}
        # beside them what the other end's stack sends from its link-local address
        assert 20 <= table(touchpoint)["unknown"]["drops"] <= 30
        await touchpoint.act(step("release", "unknown"))
        assert far.send({"10.7.0.4": 5}) == {"10.7.0.4": 5}
    finally:
        await node.close(touchpoint)


@pytest.mark.parametrize("port", [PORT, 862])
async def test_the_port_of_link_watch_is_spared_and_no_other(far, port):
    peer = Path("b", "l0", ip_address("10.7.0.9"), ip_address(OURS[4]), 0)
    node = Node(Topology("a", [], [Peer("b", (), (), (peer,), bytes(range(32)))]))
    watch = LinkWatch({"port": port, "interval_ms": 1000, "pin": "no"})
    touchpoint = MeshFilter({"interfaces": ["l0"], "unknown": "deny"})
    try:
        await watch.open(node.surroundings)
        await touchpoint.open(node.surroundings)
        sent = {"10.7.0.1": 10, "fd07::1": 10}
        assert far.send(sent) == (sent if port == PORT else {})
        assert table(touchpoint)["unknown"]["drops"] >= (0 if port == PORT else 20)
    finally:
        await node.close(touchpoint, watch)


@pytest.mark.host
async def test_probes_are_spared_only_while_that_is_wanted(far):
    node = node_of_its_own()
    node.surroundings.shared(ProbePort).say(PORT)
    touchpoint = MeshFilter({"interfaces": ["l0"], "unknown": "deny", "spare_probes": False})
    try:
        await touchpoint.open(node.surroundings)
        assert far.send({"10.7.0.1": 10}) == {}
    finally:
        await node.close(touchpoint)


async def test_a_full_map_lets_pass_and_says_so(far):
    node = node_of_its_own()
    touchpoint = MeshFilter({"interfaces": ["l0"], "max_identities": 2, "unknown": "allow"})
    everybody = dict.fromkeys(SENDERS, 10)
    try:
        registry = registered(node)
        await touchpoint.open(node.surroundings)
        # two identities with two addresses each, and no frame yet
        counts = touchpoint.status().counts
        assert (counts["addresses_refused"], counts["map_full"]) == (4, 0)
        assert "4 addresses found no room" in touchpoint.status().degraded[0]
        with pytest.raises(DegradedError, match="maps are full"):
            await touchpoint.act(step("quarantine", name("10.7.0.4")))
        await touchpoint.act(step("quarantine", name("10.7.0.1")))
        arrived = far.send(everybody)
        assert set(arrived) == {sender for sender in SENDERS if name(sender) != name("10.7.0.1")}
        rows = table(touchpoint)
        assert set(rows) == {"unknown", name("10.7.0.1"), name("10.7.0.2")}
        assert rows["unknown"]["packets"] >= 40
        # where one goes there is room for the next, and what was counted stays in the rest
        counted = rows[name("10.7.0.1")]
        registry.remove(name("10.7.0.1"))
        await node.settled()
        assert "2 addresses found no room" in touchpoint.status().degraded[0]
        assert far.send({"10.7.0.3": 9}) == {"10.7.0.3": 9}
        rows = table(touchpoint)
        assert rows[name("10.7.0.3")]["packets"] >= 9
        assert name("10.7.0.1") not in rows
        assert counted["drops"] == 20
    finally:
        await node.close(touchpoint)


async def test_nothing_counted_is_lost(far):
    """The interface goes and comes, the program is replaced, and the touchpoint closes and opens again."""
    node = node_of_its_own()
    touchpoint = MeshFilter({"interfaces": ["l0"]})
    one, two = name("10.7.0.1"), name("10.7.0.2")
    try:
        registered(node)
        await touchpoint.open(node.surroundings)
        await touchpoint.act(step("quarantine", two))
        assert far.send({"10.7.0.1": 10, "10.7.0.2": 10}) == {"10.7.0.1": 10}
        before = table(touchpoint)
        run("ip link del l0")
        await node.until(lambda: touchpoint.status().degraded)
        assert table(touchpoint) == before
        far.lay()
        await node.until(lambda: "l0" in touchpoint.status().attached)
        await node.settled()
        assert far.send({"10.7.0.1": 10, "10.7.0.2": 10}) == {"10.7.0.1": 10}
        after = table(touchpoint)
        assert after[two]["drops"] == 20
        assert after[one]["packets"] >= before[one]["packets"] + 10
        await touchpoint.close()
        assert touchpoint.read() is None
        assert far.send({"10.7.0.2": 10}) == {"10.7.0.2": 10}  # it fails open
        await touchpoint.open(node.surroundings)
        again = table(touchpoint)
        assert again[one]["packets"] >= after[one]["packets"]
        assert again[two]["drops"] == 20
        assert far.send({"10.7.0.1": 10, "10.7.0.2": 10}) == {"10.7.0.1": 10}
        assert table(touchpoint)[two]["drops"] == 30
    finally:
        await node.close(touchpoint)


@pytest.mark.host
async def test_entries_expire_and_move(far):
    node = node_of_its_own()
    touchpoint = MeshFilter({"interfaces": ["l0"]})
    prefix = ip_network("10.7.0.0/24")
    try:
        registry = node.surroundings.shared(Identities)
        soon = node.clock.now_ns() + int(patience(0.5) * 1e9)
        registry.put(Entry("spiffe://example.org/short", (prefix,), expires_ns=soon, verdict=DENY))
        await touchpoint.open(node.surroundings)
        assert far.send({"10.7.0.1": 3}) == {}
        await node.until(lambda: touchpoint.status().counts["expired"] == 1, 10)
        assert node.clock.now_ns() >= soon
        assert far.send({"10.7.0.1": 3}) == {"10.7.0.1": 3}
        registry.put(Entry("spiffe://example.org/short", (prefix,)))
        assert far.send({"10.7.0.1": 3}) == {}, "its verdict came back with it"
        registry.put(Entry("spiffe://example.org/next", (ip_network("10.7.0.1"),), verdict=ALLOW))
        assert far.send({"10.7.0.1": 3, "10.7.0.2": 3}) == {"10.7.0.1": 3}
    finally:
        await node.close(touchpoint)


@pytest.mark.host
async def test_the_file_is_followed(far, tmp_path):
    node = node_of_its_own()
    path = tmp_path / "identities.toml"
    row = '[[identity]]\nspiffe_id = "spiffe://example.org/node/{0}"\nprefixes = ["10.7.0.{0}/32"]\nnumber = {0}\n'
    path.write_text(row.format(1) + 'verdict = "deny"\n' + row.format(2))
    touchpoint = MeshFilter({"interfaces": ["l0"], "identities": str(path)})
    try:
        await touchpoint.open(node.surroundings)
        both = {"10.7.0.1": 4, "10.7.0.2": 4}
        assert far.send(both) == {"10.7.0.2": 4}
        other = tmp_path / "new"
        other.write_text(row.format(1) + row.format(2) + 'verdict = "deny"\n')
        other.rename(path)
        await node.until(lambda: far.send(both)["10.7.0.2"] == 0)
        assert far.send(both) == {}, "that the file says nothing of it releases nobody"
        path.write_text("[[identity]")
        await node.until(lambda: touchpoint.status().degraded)
        assert "no TOML" in touchpoint.status().degraded[0]
        assert far.send(both) == {}
        path.write_text(row.format(1) + 'verdict = "allow"\n')
        await node.until(lambda: not touchpoint.status().degraded)
        await node.settled()
        assert far.send(both) == both
    finally:
        await node.close(touchpoint)


@pytest.mark.host
async def test_many_addresses_do_not_hold_the_loop(far):
    node = node_of_its_own()
    touchpoint = MeshFilter({"interfaces": ["l0"]})
    held = []
    try:
        await touchpoint.open(node.surroundings)
        registry = node.surroundings.shared(Identities)
        began = node.clock.now_ns()
        prefixes = tuple(ip_network((0xFD070000 << 96 | n, 128)) for n in range(4000))
        registry.put(Entry("spiffe://example.org/big", prefixes))
        first = node.clock.now_ns() - began
        while len(node.tasks) and not all(task.done() for task in node.tasks):
            began = node.clock.now_ns()
            await asyncio.sleep(0)
            held.append(node.clock.now_ns() - began)
        await node.settled()
        assert len(held) >= 4000 // 64
        assert sorted(held)[len(held) // 2] < first / 10
        assert far.send({"10.7.0.1": 1, "fd07::1": 5}) == {"10.7.0.1": 1, "fd07::1": 5}
        assert table(touchpoint)["spiffe://example.org/big"]["packets"] >= 5
    finally:
        await node.close(touchpoint)


@pytest.mark.host
async def test_refuses_what_it_does_not_know(far):
    node = node_of_its_own()
    touchpoint = MeshFilter({"interfaces": ["l0"]})
    with pytest.raises(DegradedError, match="not open"):
        await touchpoint.act(step("quarantine", "unknown"))
    try:
        registered(node)
        await touchpoint.open(node.surroundings)
        for wrong in (
            Step("mesh_filter", "banish", {"identity": "unknown"}),
            Step("mesh_filter", "quarantine"),
            Step("mesh_filter", "quarantine", {"identity": "spiffe://example.org/nobody"}),
            Step("mesh_filter", "quarantine", {"identity": True}),
            Step("mesh_filter", "limit", {"identity": "unknown"}),
            Step("mesh_filter", "limit", {"identity": "unknown", "rate": 0}),
            Step("mesh_filter", "observe", {"on": 1}),
        ):
            with pytest.raises((ConfigError, DegradedError)):
                await touchpoint.act(wrong)
        assert (await touchpoint.act(step("limit", "unknown", rate=5))).changed
        assert (await touchpoint.act(Step("mesh_filter", "quarantine", {"identity": 3}))).changed
    finally:
        await node.close(touchpoint)
