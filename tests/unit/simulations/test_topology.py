"""Topologies: what follows from a node's and a link's number, and the errors of impossible ones."""

from __future__ import annotations

import ipaddress

import pytest

from mapek.errors import ConfigError
from mapek.simulations.topology import line, pair, triangle


def test_pair_addresses():
    a, b = pair(2).nodes
    l0, l1 = pair(2).links
    assert (a.loopback(4), b.loopback(6)) == ("10.255.0.1", "fd6d:6170::2")
    assert [l0.address(n, 4) for n in (a, b)] == ["10.254.0.1", "10.254.0.2"]
    assert [l1.address(n, 6) for n in (a, b)] == ["fd6d:6170:1:1::1", "fd6d:6170:1:1::2"]
    assert [link.link_local(b) for link in (l0, l1)] == ["fe80::2", "fe80::1:2"]
    assert l1.mac(b) == "02:6d:61:70:01:02"


@pytest.mark.parametrize("topology", [pair(1), pair(64), triangle(), line(2), line(7), line(30, links=3)])
def test_addresses_are_unique_and_in_their_networks(topology):
    seen = [node.loopback(family) for node in topology.nodes for family in (4, 6)]
    for link in topology.links:
        for node in (link.a, link.b):
            seen += [link.address(node, 4), link.address(node, 6), f"{link.link_local(node)}%{link.name}"]
        for family, prefix in ((4, 30), (6, 64)):
            ends = {
                ipaddress.ip_interface(f"{link.address(node, family)}/{prefix}").network
                for node in (link.a, link.b)
            }
            assert len(ends) == 1
    assert len(seen) == len(set(seen))


def test_neighbours_and_links():
    topology = triangle()
    a, b, c = topology.nodes
    assert topology.neighbours(a) == (b, c)
    assert [link.name for link in topology.between(b, c)] == ["l1"]
    assert [link.name for link in topology.links_of(c)] == ["l1", "l2"]


@pytest.mark.parametrize(
    ("topology", "source", "target", "expected"),
    [
        (pair(3), 0, 1, [(1, "l0"), (1, "l1"), (1, "l2")]),
        (triangle(), 0, 1, [(1, "l0"), (2, "l2")]),
        (triangle(), 0, 2, [(1, "l2"), (2, "l0")]),
        (line(4), 0, 3, [(3, "l0")]),
        (line(4), 1, 0, [(1, "l0")]),
    ],
)
def test_first_hops(topology, source, target, expected):
    found = topology.first_hops(topology.nodes[source], topology.nodes[target])
    assert [(hops, link.name) for hops, link in found] == expected


@pytest.mark.parametrize(
    "make", [lambda: pair(0), lambda: pair(65), lambda: line(1), lambda: line(3, links=9)]
)
def test_impossible(make):
    with pytest.raises(ConfigError, match="take"):
        make()
