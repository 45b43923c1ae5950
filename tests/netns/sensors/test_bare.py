"""Interfaces whose packets have no Ethernet header: a tun device, as WireGuard's. What a test writes comes in there."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

import pytest

from mapek.errors import AttachError
from mapek.knowledge import Path, Peer, Topology
from mapek.sensors.batadv import Batadv
from mapek.sensors.identities import ALLOW, DENY, Entry, Identities
from mapek.sensors.link_watch import LinkWatch
from mapek.sensors.mesh_filter import MeshFilter
from mapek.sensors.stamp import session_key
from mapek.sensors.xdp_counter import XdpCounter
from tests.netns.sensors.neighbour import SECRET, Node
from tests.netns.sensors.wires import Space, run
from tests.support.machine import patience
from tests.support.stamp import REPLY, Datagram, frame, parse, payload

pytestmark = [pytest.mark.kernel, pytest.mark.needs("tun")]

PAIRS = {"IPv4": ("10.8.0.1", "10.8.0.2"), "IPv6": ("fd08::1", "fd08::2")}
KINDS = {4: b"\x08\x00", 6: b"\x86\xdd"}
_TUNSETIFF, _TUN, _NO_PI = 0x400454CA, 0x0001, 0x1000


@dataclass
class Tun:
    fd: int

    def write(self, source: str, dest: str, data: bytes = b"x" * 20, **how: tuple[int, int]) -> None:
        """A UDP packet comes in."""
        os.write(self.fd, frame(source, dest, data, **how)[14:])  # type: ignore[arg-type]

    def read(self) -> Iterator[Datagram]:
        """The UDP packets that went out."""
        while True:
            try:
                raw = os.read(self.fd, 2048)
            except BlockingIOError:
                return
            protocol = raw[9] if raw[0] >> 4 == 4 else raw[6]
            if protocol == 17:
                yield parse(bytes(12) + KINDS[raw[0] >> 4] + raw)


@pytest.fixture
def tun(space: Space) -> Iterator[Tun]:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"tun9", _TUN | _NO_PI))
        run("ip addr add 10.8.0.1/24 dev tun9")
        run("ip addr add fd08::1/64 dev tun9 nodad")
        run("ip link set tun9 up")
        yield Tun(fd)
    finally:
        os.close(fd)


def topology(family: str = "IPv4") -> Topology:
    ours, theirs = (ip_address(one) for one in PAIRS[family])
    network = ip_network("10.1.0.2/32")
    peer = Peer("b", (network.network_address,), (network,), (Path("b", "tun9", theirs, ours, 0),), SECRET)
    return Topology("a", [ip_address("10.1.0.1")], [peer])


@pytest.mark.parametrize("mode", ["auto", "generic", "tc"])
async def test_the_filter_knows_who_sent_a_bare_packet(tun: Tun, mode: str):
    node = Node(topology())
    touchpoint = MeshFilter({"interfaces": ["tun9"], "mode": mode, "unknown": "deny", "spare_probes": False})
    registry = node.surroundings.shared(Identities)
    registry.put(
        Entry("spiffe://b/good", (ip_network("10.8.0.0/24"), ip_network("fd08::/64")), verdict=ALLOW)
    )
    registry.put(Entry("spiffe://b/bad", (ip_network("10.8.0.66/32"),), verdict=DENY))
    try:
        await touchpoint.open(node.surroundings)
        # In what would be the EtherType, 8.6.x.x is ARP.
        for source, times in {"10.8.0.2": 3, "10.8.0.66": 4, "8.6.1.1": 5}.items():
            for _ in range(times):
                tun.write(source, "10.8.0.1")
        for _ in range(6):
            tun.write("fd08::2", "fd08::1")
        seen = touchpoint.read()
        assert seen is not None
        columns = [metric.unit or metric.name for metric in seen.schema.counters]
        rows = {
            one.name.rpartition("/")[2]: dict(zip(columns, row, strict=True))
            for one, row in zip(seen.entities, seen.counters.tolist(), strict=True)
        }
        assert (rows["good"]["packets"], rows["good"]["drops"]) == (9, 0)
        assert (rows["bad"]["packets"], rows["bad"]["drops"]) == (4, 4)
        assert (rows["unknown"]["packets"], rows["unknown"]["drops"]) == (5, 5)
        assert touchpoint.status().counts["spared"] == touchpoint.status().counts["undecoded"] == 0
    finally:
        await node.close(touchpoint)


@pytest.mark.parametrize("mode", ["auto", "generic"])
async def test_the_counter_tells_families_and_protocols(tun: Tun, mode: str):
    node, counter = Node(topology()), XdpCounter({"interfaces": ["tun9"], "mode": mode})
    try:
        await counter.open(node.surroundings)
        for source, dest in ((theirs, ours) for ours, theirs in PAIRS.values()):
            for _ in range(3):
                tun.write(source, dest)
        seen = counter.read()
        assert seen is not None
        found = {
            (dict(metric.labels)["family"], dict(metric.labels)["protocol"], metric.unit): int(value)
            for metric, value in zip(seen.schema.counters, seen.counters[0], strict=True)
            if value
        }
        assert found == {
            ("ipv4", "udp", "packets"): 3, ("ipv4", "udp", "bytes"): 3 * 48,
            ("ipv6", "udp", "packets"): 3, ("ipv6", "udp", "bytes"): 3 * 68,
        }  # fmt: skip
    finally:
        await node.close(counter)


@pytest.mark.parametrize("family", PAIRS)
@pytest.mark.parametrize("mode", ["auto", "generic", "tc"])
async def test_probes_are_stamped_and_answered(tun: Tun, mode: str, family: str):
    ours, theirs = (ip_address(one) for one in PAIRS[family])
    own_key, peer_key = session_key(SECRET, ours, theirs), session_key(SECRET, theirs, ours)
    node = Node(topology(family))
    watch = LinkWatch({"interval_ms": patience(5.0), "pin": "no", "mode": mode})
    replies: list[Datagram] = []

    def answer() -> bool:
        """Do what the peer's reflector does."""
        for seen in tun.read():
            if seen.ports[1] != 862:
                replies.append(seen)
                continue
            assert seen.signed_with(own_key)
            seq = seen.fields["seq"]
            told = {"epoch": seen.fields["epoch"], "ssid": seen.fields["ssid"], "sender_seq": seq, "seq": seq}
            data = payload(own_key, role=REPLY, tlv_flags=0, **told)
            tun.write(str(theirs), str(ours), data, ports=(862, seen.ports[0]))
        return watch.status().counts["answered"] > 10 and bool(replies)

    try:
        await watch.open(node.surroundings)
        tun.write(str(theirs), str(ours), payload(peer_key, seq=5, epoch=9), ports=(45000, 862))
        await node.until(answer)
        (reply,) = replies
        assert reply.sound
        assert (reply.source, reply.dest, reply.ports) == (ours, theirs, (862, 45000))
        assert reply.signed_with(peer_key)
        assert reply.fields["sender_seq"] == 5
        counts = watch.status().counts
        assert (counts["reflected"], counts["rejected"], counts["forged"]) == (1, 0, 0)
    finally:
        await node.close(watch)


@pytest.mark.parametrize("mode", ["auto", "tc"])
async def test_batadv_needs_ethernet(tun: Tun, mode: str):
    node, sensor = Node(topology()), Batadv({"interfaces": ["tun9"], "mode": mode})
    try:
        with pytest.raises(
            AttachError, match=r"batadv to tun9: its packets have no Ethernet header; leave it out"
        ):
            await sensor.open(node.surroundings)
    finally:
        await node.close(sensor)
