"""The lab: nodes as namespaces, links as wires, and the measured flow; all real, all gone when it closes.

Nothing outside the namespaces that it makes is touched, and nothing of it has a name, so two labs do not
meet. Needs root, veth, and BPF; raises PrivilegeError or FeatureError where those are missing.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Coroutine, Iterable
from ctypes import addressof, create_string_buffer
from functools import partial
from types import TracebackType
from typing import Final

from pyroute2 import IPRoute

from mapek.errors import PrivilegeError
from mapek.simulations.flow import FIRST_PORT, Flow
from mapek.simulations.life import Life
from mapek.simulations.netns import Namespace, write_sysctl
from mapek.simulations.topology import Family, LinkSpec, NodeSpec, Topology
from mapek.simulations.wire import Wire
from mapek.simulations.wire_program import WireProgram

_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_STXCSUM: Final = 0x17


class Node:
    """A node of the lab: its spec, the namespace it lives in, and its links' interfaces by index."""

    def __init__(self, spec: NodeSpec, namespace: Namespace) -> None:
        self.spec, self.namespace = spec, namespace
        self.interfaces: dict[int, str] = {}

    @property
    def name(self) -> str:
        """The node's name."""
        return self.spec.name


class Lab(Life):
    """`async with Lab(pair(links=2)) as lab:` gives `lab.nodes` and `lab.wires` by name."""

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        self.topology = topology
        self.nodes: dict[str, Node] = {}
        self.wires: dict[str, Wire] = {}

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wires.clear()
        await super().__aexit__(kind, error, trace)
        self.nodes.clear()

    async def flow(
        self, source: str, target: str, *, family: Family = 4, rate: int = 1000, port: int = FIRST_PORT
    ) -> Flow:
        """Start one direction of the measured flow; it ends with the lab at the latest."""
        ends = [(self.nodes[name].spec, self.nodes[name].namespace) for name in (source, target)]
        return await self._life.enter_async_context(
            Flow(ends[0], ends[1], family=family, rate=rate, port=port)
        )

    async def static_routes(self, metric: int = 1000) -> None:
        """Give each node routes to every other over each link that leads there, the nearest best."""
        for node in self.nodes.values():
            await node.namespace.route(self._router(node.spec, metric))

    async def _open(self) -> None:
        if os.geteuid() != 0:
            raise PrivilegeError(
                "open", "lab", "namespaces need CAP_SYS_ADMIN and CAP_NET_ADMIN", "run as root"
            )
        wires = Namespace("wires")
        spaces = {node.name: Namespace(node.name) for node in self.topology.nodes}
        # Closed last, and at once: each close waits for its holder's sweep.
        self._life.push_async_callback(_close_all, (wires, *spaces.values()))
        await _all(space.open() for space in (wires, *spaces.values()))
        self.nodes = {node.name: Node(node, spaces[node.name]) for node in self.topology.nodes}
        program = WireProgram()

        def prepare() -> None:
            # A wire's end has no address and says nothing of its own.
            write_sysctl("ipv6/conf/all/disable_ipv6", 1)
            write_sysctl("ipv6/conf/default/disable_ipv6", 1)
            program.open()

        await wires.run(prepare)
        self._life.push_async_callback(wires.run, program.close)
        pids = {name: space.pid for name, space in spaces.items()}
        for link in self.topology.links:
            ends = await wires.run(partial(self._lay, wires, program, link, pids))
            self.wires[link.name] = Wire(link, wires, program, ends)
        for node in self.nodes.values():
            await node.namespace.run(partial(self._configure, node))
        for link in self.topology.links:
            await self.wires[link.name].carrier(True)

    @staticmethod
    def _lay(wires: Namespace, program: WireProgram, link: LinkSpec, pids: dict[str, int]) -> tuple[int, int]:
        route, indices = wires.netlink(), []
        for side, node in (("a", link.a), ("b", link.b)):
            name = f"{link.name}.{side}"
            peer = {"ifname": link.name, "net_ns_pid": pids[node.name], "address": link.mac(node)}
            route.link("add", ifname=name, kind="veth", peer=peer)
            indices.append(route.link_lookup(ifname=name)[0])
        program.connect(*indices)
        return indices[0], indices[1]

    def _configure(self, node: Node) -> None:
        route = node.namespace.netlink()
        if len(self.topology.nodes) > 2:
            write_sysctl("ipv4/conf/all/forwarding", 1)
            write_sysctl("ipv6/conf/all/forwarding", 1)
        route.addr("add", index=1, address=node.spec.loopback(4), prefixlen=32)
        route.addr("add", index=1, address=node.spec.loopback(6), prefixlen=128)
        for link in self.topology.links_of(node.spec):
            index = route.link_lookup(ifname=link.name)[0]
            node.interfaces[index] = link.name
            _checksum_in_software(link.name)
            route.addr("add", index=index, address=link.address(node.spec, 4), prefixlen=30)
            route.link("set", index=index, state="up")
            route.addr("add", index=index, address=link.link_local(node.spec), prefixlen=64)
            route.addr("add", index=index, address=link.address(node.spec, 6), prefixlen=64)

    def _router(self, node: NodeSpec, metric: int) -> Callable[[IPRoute], None]:
        def add(route: IPRoute) -> None:
            for target in self.topology.nodes:
                if target == node:
                    continue
                for place, (_, link) in enumerate(self.topology.first_hops(node, target)):
                    index = route.link_lookup(ifname=link.name)[0]
                    hop = link.peer(node)
                    for dst, via in (
                        (f"{target.loopback(4)}/32", link.address(hop, 4)),
                        (f"{target.loopback(6)}/128", link.link_local(hop)),
                    ):
                        route.route("add", dst=dst, gateway=via, oif=index, priority=metric + place, proto=4)

        return add


async def _all(work: Iterable[Coroutine[None, None, object]]) -> None:
    # Every one is waited for: what is closed half-open would be left behind.
    for outcome in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


async def _close_all(spaces: Iterable[Namespace]) -> None:
    await _all(space.close() for space in spaces)


def _checksum_in_software(interface: str) -> None:
    # A veth leaves checksums unfinished for the next hop; on a real wire, and for XDP, they are whole.
    value = create_string_buffer(struct.pack("=II", _ETHTOOL_STXCSUM, 0))
    request = struct.pack("@16sP", interface.encode(), addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, request)
