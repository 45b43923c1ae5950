"""batman_adv: the mesh as batman-adv itself sees it: interfaces, neighbours, originators, TQ or throughput, last seen.

Dumped over generic netlink in a thread once a period, so a frame is as old as the last dump. It costs pyroute2's 13 MB
and some ms of CPU a dump; what is lost on a link, and when, is seen sooner and finer by `batadv`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np

from mapek.bpf.worker import in_thread
from mapek.config.options import take
from mapek.contracts import Options, Status, Surroundings, Touchpoint, Variant
from mapek.errors import MapekError, NetlinkError
from mapek.model import Entity, Event, Frame, Metric, Schema
from mapek.sensors.batman_adv_refusal import absence
from mapek.sensors.batman_adv_tables import Tables, next_hops, rows

if TYPE_CHECKING:
    from mapek.knowledge.topology import Topology

log = logging.getLogger("mapek")

SCHEMA: Final = Schema(
    "batman_adv",
    "path",
    gauges=(
        Metric("neighbour", "", "1 if it is a neighbour on this interface."),
        Metric("neighbour_age", "seconds", "Since the neighbour was heard last, as batman-adv says."),
        Metric(
            "neighbour_throughput", "bits_per_second", "Estimated to the neighbour, as B.A.T.M.A.N. V says."
        ),
        Metric("originator", "", "1 if it is an originator to which the best way leaves by this interface."),
        Metric("originator_age", "seconds", "Since the originator was heard last on the best way."),
        Metric("transmit_quality", "ratio", "TQ of the best way to it, as B.A.T.M.A.N. IV says: 1 is 255."),
        Metric("throughput", "bits_per_second", "Of the best way to it, as B.A.T.M.A.N. V says."),
    ),
)


def _dump() -> list[Tables]:
    try:
        from mapek.sensors.batman_adv_netlink import dump_tables

        return dump_tables()
    except MapekError:
        raise
    except Exception as error:
        # An answer in another form, or an error within pyroute2: one dump has failed, and the next may not.
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise NetlinkError("dump", "batadv", why, "see `batctl meshif bat0 oj`") from error


class BatmanAdv(Touchpoint):
    """Touchpoint `batman_adv`. Rows are addresses over an interface ("path", "02:00:00:00:00:01/wlan0").

    `Frame.time_ns` is the end of the dump. Events, for the entity "peer" of an originator's address: "originator.new"
    and "originator.moved" (fields `next_hop`, `interface`), "originator.gone". What `open` finds is not new.

    Options:
        rows: how many there are at most; neighbours come first, and what is left out is counted.

    Needs kernel 5.10 with the module batman-adv (FeatureError until it is loaded), and CAP_NET_ADMIN.
    """

    name: ClassVar[str] = "batman_adv"
    counted: ClassVar[Mapping[str, str]] = {
        "dumps": "Tables read.",
        "failed_dumps": "Dumps that failed.",
        "rows_left_out": "Rows beyond the most that a frame has.",
    }
    variants: ClassVar[tuple[Variant, ...]] = (Variant("genetlink", ("CAP_NET_ADMIN",)),)

    def __init__(self, options: Options) -> None:
        self._most = take(options, "rows", int, 256, minimum=1, maximum=4096)
        self._around: Surroundings | None = None
        self._tables: tuple[Tables, ...] = ()
        self._hops: Mapping[str, tuple[str, str]] = {}
        self._frame: Frame | None = None
        self._wanted = asyncio.Event()
        self._trouble: MapekError | None = None
        self._counts = {"dumps": 0, "failed_dumps": 0, "rows_left_out": 0}

    @property
    def tables(self) -> tuple[Tables, ...]:
        """What the last dump gave, one for each mesh interface."""
        return self._tables

    def shortfalls(self, topology: Topology) -> tuple[str, ...]:
        if error := absence():
            raise error
        return ()

    async def open(self, surroundings: Surroundings) -> None:
        """Make the first dump. Raises FeatureError without the module, PrivilegeError without CAP_NET_ADMIN."""
        tables = tuple(await in_thread(_dump))
        self._hops = next_hops(tables)
        self._around, self._wanted, self._trouble = surroundings, asyncio.Event(), None
        self._take(tables)
        surroundings.spawn(self._dump_when_wanted())

    async def close(self) -> None:
        self._around, self._frame, self._tables = None, None, ()
        self._wanted.set()

    async def _dump_when_wanted(self) -> None:
        wanted = self._wanted
        while True:
            await wanted.wait()
            wanted.clear()
            if not self._open(wanted):
                return
            try:
                tables = tuple(await in_thread(_dump))
            except MapekError as error:
                self._counts["failed_dumps"] += 1
                if str(error) != str(self._trouble):
                    log.warning("%s", error)
                # What is not known any more is not shown as if it were.
                self._trouble, self._frame, self._tables = error, None, ()
                continue
            if not self._open(wanted):
                return
            self._trouble = None
            self._take(tables)

    def _open(self, wanted: asyncio.Event) -> bool:
        """Still open, and not closed and opened again meanwhile?"""
        return self._around is not None and wanted is self._wanted

    def _take(self, tables: tuple[Tables, ...]) -> None:
        assert self._around is not None
        now = self._around.clock.now_ns()
        found = list(rows(tables).values())
        kept = found[: self._most]
        self._counts["dumps"] += 1
        self._counts["rows_left_out"] += len(found) - len(kept)
        gauges = np.array([one.values for one in kept], np.float64).reshape(-1, len(SCHEMA.gauges))
        entities = tuple(Entity("path", one.name) for one in kept)
        counters = np.zeros((len(kept), 0), np.uint64)
        self._frame = Frame(now, SCHEMA, entities, counters, gauges, np.ones(len(kept), np.bool_))
        self._tables = tables
        self._tell(next_hops(tables), now)

    def _tell(self, hops: Mapping[str, tuple[str, str]], now: int) -> None:
        assert self._around is not None
        before, self._hops = self._hops, hops
        for address, way in hops.items():
            if before.get(address) != way:
                kind = "originator.moved" if address in before else "originator.new"
                fields = {"next_hop": way[0], "interface": way[1]}
                self._around.emit(Event(now, Entity("peer", address), kind, fields))
        for address in before.keys() - hops.keys():
            self._around.emit(Event(now, Entity("peer", address), "originator.gone"))

    def schema(self) -> Schema:
        return SCHEMA

    def read(self) -> Frame | None:
        """The last dump's rows, each dump once; begins the next one."""
        if self._around is None:
            return None
        self._wanted.set()
        frame, self._frame = self._frame, None
        return frame

    def status(self) -> Status:
        attached, idle = {}, []
        for one in self._tables:
            mesh = one.mesh
            attached[mesh.name] = f"{mesh.algo_name} {mesh.version}".strip()
            for hardif in one.hardifs:
                attached[f"{mesh.name}/{hardif.name}"] = "active" if hardif.active else "inactive"
                if not hardif.active:
                    idle.append(f"mesh over {hardif.name}: {mesh.name} says that it is inactive; bring it up")
        if self._around is not None and not self._tables and self._trouble is None:
            idle.append("read batman-adv: there is no mesh interface; ip link add bat0 type batadv")
        trouble = (str(self._trouble),) if self._trouble is not None else ()
        up = self._around is not None and self._trouble is None
        return Status(up, attached, (*trouble, *idle), dict(self._counts))
