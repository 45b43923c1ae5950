"""batadv: control frames of batman-adv that are lost on the way from each neighbour, and neighbours that fall silent.

Counted by the numbers in the frames before the stack sees them: ELP for B.A.T.M.A.N. V, and for IV the OGMs that a
neighbour sends of itself. They are unacknowledged broadcasts, which on Wi-Fi are lost more often than unicast data is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np

from mapek.bpf import Map, ObjectSpec, PerCpuArrayMap, create_map, object_path
from mapek.bpf.worker import in_thread
from mapek.config.options import take, take_strings
from mapek.contracts import Options, Status, Surroundings, Touchpoint, Variant
from mapek.model import Entity, Event, Frame, Metric, Schema
from mapek.sensors.batadv_table import OTHER, TALLIES, NeighbourTable, Rows
from mapek.sensors.detachments import COUNTED
from mapek.sensors.hooks import Hooks
from mapek.sensors.ingress import (
    MODES,
    IngressProgram,
    Joined,
    choose_mode,
    join_ingress,
    variant_of,
    variants_of,
)
from mapek.sensors.interfaces import Interfaces
from mapek.sensors.keeper import Keeper, keeper
from mapek.sensors.links import Links

if TYPE_CHECKING:
    from mapek.knowledge.topology import Topology

SLOT: Final = "batadv"
SCHEMA: Final = Schema(
    "batadv",
    "path",
    counters=(
        Metric("broadcasts_received", "", "Control broadcasts of the neighbour that came, each number once."),
        Metric("broadcasts_lost", "", "Control broadcasts of the neighbour whose number was skipped."),
        Metric("broadcasts_late", "", "Of the lost ones, those that came after all."),
        Metric("broadcasts_repeated", "", "Control broadcasts of the neighbour whose number came before."),
        Metric("sequence_restarts", "", "Jumps of the neighbour's numbers that are no loss: it began anew."),
        Metric("ogms_passed_on", "", "OGMs of other originators that came through the neighbour."),
    ),
    gauges=(
        Metric("silent", "", "1 while the neighbour is silent for longer than it may be."),
        Metric("heard_age", "seconds", "Since the last control broadcast of the neighbour."),
        Metric("interval", "seconds", "Between two of its control broadcasts: as it says, else as learnt."),
        Metric("originators", "", "Originators of whom it passed on an OGM in the last 30 s."),
    ),
)
_KEPT: Final = ("neighbours", "originators", "tallies")
_OWN_MOST: Final = 64
_NO_PREALLOC: Final = 1
_NO_GAUGES: Final = np.full((1, len(SCHEMA.gauges)), np.nan)


@dataclass(slots=True)
class _Listening(Joined):
    """One interface: what is attached, its maps, and the rows that its neighbours have."""

    table: NeighbourTable
    _names: tuple[str, ...] = ()
    _entities: tuple[Entity, ...] = ()

    def named(self, names: tuple[str, ...]) -> tuple[Entity, ...]:
        """The entities of rows of these names, and that of the remainder."""
        if names is not self._names or not self._entities:
            link = self.entity.name
            self._names = names
            self._entities = tuple(Entity("path", f"{name}/{link}") for name in (*names, OTHER))
        return self._entities

    def map(self, name: str) -> Map:
        return self.ingress.loaded.maps[name]


class Batadv(Touchpoint):
    """Touchpoint `batadv`. Rows are neighbours on an interface ("path", "02:00:00:00:00:01/wlan0"), and what all those
    counted that have no row ("other/wlan0").

    sent = received + lost - late, from the first frame that was heard on. Events "neighbour.silent" and
    "neighbour.back" (fields `heard_ns`, `interval_ns`), when a reading finds it so: at the latest
    `silent_after` intervals and one reading after the last frame.

    Options:
        interfaces: those under the mesh; by default those of all paths.
        mode: "auto", "native", "generic" or "tc".
        persist: let the counters and the program outlive the agent.
        neighbours: how many of an interface have rows and events.
        silent_after: intervals without a frame until a neighbour is silent.
        forget_s: after so long without a frame a neighbour's row goes; the remainder does not get its counts.
        reattach: put back what somebody takes off an interface behind our back, at most five times in ten minutes.

    Needs kernel 5.10, CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON; not the batman-adv module.
    """

    name: ClassVar[str] = "batadv"
    counted: ClassVar[Mapping[str, str]] = {
        **COUNTED,
        "frames": "Frames of batman-adv seen.",
        "own": "Own frames, and own OGMs that came back.",
        "tagged": "Frames with a VLAN tag: another mesh.",
        "malformed": "Frames that are cut short or lie about their length.",
        "foreign_version": "Frames of another compatibility version.",
        "neighbours_full": "Frames of neighbours that found no room.",
        "originators_full": "OGMs of originators that found no room.",
        "own_not_known": "Own addresses that found no room.",
    }
    # It says where the chain that they share is pinned, and takes over the one of the agent before.
    opens_after: ClassVar[tuple[str, ...]] = ("link_watch",)
    variants: ClassVar[tuple[Variant, ...]] = variants_of()

    def __init__(self, options: Options) -> None:
        self._names = take_strings(options, "interfaces")
        self._mode = take(options, "mode", str, "auto", choices=MODES)
        self.wanted_variant = variant_of(self._mode)
        self._how, self._lesser = self._mode, tuple[str, ...]()
        self._most = take(options, "neighbours", int, 32, minimum=1, maximum=256)
        self._silent_after = take(options, "silent_after", int, 5, minimum=2, maximum=1000)
        self._forget_s = take(options, "forget_s", float, 3600.0, minimum=60, maximum=604800)
        self._persist = take(options, "persist", bool, False)
        reattach = take(options, "reattach", bool, True)
        self._around: Surroundings | None = None
        self._keeper: Keeper | None = None
        self._program: IngressProgram | None = None
        self._own: Map | None = None
        self._links: Links | None = None
        self._mesh: tuple[str, ...] = ()
        self._known: set[bytes] = set()
        """What is in `_own`."""
        self._refused: set[bytes] = set()
        self._unknown = 0
        self._tallies = dict.fromkeys(TALLIES, 0)
        self._interfaces: Interfaces[_Listening] = Interfaces(
            "listen on", self._attach, sensor=self.name, reattach=reattach
        )

    def shortfalls(self, topology: Topology) -> tuple[str, ...]:
        return self._interfaces.shortfalls(topology, self._names)

    async def open(self, surroundings: Surroundings) -> None:
        """Attach to every interface that is there; raises the first error if none is."""
        self._around = surroundings
        self._keeper = keeper(surroundings)
        self._how, self._lesser = await choose_mode(self.name, self.variants, self._mode)
        spec = await in_thread(lambda: ObjectSpec.read(object_path("batadv")))
        self._program = IngressProgram(spec, SLOT, "batadv", "batadv_tc")
        self._own = create_map("hash", 8, 4, _OWN_MOST, flags=_NO_PREALLOC)
        paths = surroundings.knowledge.topology.paths()
        self._mesh = self._names or tuple(dict.fromkeys(path.interface for path in paths))
        links = surroundings.shared(Links)
        await links.join(self._hear, surroundings.clock.now_ns)
        self._links = links
        # Before the first program runs: what it takes for a neighbour stays one until it is forgotten.
        self._know()
        await self._interfaces.open(surroundings, self._mesh)

    async def close(self) -> None:
        if self._around is not None:
            # Also where `open` was cancelled while it joined.
            self._around.shared(Links).leave(self._hear)
        self._links = None
        await self._interfaces.close()
        own, self._own = self._own, None
        if own is not None:
            own.close()
        self._known.clear()
        self._refused.clear()

    async def _attach(self, link: Entity, former: _Listening | None) -> _Listening:
        assert self._around is not None
        assert self._program is not None
        assert self._own is not None
        reuse: dict[str, Map | int] = {} if former is None else {name: former.map(name) for name in _KEPT}
        assert self._keeper is not None
        keep = self._keeper.keep(self.name, _KEPT, on=self._persist, interface=link.name)
        kept = await self._keeper.take(keep, self._program.spec)
        ingress = await join_ingress(
            self._around.shared(Hooks),
            link,
            self._program,
            self._how,
            reuse={**reuse, "own": self._own},
            kept=kept,
        )
        table = former.table if former is not None else self._new_table()
        return _Listening(ingress, table)

    def _new_table(self) -> NeighbourTable:
        return NeighbourTable(self._most, self._silent_after, int(self._forget_s * 1e9))

    def _hear(self, event: Event) -> None:
        self._know()

    def _know(self) -> None:
        """The present addresses of all interfaces: the mesh's others are heard on one where they share the medium."""
        own, links = self._own, self._links
        if own is None or links is None:
            return
        # Those of the mesh first, should there be no room for all.
        mine = sorted(links.links(), key=lambda link: link.name not in self._mesh)
        macs = dict.fromkeys(link.mac for link in mine if any(link.mac))
        wanted, refused = set(list(macs)[:_OWN_MOST]), set(list(macs)[_OWN_MOST:])
        for mac in self._known - wanted:
            own.delete(mac.ljust(8, b"\0"))
        for mac in wanted - self._known:
            own.update(mac.ljust(8, b"\0"), bytes(4))
        self._known = wanted
        self._unknown += len(refused - self._refused)
        self._refused = refused

    def schema(self) -> Schema:
        return SCHEMA

    def read(self) -> Frame | None:
        """Rows of all interfaces: two batch reads each; one that is away keeps its counts."""
        around = self._around
        attached = list(self._interfaces.attached.values())
        if around is None or not attached:
            return None
        if self._keeper is not None:
            self._keeper.serve()
        now = around.clock.now_ns()
        entities: list[Entity] = []
        counters, gauges = [], []
        tallies = np.zeros(len(TALLIES), np.uint64)
        for one in attached:
            rows, others = one.table.rows(one.map("neighbours"), one.map("originators"), now)
            named = one.named(rows.names)
            entities += named
            counters += [rows.counts, others[None]]
            age = (now - rows.seen_ns).clip(min=0) / 1e9
            gauges += [np.stack([rows.silent, age, rows.interval_ns / 1e9, rows.originators], 1), _NO_GAUGES]
            for place in np.flatnonzero(rows.turned).tolist():
                around.emit(_turn(now, named[place], rows, place))
            tallied = one.ingress.loaded.map("tallies", PerCpuArrayMap).summed()[1]
            tallies += tallied[:, 0]
        self._tallies = {name: int(value) for name, value in zip(TALLIES, tallies, strict=True)}
        valid = np.ones(len(entities), np.bool_)
        return Frame(now, SCHEMA, tuple(entities), np.concatenate(counters), np.concatenate(gauges), valid)

    def status(self) -> Status:
        attached = self._interfaces.places()
        why = tuple(one.ingress.why for one in self._interfaces.attached.values() if one.ingress.why)
        counts = {**self._interfaces.counts(), **self._tallies, "own_not_known": self._unknown}
        kept = tuple(word for one in self._interfaces.attached.values() for word in one.ingress.lesser)
        words = (*self._lesser, *self._interfaces.troubles(), *why, *kept)
        return Status(bool(attached), attached, words, counts)


def _turn(now: int, entity: Entity, rows: Rows, place: int) -> Event:
    kind = "neighbour.silent" if rows.silent[place] else "neighbour.back"
    heard, every = int(rows.seen_ns[place]), int(rows.interval_ns[place])
    return Event(now, entity, kind, {"heard_ns": heard, "interval_ns": every})
