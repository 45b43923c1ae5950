"""What batman-adv says of the mesh, as plain data, and the rows of `batman_adv` made of it.

A row is an address over an interface: a neighbour, an originator whose best way leaves by that interface, or both. So
the mesh's view of a neighbour stands beside what `batadv` counts of it, under the same name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

NAN = float("nan")
TQ_MAX = 255


@dataclass(frozen=True, slots=True)
class Mesh:
    """A mesh interface: its name, algorithm ("BATMAN_IV", "BATMAN_V"), the module's version, its own address."""

    name: str
    algo_name: str
    version: str
    address: str


@dataclass(frozen=True, slots=True)
class Hardif:
    """An interface under the mesh."""

    name: str
    address: str
    active: bool


@dataclass(frozen=True, slots=True)
class Originator:
    """A way to an originator: over which neighbour and interface; `tq` 0 to 255 (IV), `throughput` in kbit/s (V)."""

    address: str
    neighbour: str
    interface: str
    best: bool
    last_seen_ms: int
    tq: int | None = None
    throughput: int | None = None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A neighbour on an interface; `throughput` in kbit/s (V)."""

    address: str
    interface: str
    last_seen_ms: int
    throughput: int | None = None


@dataclass(frozen=True, slots=True)
class Tables:
    """All tables of one mesh interface, dumped one after the other."""

    mesh: Mesh
    hardifs: tuple[Hardif, ...]
    originators: tuple[Originator, ...]
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """An address over an interface; NaN for what it is not, or what the algorithm does not measure.

    Args:
        name: "02:00:00:00:00:01/wlan0".
        next_hop: the neighbour over which the best way to it goes; "" if it leaves by another interface.
        values: as `COLUMNS`.
    """

    name: str
    next_hop: str
    values: tuple[float, ...]


COLUMNS = (
    "neighbour",
    "neighbour_age",
    "neighbour_throughput",
    "originator",
    "originator_age",
    "tq",
    "throughput",
)


def rows(tables: Iterable[Tables]) -> dict[str, Row]:
    """The rows of all meshes, by name: neighbours first, which no bound cuts off before the others."""
    found: dict[str, Row] = {}
    best: dict[str, Originator] = {}
    near: dict[str, Neighbour] = {}
    for table in tables:
        near |= {f"{one.address}/{one.interface}": one for one in table.neighbours}
        best |= {f"{one.address}/{one.interface}": one for one in table.originators if one.best}
    for name in (*near, *(name for name in best if name not in near)):
        neighbour, originator = near.get(name), best.get(name)
        values = (
            *((1.0, neighbour.last_seen_ms / 1e3) if neighbour else (0.0, NAN)),
            _bits(neighbour.throughput if neighbour else None),
            *((1.0, originator.last_seen_ms / 1e3) if originator else (0.0, NAN)),
            originator.tq / TQ_MAX if originator and originator.tq is not None else NAN,
            _bits(originator.throughput if originator else None),
        )
        found[name] = Row(name, originator.neighbour if originator else "", values)
    return found


def _bits(kilobits: int | None) -> float:
    return NAN if kilobits is None else kilobits * 1e3


def next_hops(tables: Iterable[Tables]) -> dict[str, tuple[str, str]]:
    """Originator -> (next hop, interface) of its best way."""
    return {
        one.address: (one.neighbour, one.interface)
        for table in tables
        for one in table.originators
        if one.best
    }
