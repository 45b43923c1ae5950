"""What a recording says about itself: who recorded what with which versions, and nothing secret."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Final

from mapek.knowledge.topology import Path, Peer, Topology

_SECRET: Final = ("key", "secret", "password", "token", "passphrase", "credential")


@dataclass(frozen=True, slots=True)
class About:
    """What was recorded.

    Args:
        topology: without keys.
        config: the configuration as plain tables, without secrets.
        versions: of mapek, Python, numpy and the kernel, and the machine: other ones may decide otherwise.
        seed: of whatever was random; 0 where nothing was.
    """

    topology: Topology
    config: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0


def versions() -> dict[str, str]:
    """Of what may change a decision."""
    import numpy as np

    from mapek import __version__

    return {
        "mapek": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "kernel": platform.release(),
        "machine": platform.machine(),
    }


def redacted(value: object, name: str = "") -> object:
    """`value` as plain tables, with everything whose name says that it is secret left out."""
    if any(word in name.lower() for word in _SECRET):
        return "(not recorded)"
    if isinstance(value, Mapping):
        return {str(key): redacted(one, str(key)) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(one) for one in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def plain_topology(topology: Topology) -> dict[str, object]:
    """As tables, without keys."""
    peers = [
        {
            "name": peer.name,
            "addresses": [str(one) for one in peer.addresses],
            "prefixes": [str(one) for one in peer.prefixes],
            "paths": [
                {
                    "interface": path.interface,
                    "address": str(path.address),
                    "local": None if path.local is None else str(path.local),
                    "preference": path.preference,
                }
                for path in peer.paths
            ],
        }
        for peer in topology.peers.values()
    ]
    return {"node": topology.node, "addresses": [str(one) for one in topology.addresses], "peers": peers}


def topology_of(plain: object) -> Topology:
    """What `plain_topology` made `plain` of; ValueError, KeyError or TypeError for anything else."""
    table = _dict(plain)
    peers = []
    for peer in map(_dict, _list(table["peers"])):
        name, paths = str(peer["name"]), []
        for path in map(_dict, _list(peer["paths"])):
            local, preference = path["local"], path["preference"]
            if not isinstance(preference, int):
                raise TypeError("a preference is not a number")
            paths.append(
                Path(
                    name,
                    str(path["interface"]),
                    ip_address(str(path["address"])),
                    None if local is None else ip_address(str(local)),
                    preference,
                )
            )
        addresses = tuple(ip_address(str(one)) for one in _list(peer["addresses"]))
        prefixes = tuple(ip_network(str(one)) for one in _list(peer["prefixes"]))
        peers.append(Peer(name, addresses, prefixes, tuple(paths), key=b""))
    return Topology(str(table["node"]), (ip_address(str(one)) for one in _list(table["addresses"])), peers)


def _dict(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError("not a table")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value
