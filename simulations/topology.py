"""What a lab consists of, as data: nodes, links, and the addresses that follow from their places.

Every address is a function of the node's and the link's number, so that a log line tells which wire it was.
Numbers start at 1 for nodes and at 0 for links; at most 200 of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address
from itertools import pairwise
from typing import Literal

from mapek.errors import ConfigError

Family = Literal[4, 6]


@dataclass(frozen=True)
class NodeSpec:
    """A node; `number` is 1 for the first."""

    name: str
    number: int

    def loopback(self, family: Family) -> str:
        """The address by which the node is known, on whatever link."""
        return f"10.255.0.{self.number}" if family == 4 else f"fd6d:6170::{self.number:x}"


@dataclass(frozen=True)
class LinkSpec:
    """A link between nodes `a` and `b`; both ends' interfaces carry its name."""

    name: str
    number: int
    a: NodeSpec
    b: NodeSpec

    def side(self, node: NodeSpec) -> int:
        """1 at the `a` end, 2 at the `b` end."""
        return 1 if node == self.a else 2

    def peer(self, node: NodeSpec) -> NodeSpec:
        """The node at the other end."""
        return self.b if node == self.a else self.a

    def address(self, node: NodeSpec, family: Family) -> str:
        """The end's IPv4 address (a /30) or IPv6 unique local address (a /64)."""
        if family == 4:
            return f"10.254.{self.number}.{self.side(node)}"
        return str(IPv6Address(f"fd6d:6170:1:{self.number:x}::{self.side(node)}"))

    def link_local(self, node: NodeSpec) -> str:
        """The end's IPv6 link-local address."""
        return str(IPv6Address(f"fe80::{self.number:x}:{node.number:x}"))

    def mac(self, node: NodeSpec) -> str:
        """The end's MAC address, locally administered."""
        return f"02:6d:61:70:{self.number:02x}:{node.number:02x}"


@dataclass(frozen=True)
class Topology:
    """Nodes and links; links of one pair of nodes come in order of preference."""

    name: str
    nodes: tuple[NodeSpec, ...]
    links: tuple[LinkSpec, ...]

    def links_of(self, node: NodeSpec) -> tuple[LinkSpec, ...]:
        """The links that end at `node`."""
        return tuple(link for link in self.links if node in (link.a, link.b))

    def between(self, a: NodeSpec, b: NodeSpec) -> tuple[LinkSpec, ...]:
        """The links that join two nodes directly."""
        return tuple(link for link in self.links if {link.a, link.b} == {a, b})

    def neighbours(self, node: NodeSpec) -> tuple[NodeSpec, ...]:
        """The nodes one link away, each once."""
        return tuple(dict.fromkeys(link.peer(node) for link in self.links_of(node)))

    def first_hops(self, source: NodeSpec, target: NodeSpec) -> list[tuple[int, LinkSpec]]:
        """Links out of `source` by which `target` is reached, with hop counts, shortest first."""
        found = []
        for link in self.links_of(source):
            hops = self._distance(link.peer(source), target, without=source)
            if hops is not None:
                found.append((hops + 1, link))
        return sorted(found, key=lambda entry: (entry[0], entry[1].number))

    def _distance(self, start: NodeSpec, target: NodeSpec, without: NodeSpec) -> int | None:
        edge, seen, hops = {start}, {start, without}, 0
        while edge:
            if target in edge:
                return hops
            edge = {other for node in edge for other in self.neighbours(node)} - seen
            seen |= edge
            hops += 1
        return None


def _nodes(count: int) -> tuple[NodeSpec, ...]:
    names = [chr(ord("a") + i) if count <= 26 else f"n{i + 1}" for i in range(count)]
    return tuple(NodeSpec(name, i + 1) for i, name in enumerate(names))


def pair(links: int = 2) -> Topology:
    """Two nodes, a and b, joined by `links` links l0, l1, …"""
    if not 1 <= links <= 64:
        raise ConfigError("lay out", "pair", f"{links} links", "take 1 to 64")
    a, b = _nodes(2)
    return Topology("pair", (a, b), tuple(LinkSpec(f"l{i}", i, a, b) for i in range(links)))


def triangle() -> Topology:
    """Three nodes, each joined to both others."""
    a, b, c = _nodes(3)
    ends = ((a, b), (b, c), (a, c))
    return Topology("triangle", (a, b, c), tuple(LinkSpec(f"l{i}", i, x, y) for i, (x, y) in enumerate(ends)))


def line(nodes: int, links: int = 1) -> Topology:
    """`nodes` nodes in a row, neighbours joined by `links` links each."""
    if not 2 <= nodes <= 64 or not 1 <= links <= 3:
        raise ConfigError(
            "lay out", "line", f"{nodes} nodes, {links} links each", "take 2-64 nodes, 1-3 links"
        )
    row = _nodes(nodes)
    ends = [(x, y) for x, y in pairwise(row) for _ in range(links)]
    return Topology("line", row, tuple(LinkSpec(f"l{i}", i, x, y) for i, (x, y) in enumerate(ends)))
