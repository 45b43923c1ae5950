"""A veth pair between two namespaces of its own, and datagrams over it as fast as one core can: what a program that
hangs on the receiver's end costs is a share of that core.
"""

from __future__ import annotations

import os
import socket
from functools import partial
from typing import Final

from pyroute2 import IPRoute

from mapek.simulations.gauge import Gauge
from mapek.simulations.life import Life
from mapek.simulations.netns import Namespace, write_sysctl
from mapek.simulations.process import child_command

SENDER: Final = "10.9.0.1"
RECEIVER: Final = "10.9.0.2"
INTERFACE: Final = "in"
"""The receiver's end."""
_MACS: Final = {SENDER: "02:00:00:00:00:01", RECEIVER: "02:00:00:00:00:02"}
_PERMANENT: Final = 0x80  # NUD_PERMANENT
_PORT: Final = 9


class Road(Life):
    """Two namespaces, the pair between them, and the process that sends and takes in (`child.flood`).

    An async context manager; leaves nothing. `index` is the ifindex of the receiver's end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sender, self.receiver = Namespace("sender"), Namespace("receiver")
        self.index = 0
        self._gauge: Gauge | None = None

    async def _open(self) -> None:
        for space in (self.sender, self.receiver):
            await self._life.enter_async_context(space)
        for space in (self.sender, self.receiver):
            await space.run(_silence)
        await self.sender.route(self._make)
        await self.sender.route(partial(_raise, "out", SENDER, RECEIVER))
        self.index = await self.receiver.route(partial(_raise, INTERFACE, RECEIVER, SENDER))
        # Somebody to take them, who lets them drop when its buffer is full: no answers by ICMP.
        ends = []
        for space, own, other in ((self.sender, SENDER, RECEIVER), (self.receiver, RECEIVER, SENDER)):
            end = self._life.enter_context(await space.socket(socket.AF_INET, socket.SOCK_DGRAM))
            end.bind((own, _PORT))
            end.connect((other, _PORT))
            ends.append(end.fileno())
        cpu = max(os.sched_getaffinity(0))
        command = child_command("flood", *ends, cpu)
        self._gauge = await self._life.enter_async_context(Gauge(command, pass_fds=ends))

    def _make(self, route: IPRoute) -> None:
        peer = {"ifname": INTERFACE, "net_ns_pid": self.receiver.pid, "address": _MACS[RECEIVER]}
        route.link("add", ifname="out", kind="veth", peer=peer, address=_MACS[SENDER])

    async def flood(self, slices: int, datagrams: int) -> list[float]:
        """ns a datagram took at saturation, for each slice; nobody takes them in, so that most are dropped."""
        assert self._gauge is not None
        return [each / 1e3 for each in await self._gauge.ask("flood", slices, datagrams)]

    async def flow(self, slices: int, datagrams: int) -> tuple[int, list[float]]:
        """How many arrived, and ns that each took at saturation, taken in by a socket, for each slice."""
        assert self._gauge is not None
        arrived, *took = await self._gauge.ask("flow", slices, datagrams)
        return arrived, [each / 1e3 for each in took]

    async def ping(self, count: int) -> tuple[int, list[int]]:
        """How many were lost, and for the others ns from before it was sent to after it was received."""
        assert self._gauge is not None
        lost, *took = await self._gauge.ask("ping", count)
        return lost, took


def _silence() -> None:
    """No router is looked for and no group joined: what arrives is what was sent, a run of a program for each."""
    for scope in ("all", "default"):
        write_sysctl(f"ipv6/conf/{scope}/disable_ipv6", 1)


def _raise(name: str, own: str, other: str, route: IPRoute) -> int:
    index: int = route.link_lookup(ifname=name)[0]
    route.addr("add", index=index, address=own, prefixlen=24)
    route.link("set", index=index, state="up")
    # Nobody has to ask where the other is, which a program that drops everything would leave without an answer.
    route.neigh("replace", dst=other, lladdr=_MACS[other], ifindex=index, state=_PERMANENT)
    return index
