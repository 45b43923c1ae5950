"""tc_classifier: packets, bytes and drops per traffic class, in both directions of an interface, counted by tc.

It sees what the stack sees: merged packets, counted as their segments. A drop is what a class of verdict "drop" made
it drop; what a queue or a driver drops happens before or behind it, and stands in the counters of `interface`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np

from mapek.bpf import LoadedObject, ObjectSpec, load_async, object_path
from mapek.bpf.cpus import cpu_slots
from mapek.bpf.tc import Way
from mapek.bpf.worker import in_thread
from mapek.config.options import Table, take, take_strings
from mapek.contracts import Options, Status, Surroundings, Touchpoint, Variant
from mapek.errors import ConfigError
from mapek.model import Applied, Entity, Frame, Metric, Schema, Step
from mapek.sensors.detachments import COUNTED
from mapek.sensors.ingress import NEEDS
from mapek.sensors.interfaces import Interfaces
from mapek.sensors.keeper import Keeper, keeper
from mapek.sensors.tc_classifier_classes import MOST, OTHER, REMOVED, TrafficClass, parse_classes
from mapek.sensors.tc_classifier_kernel import Counting, count_on, exchange
from mapek.sensors.tc_classifier_table import DIRECTIONS, SLOT_OTHER, build
from mapek.sensors.variants import Choice, choose

if TYPE_CHECKING:
    from mapek.knowledge.topology import Topology

_COLUMNS: Final = (
    ("packets", "packets", "Packets of the class, those that it dropped too."),
    ("bytes", "bytes", "Bytes of these, with link layer headers."),
    ("dropped", "packets", "Packets that the verdict of the class dropped."),
)


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


class TcClassifier(Touchpoint):
    """Touchpoint `tc_classifier`: a sensor, and an effector by its action "classify".

    `Step("tc_classifier", "classify", {name: text, ...})` makes these the classes, as `set_classes` does.

    Options:
        interfaces: names; by default those of all paths.
        classes: table of name -> conditions, see `parse_classes`; the first that matches has the packet.
        variant: "auto", "tcx" or "clsact".
        reattach: put back what somebody takes off an interface behind our back, at most five times in ten minutes.
        persist: let the counters and the programs outlive the agent, until the classes are changed by "classify".

    Needs kernel 5.10, CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON.
    """

    name: ClassVar[str] = "tc_classifier"
    counted: ClassVar[Mapping[str, str]] = COUNTED
    variants: ClassVar[tuple[Variant, ...]] = (
        Variant(
            "tcx",
            (*NEEDS, "mmapable_array", "tcx"),
            "dies with its process",
        ),
        Variant("clsact", (*NEEDS, "mmapable_array")),
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
        self.wanted_variant = take(options, "variant", str, "auto", choices=("auto", "tcx", "clsact"))
        reattach = take(options, "reattach", bool, True)
        self._persist = take(options, "persist", bool, False)
        self._configured = [one.name for one in self._classes]
        self._around: Surroundings | None = None
        self._keeper: Keeper | None = None
        self._choice: Choice | None = None
        self._shared: LoadedObject | None = None
        self._interfaces: Interfaces[Counting] = Interfaces(
            "classify on", self._attach, sensor=self.name, reattach=reattach
        )
        self._schema = schema_of(self._classes)
        self._slots: dict[str, int] = {}
        self._free: deque[int] = deque()
        self._turn = asyncio.Lock()

    @property
    def classes(self) -> tuple[TrafficClass, ...]:
        """The present ones, the first to match first."""
        return self._classes

    def shortfalls(self, topology: Topology) -> tuple[str, ...]:
        return self._interfaces.shortfalls(topology, self._names)

    async def open(self, surroundings: Surroundings) -> None:
        """Attach to every interface that is there; raises the first error if none is."""
        self._around = surroundings
        self._keeper = keeper(surroundings)
        self._choice = await in_thread(lambda: choose(self.name, self.variants, self.wanted_variant))
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
                await in_thread(lambda: exchange(outer, table))
            except BaseException:
                self._free.extend(self._slots.pop(name) for name in new)
                raise
            for name in [name for name in self._slots if name not in names]:
                self._free.append(self._slots.pop(name))
        self._classes, self._schema = classes, schema_of(classes)
        if names != self._configured:
            # The next agent would take one's slot for another's.
            for one in self._interfaces.attached.values():
                if one.kept is not None and one.kept.holds:
                    await in_thread(partial(one.kept.lost, "its classes are not those of the configuration"))

    async def _attach(self, link: Entity, former: Counting | None) -> Counting:
        async with self._turn:
            assert self._shared is not None
            assert self._choice is not None
            way: Way = "tcx" if self._choice.variant.name == "tcx" else "clsact"
            assert self._keeper is not None
            names = [one.name for one in self._classes]
            keep = self._keeper.keep(
                self.name,
                ("counters",),
                on=self._persist and names == self._configured and list(self._slots) == names,
                interface=link.name,
                meaning={"classes": " ".join(names)},
            )
            kept = await self._keeper.take(keep, self._shared.spec, {"counters": cpu_slots()})
            return await count_on(link, self._shared, way, former, kept)

    def schema(self) -> Schema:
        return self._schema

    def read(self) -> Frame | None:
        """One row per interface, from mapped memory; one that is away keeps its counts."""
        rows = list(self._interfaces.attached.values())
        if self._around is None or not rows:
            return None
        if self._keeper is not None:
            self._keeper.serve()
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
        kept = [one.kept.trouble for one in self._interfaces.attached.values() if one.kept is not None]
        lesser = tuple(word for word in kept if word)
        counts = self._interfaces.counts()
        return Status(bool(attached), attached, (*degraded, *self._interfaces.troubles(), *lesser), counts)
