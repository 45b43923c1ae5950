"""tc_classifier: packets, bytes and drops per traffic class, in both directions of an interface, counted by tc.

It sees what the stack sees: merged packets, counted as their segments. A drop is what a class of verdict "drop" made
it drop; what a queue or a driver drops happens before or behind it, and stands in the counters of `interface`.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from mapek.bpf import (
    ArrayMap,
    LoadedObject,
    Map,
    ObjectSpec,
    attach_tc_async,
    create_map,
    load_async,
    object_path,
)
from mapek.bpf.maps import BPF_F_MMAPABLE, possible_cpus
from mapek.bpf.tc import Direction, TcLink, Way
from mapek.bpf.worker import in_thread
from mapek.config.options import Table, take, take_strings
from mapek.contracts import Options, Status, Surroundings, Touchpoint, Variant
from mapek.errors import ConfigError, ObjectError
from mapek.model import Applied, Entity, Frame, Metric, Schema, Step
from mapek.sensors.interfaces import Interfaces
from mapek.sensors.tc_classifier_classes import MOST, OTHER, REMOVED, TrafficClass, parse_classes
from mapek.sensors.tc_classifier_table import (
    COUNTERS_BYTES,
    DIRECTIONS,
    FIELDS,
    SLOT_OTHER,
    SLOTS,
    TABLE,
    Record,
    build,
)
from mapek.sensors.variants import Choice, choose

_COLUMNS: Final = (
    ("packets", "packets", "Packets of the class, those that it dropped too."),
    ("bytes", "bytes", "Bytes of these, with link layer headers."),
    ("dropped", "packets", "Packets that the verdict of the class dropped."),
)
_PROGRAMS: Final[dict[Direction, str]] = {"ingress": "tc_class_in", "egress": "tc_class_out"}
_ETHERNET: Final = (1, 772)
"""ARPHRD_ETHER and ARPHRD_LOOPBACK: interfaces whose packets begin with an Ethernet header."""
_SIOCGIFHWADDR: Final = 0x8927
_KEY: Final = Struct("=I")

Counts = npt.NDArray[np.uint64]
"""(directions, slots or classes, packets and bytes and drops)"""


def schema_of(classes: Sequence[TrafficClass]) -> Schema:
    """The columns when these are the classes: those, "other" and "removed"."""
    names = (*(one.name for one in classes), OTHER, REMOVED)
    columns = [
        Metric(metric, unit, text, labels=(("class", name), ("direction", direction)))
        for metric, unit, text in _COLUMNS
        for direction in DIRECTIONS
        for name in names
    ]
    return Schema("tc_classifier", "link", counters=tuple(columns))


SCHEMA: Final = schema_of(())


@dataclass(slots=True)
class _Counting:
    """One interface. `base`: what stood in a slot when the class that now has it got it."""

    entity: Entity
    loaded: LoadedObject
    counters: Counts
    base: Counts
    links: list[TcLink]

    @property
    def where(self) -> str:
        return f"tc {self.links[0].way}" if self.links else ""

    def raw(self) -> Counts:
        """What the slots hold, over all CPUs; no system call."""
        counts: Counts = np.einsum("cdsf->dsf", self.counters)
        return counts

    async def leave(self) -> None:
        links, self.links = self.links, []
        for link in links:
            await link.detach_async()

    def close(self) -> None:
        self.loaded.close()


class TcClassifier(Touchpoint):
    """Touchpoint `tc_classifier`: a sensor, and an effector by its action "classify".

    `Step("tc_classifier", "classify", {name: text, ...})` makes these the classes, as `set_classes` does.

    Options:
        interfaces: names; by default those of all paths.
        classes: table of name -> conditions, see `parse_classes`; the first that matches has the packet.
        variant: "auto", "tcx" or "clsact".

    Needs kernel 5.10, CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON.
    """

    name: ClassVar[str] = "tc_classifier"
    variants: ClassVar[tuple[Variant, ...]] = (
        Variant(
            "tcx",
            ("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "mmapable_array", "tcx"),
            "dies with its process",
        ),
        Variant("clsact", ("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "mmapable_array")),
    )

    def __init__(self, options: Options) -> None:
        self._names = take_strings(options, "interfaces")
        classes: dict[str, object] = take(options, "classes", dict, {})
        file, place = (
            (options.file, f"{options.place} classes")
            if isinstance(options, Table)
            else ("options", "classes")
        )
        self._classes = parse_classes(Table(classes, file, place))
        self._wanted = take(options, "variant", str, "auto", choices=("auto", "tcx", "clsact"))
        self._around: Surroundings | None = None
        self._choice: Choice | None = None
        self._shared: LoadedObject | None = None
        self._interfaces: Interfaces[_Counting] = Interfaces("classify on", self._attach)
        self._schema = schema_of(self._classes)
        self._slots: dict[str, int] = {}
        self._free: deque[int] = deque()
        self._turn = asyncio.Lock()

    @property
    def classes(self) -> tuple[TrafficClass, ...]:
        """The present ones, the first to match first."""
        return self._classes

    async def open(self, surroundings: Surroundings) -> None:
        """Attach to every interface that is there; raises the first error if none is."""
        self._around = surroundings
        self._choice = await in_thread(lambda: choose(self.name, self.variants, self._wanted))
        spec = await in_thread(lambda: ObjectSpec.read(object_path("tc_classifier")))
        # For its table, which all interfaces share.
        self._shared = await load_async(spec, programs=())
        self._slots, self._free = {}, deque(range(SLOT_OTHER))
        await self._change(self._classes, always=True)
        await self._interfaces.open(surroundings, self._names)

    async def close(self) -> None:
        await self._interfaces.close()
        async with self._turn:
            shared, self._shared = self._shared, None
            if shared is not None:
                shared.close()

    async def set_classes(self, classes: Sequence[TrafficClass]) -> bool:
        """Make these the classes, the first to match first, at once for all interfaces; False if they already are.

        Each packet is judged by all of the old or all of the new. A class keeps its counts by its name; those of a
        class that is no more go to "removed". Raises ConfigError for what does not fit the table.
        """
        return await self._change(tuple(classes))

    async def _change(self, classes: tuple[TrafficClass, ...], *, always: bool = False) -> bool:
        async def change() -> bool:
            async with self._turn:
                if classes == self._classes and not always:
                    return False
                await self._install(classes)
                return True

        # Who is cancelled half-way would not know which table is in use, and so which slots are free.
        return await asyncio.shield(asyncio.ensure_future(change()))

    async def _install(self, classes: tuple[TrafficClass, ...]) -> None:
        names = [one.name for one in classes]
        if len(set(names)) < len(names) or len(names) > MOST:
            why = "there are two of a name" if len(names) <= MOST else f"there are {len(names)}"
            raise ConfigError("classify by", "classes", why, f"give at most {MOST}, each with its own name")
        new = [name for name in names if name not in self._slots]
        # The slot that was given back first: the kernel has long forgotten it.
        claimed = dict(zip(new, self._free, strict=False))
        table = build(classes, {**self._slots, **claimed})
        if self._shared is not None:
            for name in new:
                # From here on what is in the slot is the new class's, though nothing matches it yet.
                slot = self._slots[name] = self._free.popleft()
                for one in self._interfaces.attached.values():
                    one.base[:, slot] = one.raw()[:, slot]
            outer = self._shared.maps["table"]
            try:
                await in_thread(lambda: _exchange(outer, table))
            except BaseException:
                self._free.extend(self._slots.pop(name) for name in new)
                raise
            for name in [name for name in self._slots if name not in names]:
                self._free.append(self._slots.pop(name))
        self._classes, self._schema = classes, schema_of(classes)

    async def _attach(self, link: Entity, former: _Counting | None) -> _Counting:
        async with self._turn:
            return await self._count_on(link, former)

    async def _count_on(self, link: Entity, former: _Counting | None) -> _Counting:
        assert self._shared is not None
        assert self._choice is not None
        reuse: dict[str, Map | int] = {"table": self._shared.maps["table"]}
        if former is not None:
            reuse["counters"] = former.loaded.maps["counters"]
        cpus = possible_cpus()
        loaded = await load_async(
            self._shared.spec,
            programs=_PROGRAMS.values(),
            rodata={"link_header": 14 if _hardware(link.name) in _ETHERNET else 0},
            reuse=reuse,
            max_entries={} if former is not None else {"counters": cpus},
        )
        links: list[TcLink] = []
        try:
            counters = loaded.map("counters", ArrayMap)
            if counters.value_size != COUNTERS_BYTES:
                raise ObjectError("read map", "counters", "it has another shape than ours", "rebuild it")
            view = counters.view(np.uint64).reshape(cpus, len(DIRECTIONS), SLOTS, len(FIELDS))
            way: Way = "tcx" if self._choice.variant.name == "tcx" else "clsact"
            for direction, program in _PROGRAMS.items():
                links.append(await attach_tc_async(loaded.programs[program], link.generation, direction, way))
        except BaseException:
            for one in links:
                await one.detach_async()
            loaded.close()
            raise
        base = np.zeros(view.shape[1:], np.uint64) if former is None else former.base
        return _Counting(link, loaded, view, base, links)

    def schema(self) -> Schema:
        return self._schema

    def read(self) -> Frame | None:
        """One row per interface, from mapped memory; one that is away keeps its counts."""
        rows = list(self._interfaces.attached.values())
        if self._around is None or not rows:
            return None
        slots = [self._slots[one.name] for one in self._classes]
        taken = list(self._slots.values())
        counters = np.empty((len(rows), len(self._schema.counters)), np.uint64)
        for index, one in enumerate(rows):
            raw = one.raw()
            own = raw - one.base
            other = raw[:, SLOT_OTHER]
            removed = np.einsum("dsf->df", raw) - other - np.einsum("dsf->df", own[:, taken])
            columns = np.concatenate((own[:, slots], other[:, None], removed[:, None]), axis=1)
            counters[index] = columns.transpose(2, 0, 1).ravel()
        now = self._around.clock.now_ns()
        entities = tuple(one.entity for one in rows)
        valid = np.ones(len(rows), np.bool_)
        return Frame(now, self._schema, entities, counters, np.zeros((len(rows), 0)), valid)

    async def act(self, step: Step) -> Applied:
        """Do "classify"; raises ConfigError for another action and for what is no class."""
        if step.action != "classify":
            raise ConfigError(
                "do", f"{self.name} {step.action}", "it is no action of it", 'it knows "classify"'
            )
        classes = parse_classes(step.fields)
        changed = await self.set_classes(classes)
        now = self._around.clock.now_ns() if self._around is not None else 0
        return Applied(now, changed, f"{len(classes)} classes")

    def status(self) -> Status:
        attached = self._interfaces.places()
        degraded = self._choice.degraded() if self._choice is not None else ()
        return Status(bool(attached), attached, (*degraded, *self._interfaces.troubles()))


def _exchange(outer: Map, table: Record) -> None:
    """Put a new table into use. Blocks until no CPU uses the old one."""
    with create_map("array", 4, TABLE.itemsize, 1, flags=BPF_F_MMAPABLE) as inner:
        assert isinstance(inner, ArrayMap)
        inner.view(TABLE)[:] = table
        outer.update(_KEY.pack(0), _KEY.pack(inner.fd))


def _hardware(interface: str) -> int:
    """ARPHRD_*; Ethernet where the interface is gone, for then attaching says so."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFHWADDR, struct.pack("16s24x", interface.encode()))
        except OSError:
            return _ETHERNET[0]
    return int(struct.unpack_from("=H", answer, 16)[0])
