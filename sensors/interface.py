"""interface: what driver and queueing discipline of each interface count, by netlink.

These are the kernel's own counters of everything that passed, for one dump of links and one of disciplines a second,
made and arranged in a thread shortly before they are read: they wait for a lock that whoever changes an interface
holds.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Final

from mapek.bpf.worker import in_thread
from mapek.clock import Timer
from mapek.config.options import take, take_strings
from mapek.contracts import Options, Status, Surroundings, Touchpoint
from mapek.errors import MapekError, NetlinkError
from mapek.model import Event, Frame, Schema
from mapek.sensors.interface_columns import SCHEMA
from mapek.sensors.interface_driver import driver_statistics
from mapek.sensors.interface_rows import MOST_COLUMNS, MOST_ROWS, Dumped, Layout, framed, laid_out
from mapek.sensors.interface_wire import Dumper
from mapek.sensors.links import Links
from mapek.sensors.named import absent, named, no_such

if TYPE_CHECKING:
    from mapek.knowledge.topology import Topology

ALL: Final = "*"
_DO: Final = "check the name; it is counted when it is there"
_AHEAD_NS: Final = 50_000_000


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What one look at the kernel gave; `attached` and the `troubles` of drivers are by interface."""

    frame: Frame
    layout: Layout
    attached: Mapping[str, str]
    troubles: Mapping[str, str]


