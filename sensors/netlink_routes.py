"""Prepared routes: for each peer the messages that hold its routes on one of its paths.

Three layers, so that a node is never without a route: a nexthop object that all routes of the peer share (one
message moves them all), the routes themselves, and under them, with a higher metric, a standing route per path
that stays when the kernel flushes the object with its link, and when the agent dies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from mapek.knowledge.topology import Address, Network, Path, Peer
from mapek.sensors import netlink_wire as wire

FIRST_ID: Final = 0x6D000000
"""Of our nexthop objects, one per peer."""


def carries(path: Path, prefix: Network) -> bool:
    """An IPv6 next hop can carry IPv4 routes, not the other way round."""
    return path.address.version == 6 or prefix.version == 4


def _direct(
    prefixes: Iterable[Network], metric: int, sources: Mapping[int, Address], ifindex: int, gateway: Address
) -> bytes:
    return b"".join(
        wire.route(prefix, metric, source=sources.get(prefix.version), ifindex=ifindex, gateway=gateway)
        for prefix in prefixes
    )


@dataclass(slots=True)
class PeerRoutes:
    """Messages of one peer, by path name."""

    peer: Peer
    ident: int
    objects: bool
    moves: dict[str, bytes] = field(default_factory=dict)
    """Moves all routes of the peer to a path."""
    whole: dict[str, bytes] = field(default_factory=dict)
    """The same from nothing: object and routes."""
    standing: dict[str, bytes] = field(default_factory=dict)
    ifindexes: dict[str, int] = field(default_factory=dict)

    def prepare(
        self, sources: Iterable[Address], metric: int, standing_metric: int, links: Mapping[str, int]
    ) -> None:
        """Encode for every path whose interface is there now; `links` has their numbers by name."""
        by_version: dict[int, Address] = {address.version: address for address in reversed(tuple(sources))}
        for table in (self.moves, self.whole, self.standing, self.ifindexes):
            table.clear()
        for rank, path in enumerate(self.peer.paths):
            if (ifindex := links.get(path.interface)) is None:
                continue
            name = path.entity.name
            prefixes = [prefix for prefix in self.peer.prefixes if carries(path, prefix)]
            self.ifindexes[name] = ifindex
            self.standing[name] = _direct(prefixes, standing_metric + rank, by_version, ifindex, path.address)
            if self.objects:
                self.moves[name] = wire.nexthop(self.ident, ifindex, path.address)
                self.whole[name] = self.moves[name] + b"".join(
                    wire.route(prefix, metric, source=by_version.get(prefix.version), nexthop_id=self.ident)
                    for prefix in prefixes
                )
            else:
                self.moves[name] = _direct(prefixes, metric, by_version, ifindex, path.address)
                self.whole[name] = self.moves[name]

    def path_of(self, ifindex: int, gateway: bytes) -> str | None:
        """The path that a nexthop object points to."""
        for path in self.peer.paths:
            name = path.entity.name
            if self.ifindexes.get(name) == ifindex and path.address.packed == gateway:
                return name
        return None
