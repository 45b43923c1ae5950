"""Who the peers are and which paths lead to them: what the configuration says, nothing learnt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from mapek.model import Entity

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Path:
    """A way to a peer: over one interface, to its address there.

    Args:
        peer: the peer's name.
        interface: our interface's name.
        address: the peer's address on that link, IPv4 or IPv6 (link-local without scope).
        local: our own address on that link; None: what the kernel would take.
        preference: lower is preferred when both are well.
    """

    peer: str
    interface: str
    address: Address
    local: Address | None = None
    preference: int = 0

    @property
    def entity(self) -> Entity:
        return Entity("path", f"{self.peer}/{self.interface}")


@dataclass(frozen=True, slots=True)
class Peer:
    """A neighbour and what lies behind it.

    Args:
        name: unique on this node.
        addresses: its own addresses, reached over any path; probes of a repaired route go there.
        prefixes: what routes through this peer should exist.
        paths: by preference, the most preferred first.
        key: secret shared with the peer, at least 16 bytes; empty if it is unauthenticated.
        unauthenticated: it speaks plain STAMP (RFC 8762), so whoever can write to the link can speak for it.
    """

    name: str
    addresses: tuple[Address, ...]
    prefixes: tuple[Network, ...]
    paths: tuple[Path, ...]
    key: bytes = field(repr=False)
    unauthenticated: bool = False

    @property
    def entity(self) -> Entity:
        return Entity("peer", self.name)


class Topology:
    """The peers of this node, found by name or by the entity of a path."""

    def __init__(self, node: str, addresses: Iterable[Address] = (), peers: Iterable[Peer] = ()) -> None:
        self.node = node
        self.addresses = tuple(addresses)
        self.peers = {peer.name: peer for peer in peers}
        self._of_path = {path.entity: (peer, path) for peer in self.peers.values() for path in peer.paths}

    def peer_of(self, entity: Entity) -> Peer | None:
        """The peer that `entity` is, or that a path leads to."""
        if entity.kind == "peer":
            return self.peers.get(entity.name)
        found = self._of_path.get(entity)
        return found[0] if found else None

    def path(self, entity: Entity) -> Path | None:
        found = self._of_path.get(entity)
        return found[1] if found else None

    def paths(self) -> tuple[Path, ...]:
        return tuple(path for peer in self.peers.values() for path in peer.paths)