class Interface(Touchpoint):
    """Touchpoint `interface`. Needs no privilege.

    Options:
        interfaces: names; by default those of all paths; "*": all of the network namespace, at most 256 at a time.
        ethtool: also the statistics of the driver's own, at most 128 names over all interfaces.

    Works in the network namespace of the task that opens it. An interface made again is another entity (its
    generation is the ifindex), since the kernel counts anew.
    """

    name: ClassVar[str] = "interface"
    counted: ClassVar[Mapping[str, str]] = {
        "failed_dumps": "Dumps that failed.",
        "interrupted_dumps": "Dumps made again because something changed meanwhile.",
        "overruns": "Netlink messages lost because the socket was full.",
        "undecoded": "Netlink messages that could not be decoded.",
        "rows_left_out": "Rows beyond the most that a frame has.",
        "columns_left_out": "Driver statistics beyond the most that a frame has.",
    }

    def __init__(self, options: Options) -> None:
        self._names = tuple(dict.fromkeys(take_strings(options, "interfaces")))
        self._ethtool = take(options, "ethtool", bool, False)
        self._all = ALL in self._names
        self._around: Surroundings | None = None
        self._links: Links | None = None
        self._dumper: Dumper | None = None
        self._inet: socket.socket | None = None
        self._looking = self._again = False
        self._timer: Timer | None = None
        self._seen: _Snapshot | None = None
        self._read_ns = 0
        self._layout = Layout({}, SCHEMA)
        self._trouble: MapekError | None = None
        self._failed = 0

    def shortfalls(self, topology: Topology) -> tuple[str, ...]:
        names = () if self._all else named(self._names, topology)
        return tuple(map(str, absent("count on", names, _DO)))

    async def open(self, surroundings: Surroundings) -> None:
        """Look at the interfaces for the first time.

        Raises:
            AttachError: none of the interfaces is there. NetlinkError: the kernel does not answer.
        """
        self._names = named(self._names, surroundings.knowledge.topology)
        self._around = surroundings
        self._links = surroundings.shared(Links)
        await self._links.join(self._hear, surroundings.clock.now_ns)
        self._dumper = Dumper.new()
        if self._ethtool:
            self._inet = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._take(await self._look())
        if self._names and not self._layout.rows:
            raise no_such("count on", self._names[0], _DO)
        self._plan(surroundings.clock.now_ns() + self.period_ns)

    async def close(self) -> None:
        if self._around is not None:
            self._around.shared(Links).leave(self._hear)
        self._around = self._links = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._dumper is not None:
            self._dumper.close()  # it stays for its counts
        if self._inet is not None:
            self._inet.close()
        self._inet, self._seen, self._looking = None, None, False
        self._layout = replace(self._layout, rows={}, left_out=frozenset())

    async def _look(self) -> _Snapshot:
        """Ask the kernel in a thread, which has descriptors of its own: `close` may come meanwhile."""
        assert self._dumper is not None
        assert self._around is not None
        now_ns, wanted, layout = self._around.clock.now_ns, self._wanted, self._layout
        with ExitStack() as life:
            dumper = self._dumper.twin()
            life.callback(dumper.close)
            inet = None if self._inet is None else life.enter_context(self._inet.dup())
            theirs = life.pop_all()

        def look() -> _Snapshot:
            with theirs:
                links, time_ns = dumper.links(), now_ns()
                qdiscs = dumper.qdiscs()
                drivers: dict[int, Mapping[str, int]] = {}
                troubles: dict[str, str] = {}
                for link in links.values():
                    if inet is not None and wanted(link.name):
                        try:
                            drivers[link.ifindex] = driver_statistics(inet, link.name)
                        except OSError as error:
                            troubles[link.name] = str(error)
                found = Dumped(time_ns, links, qdiscs, drivers)
                after = laid_out(layout, found, wanted, keeps=not self._all)
                attached = {}
                for link in links.values():
                    if link.name in after.rows:
                        qdisc = qdiscs.get((link.ifindex, False))
                        attached[link.name] = f"netlink, qdisc {qdisc.kind}" if qdisc else "netlink"
                return _Snapshot(framed(after, found), after, attached, troubles)

        return await in_thread(look)

    def _wanted(self, name: str) -> bool:
        return self._all or name in self._names

    def _plan(self, next_ns: int) -> None:
        """Look again shortly before the next reading, so that it is young."""
        assert self._around is not None
        if self._timer is not None:
            self._timer.cancel()
        due = next_ns - min(_AHEAD_NS, self.period_ns // 4)
        self._timer = self._around.clock.call_at(due, self._due)

    def _due(self) -> None:
        self._timer = None
        self._refresh()

    def _refresh(self) -> None:
        if self._around is None:
            return
        if self._looking:
            self._again = True
            return
        self._looking = True
        self._around.spawn(self._look_again())

    async def _look_again(self) -> None:
        try:
            while self._around is not None:
                self._again = False
                try:
                    seen = await self._look()
                except (NetlinkError, OSError) as error:
                    self._failed += 1
                    self._trouble = error if isinstance(error, MapekError) else _no_socket(error)
                else:
                    self._trouble = None
                    if self._around is not None:
                        self._take(seen)
                if not self._again:
                    return
        finally:
            self._looking = False

    def _hear(self, event: Event) -> None:
        if event.kind in ("link.new", "link.gone", "link.renamed"):
            self._refresh()

    def _take(self, seen: _Snapshot) -> None:
        self._seen, self._layout = seen, seen.layout

    def schema(self) -> Schema:
        return self._layout.schema

    def read(self) -> Frame | None:
        """One row per interface, as last dumped; None if nothing was since the last call.

        The row of one that is away is not valid. What a thread made is handed over: however many rows, it costs
        the same.
        """
        seen = self._seen
        if self._around is None or seen is None:
            return None
        fresh = seen.frame.time_ns != self._read_ns
        if fresh or (self._timer is None and not self._looking):
            self._plan(self._around.clock.now_ns() + self.period_ns)
        if not fresh:
            return None
        self._read_ns = seen.frame.time_ns
        return seen.frame

    def status(self) -> Status:
        seen, layout, degraded = self._seen, self._layout, []
        if self._trouble is not None:
            degraded.append(str(self._trouble))
        attached = {} if seen is None else dict(seen.attached)
        missing = [name for name in self._names if name != ALL and name not in attached]
        for name in missing if self._around is not None else ():
            degraded.append(str(no_such("count on", name, _DO)))
        for name, why in () if seen is None else seen.troubles.items():
            degraded.append(f"read the driver's statistics of {name}: {why}; the other counters go on")
        if layout.left_out:
            degraded.append(f"{len(layout.left_out)} interfaces beyond {MOST_ROWS} are left out")
        if layout.refused:
            degraded.append(f"{len(layout.refused)} statistics of drivers beyond {MOST_COLUMNS} are left out")
        counts = {
            "failed_dumps": self._failed,
            "rows_left_out": layout.rows_left_out,
            "columns_left_out": layout.columns_left_out,
        }
        if self._dumper is not None:
            counts |= {
                name: self._dumper.counts[name] for name in ("interrupted_dumps", "undecoded", "overruns")
            }
            counts["overruns"] += self._links.overruns if self._links else 0
        return Status(bool(attached) and self._trouble is None, attached, tuple(degraded), counts)


def _no_socket(error: OSError) -> NetlinkError:
    return NetlinkError(
        "ask the kernel about", "interfaces", str(error), "it is tried again", code=error.errno or 0
    )
