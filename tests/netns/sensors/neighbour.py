"""A neighbour without user space: link_watch's reflector on the far ends of two links, keyed like any peer.

The near ends, l0 and l1, lie in the namespace of the calling thread, where the touchpoint under test opens.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Literal

from mapek.bpf import LoadedObject, ObjectSpec, RingBuffer, attach_xdp, load
from mapek.bpf.maps import ArrayMap
from mapek.bpf.xdp import Mode, XdpLink
from mapek.clock import RealClock
from mapek.contracts import Surroundings, Touchpoint
from mapek.knowledge import Knowledge, Path, Peer, Topology
from mapek.model import Event
from mapek.sensors.link_watch_layout import CONFIG, IN_USE, STATE, Alarm, alarm, packed, peer_key
from mapek.sensors.stamp import session_key
from tests.netns.sensors.wires import STXCSUM, Space, ethtool, run
from tests.support.machine import patience
from tests.support.stamp import frame, payload

SECRET = bytes(range(32))
Family = Literal["IPv4", "link-local"]


def address(family: Family, link: int, side: int) -> str:
    """The address of an end; side 1 is ours, 2 the neighbour's."""
    return f"10.0.{link}.{side}" if family == "IPv4" else f"fe80::{link + 1}:{side}"


@dataclass
class Neighbour:
    """The far side of two links. Path k is that over link k; path 2 its own address, over whatever link."""

    space: Space
    home: Space
    loaded: LoadedObject
    family: Family
    mode: Mode = "native"
    """A veth end delivers what its peer sent by native XDP_TX only while it has a native program itself."""
    links: dict[int, XdpLink] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.configs = self.loaded.map("configs", ArrayMap).view(CONFIG)
        self.states = self.loaded.map("paths", ArrayMap).view(STATE)

    def lay(self, link: int) -> None:
        """Make the veth pair of a link and put the reflector on its far end."""
        near, far = f"l{link}", f"r{link}"
        if link in self.links:
            self.links[link].close()
        with self.space.entered():
            run(f"ip link add {far} type veth peer name {near}")
            run(f"ip link set {near} netns /proc/{os.getpid()}/fd/{self.home.fd}")
            ifindex = socket.if_nametoindex(far)
            self._addresses(far, link, 2)
            self.links[link] = attach_xdp(self.loaded.programs["link_watch"], ifindex, self.mode)
        self._addresses(near, link, 1)
        self.watch(link, ifindex, address(self.family, link, 2), address(self.family, link, 1))

    def _addresses(self, interface: str, link: int, side: int) -> None:
        ethtool(interface, STXCSUM, False)
        one = address(self.family, link, side)
        run(f"ip link set {interface} up")
        run(f"ip addr add {one}/{24 if self.family == 'IPv4' else 64} dev {interface}")

    def watch(self, index: int, ifindex: int, ours: str, theirs: str) -> None:
        """Answer `theirs` on a path of that index, as its neighbour `ours`."""
        one, other = ip_address(ours), ip_address(theirs)
        row = self.configs[index]
        for name, value in {
            "local": list(packed(one)), "peer": list(packed(other)), "ifindex": ifindex, "flags": IN_USE,
            "own_key": session_key(SECRET, one, other), "peer_key": session_key(SECRET, other, one),
            "reply_rate": 1_000_000, "reply_burst": 1000,
        }.items():  # fmt: skip
            row[name] = value
        self.loaded.maps["peers"].update(peer_key(ifindex, other, one), struct.pack("=I", index))

    def hush(self, *indices: int) -> None:
        """Answer nothing on these paths from now on."""
        for index in indices:
            self.configs[index]["flags"] = 0

    def speak(self, *indices: int) -> None:
        """Answer again."""
        for index in indices:
            self.configs[index]["flags"] = IN_USE

    def probe(self, link: int, seq: int, epoch: int = 1, state: int = 0, tag: bytes = b"") -> None:
        """Send a probe of the neighbour's own, as its agent would, or with a VLAN tag."""
        ours, theirs = (ip_address(address(self.family, link, side)) for side in (2, 1))
        data = payload(session_key(SECRET, ours, theirs), seq=seq, epoch=epoch, peer_state=state)
        with self.space.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
            out.bind((f"r{link}", 0))
            whole = frame(str(ours), str(theirs), data)
            out.send(whole[:12] + tag + whole[12:])

    def tap(self, link: int) -> socket.socket:
        """A non-blocking packet socket on the far end."""
        with self.space.entered():
            heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(3))
            heard.bind((f"r{link}", 3))
        return heard

    def alarms(self) -> list[Alarm]:
        """What its programs raised."""
        found: list[bytes] = []
        with RingBuffer(self.loaded.maps["events"], found.append) as ring:
            ring.consume()
        return [alarm(one) for one in found]


@contextmanager
def neighbour(
    here: Space, spec: ObjectSpec, family: Family = "IPv4", mode: Mode = "native"
) -> Iterator[Neighbour]:
    """A neighbour of the calling thread's namespace `here`, over links l0 and l1."""
    space = Space.new()
    try:
        with load(spec, programs={"link_watch"}) as loaded:
            one = Neighbour(space, here, loaded, family, mode)
            try:
                for link in (0, 1):
                    one.lay(link)
                run("ip addr add 10.1.0.1/32 dev lo")
                with space.entered():
                    run("ip addr add 10.1.0.2/32 dev lo")
                one.watch(2, 0, "10.1.0.2", "10.1.0.1")
                yield one
            finally:
                for attached in one.links.values():
                    attached.close()
    finally:
        space.close()


def topology(family: Family = "IPv4") -> Topology:
    """What our node knows of the neighbour."""
    found = tuple(
        Path("b", f"l{k}", ip_address(address(family, k, 2)), ip_address(address(family, k, 1)), k)
        for k in (0, 1)
    )
    peer = Peer("b", (ip_address("10.1.0.2"),), (ip_network("10.1.0.2/32"),), found, SECRET)
    return Topology("a", [ip_address("10.1.0.1")], [peer])


class Node:
    """A touchpoint's surroundings: real clock, real tasks, and the events in a list one can wait on."""

    def __init__(self, known: Topology) -> None:
        self.events: list[Event] = []
        self.knowledge = Knowledge(known)
        self.clock = RealClock()
        self.tasks: set[asyncio.Future[None]] = set()
        self.surroundings = Surroundings(
            self.events.append,
            self.clock,
            self.knowledge,
            lambda work: self.tasks.add(asyncio.ensure_future(work)),
        )

    def kinds(self, name: str | None = None) -> list[str]:
        """Kinds of the events, of one entity or of all."""
        return [event.kind for event in self.events if name in (None, event.entity.name)]

    async def until(self, true: Callable[[], object], seconds: float = 5.0, every: float = 0.0005) -> None:
        """Let the loop run until something holds; TimeoutError otherwise."""
        async with asyncio.timeout(patience(seconds)):
            while not true():  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(every)

    async def heard(self, kind: str, times: int = 1, seconds: float = 5.0) -> Event:
        """The last of so many events of a kind."""
        await self.until(lambda: self.kinds().count(kind) >= times, seconds)
        return [event for event in self.events if event.kind == kind][-1]

    async def settled(self) -> None:
        """All tasks that the touchpoint began have ended, without an error."""
        while self.tasks:
            await asyncio.gather(*self.tasks)
            self.tasks = {task for task in self.tasks if not task.done()}

    async def close(self, *touchpoints: Touchpoint) -> None:
        """Close them, then the clock."""
        for one in touchpoints:
            await one.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.clock.close()
