"""What tc_classifier has in the kernel: a pair of programs and their counters per interface, and the table of all."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

import numpy as np
import numpy.typing as npt

from mapek.bpf import ArrayMap, LoadedObject, Map, create_map, load_async
from mapek.bpf.cpus import cpu_slots
from mapek.bpf.keep import Kept
from mapek.bpf.maps import BPF_F_MMAPABLE
from mapek.bpf.tc import Direction, TcLink, Way
from mapek.bpf.worker import in_thread
from mapek.errors import ObjectError
from mapek.model import Entity
from mapek.sensors.hardware import link_header
from mapek.sensors.ingress import attach_tc_to, detach_all
from mapek.sensors.tc_classifier_table import COUNTERS_BYTES, DIRECTIONS, FIELDS, SLOTS, TABLE, Record

_PROGRAMS: Final[dict[Direction, str]] = {"ingress": "tc_class_in", "egress": "tc_class_out"}
_KEY: Final = Struct("=I")

Counts = npt.NDArray[np.uint64]
"""(directions, slots or classes, packets and bytes and drops)"""


@dataclass(slots=True)
class Counting:
    """One interface. `base`: what stood in a slot when the class that now has it got it."""

    entity: Entity
    loaded: LoadedObject
    counters: Counts
    base: Counts
    links: list[TcLink]
    kept: Kept | None = None

    @property
    def where(self) -> str:
        return f"tc {self.links[0].way}" if self.links else ""

    def raw(self) -> Counts:
        """What the slots hold, over all CPUs; no system call."""
        counts: Counts = np.einsum("cdsf->dsf", self.counters)
        return counts

    def handles(self) -> list[TcLink]:
        """What is attached."""
        return list(self.links)

    async def leave(self) -> None:
        """Take the programs off, the last one first, unless they are kept; also again, where it was cancelled or
        refused."""
        await detach_all(self.links, keep=self.kept is not None and self.kept.stays)
        if self.kept is not None and not self.kept.idle:
            await in_thread(self.kept.leave)

    def close(self) -> None:
        self.loaded.close()


async def count_on(
    link: Entity, shared: LoadedObject, way: Way, former: Counting | None, kept: Kept | None = None
) -> Counting:
    """Attach to both directions of `link`, with the table of `shared`.

    Args:
        former: what counted under this name before; its counters and base go on.
        kept: what is kept of this interface; left where it cannot be attached to.

    Raises:
        AttachError: there is no such interface, or another one has its name by now. And as `load`.
    """
    try:
        return await _count_on(link, shared, way, former, kept)
    except BaseException:
        if kept is not None and not kept.idle:
            await in_thread(kept.leave)
        raise


async def _count_on(
    link: Entity, shared: LoadedObject, way: Way, former: Counting | None, kept: Kept | None
) -> Counting:
    header = await link_header(link, "classify on")
    reuse: dict[str, Map | int] = {"table": shared.maps["table"]}
    if former is not None:
        reuse["counters"] = former.loaded.maps["counters"]
    if kept is not None:
        reuse |= kept.reuse()
    cpus = cpu_slots()
    loaded = await load_async(
        shared.spec,
        programs=_PROGRAMS.values(),
        rodata={"link_header": header},
        reuse=reuse,
        max_entries={} if "counters" in reuse else {"counters": cpus},
    )
    links: list[TcLink] = []
    try:
        if kept is not None and kept.holds:
            await in_thread(lambda: kept.settle(loaded))
        counters = loaded.map("counters", ArrayMap)
        if counters.value_size != COUNTERS_BYTES:
            raise ObjectError("read map", "counters", "it has another shape than ours", "rebuild it")
        view = counters.view(np.uint64).reshape(cpus, len(DIRECTIONS), SLOTS, len(FIELDS))
        for direction, program in _PROGRAMS.items():
            links.append(
                await attach_tc_to(loaded.programs[program], link.generation, direction, way, kept, direction)
            )
    except BaseException:
        try:
            await detach_all(links, keep=kept is not None and kept.stays)
        finally:
            loaded.close()
        raise
    base = np.zeros(view.shape[1:], np.uint64) if former is None else former.base
    return Counting(link, loaded, view, base, links, kept)


def exchange(outer: Map, table: Record) -> None:
    """Put a new table into use. Blocks until no CPU uses the old one."""
    with create_map("array", 4, TABLE.itemsize, 1, flags=BPF_F_MMAPABLE) as inner:
        assert isinstance(inner, ArrayMap)
        inner.view(TABLE)[:] = table
        outer.update(_KEY.pack(0), _KEY.pack(inner.fd))
