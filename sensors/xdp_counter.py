"""xdp_counter: packets and bytes that arrive, by family, protocol and VLAN tag, counted before the stack.

It sees what the driver hands to XDP: nothing that was sent, nothing that hardware offload kept, and merged
frames as one where the driver merges before XDP (generic mode after GRO). Costs a few ns a packet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from struct import Struct
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np

from mapek.bpf import ObjectSpec, PerCpuArrayMap, RingBuffer, object_path
from mapek.bpf.worker import in_thread
from mapek.config.options import take, take_strings
from mapek.contracts import Options, Status, Surroundings, Touchpoint, Variant
from mapek.model import Entity, Event, Frame, Metric, Schema, Value
from mapek.sensors.detachments import COUNTED
from mapek.sensors.hooks import Hooks
from mapek.sensors.ingress import NEEDS, IngressProgram, Joined, join_ingress
from mapek.sensors.interfaces import Interfaces
from mapek.sensors.keeper import Keeper, keeper
from mapek.sensors.variants import choose

if TYPE_CHECKING:
    from mapek.knowledge.topology import Topology

FAMILIES: Final = ("ipv4", "ipv6", "other")
PROTOCOLS: Final = ("tcp", "udp", "icmp", "other")
SLOT: Final = "xdp_counter"
_SAMPLE = Struct("=QIIBBBB4x")
_KEPT: Final = ("counters", "sampling")


def _column(name: str, unit: str, help_text: str) -> list[Metric]:
    return [
        Metric(name, unit, help_text, labels=(("family", family), ("protocol", protocol), ("vlan", vlan)))
        for family, protocol, vlan in product(FAMILIES, PROTOCOLS, ("no", "yes"))
    ]


SCHEMA: Final = Schema(
    "xdp_counter",
    "link",
    counters=(
        *_column("receive", "packets", "Packets received, as XDP saw them."),
        *_column("receive", "bytes", "Bytes of frames received, as XDP saw them."),
    ),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled packet: `bytes` of the frame, `vlan` tags on it."""

    time_ns: int
    ifindex: int
    bytes: int
    family: str
    protocol: str
    vlan: int


def sample(record: bytes) -> Sample:
    """Decode a ring buffer record. Raises struct.error for another size, IndexError for unknown codes."""
    time_ns, ifindex, size, family, protocol, vlan, _ = _SAMPLE.unpack(record)
    return Sample(time_ns, ifindex, size, FAMILIES[family], PROTOCOLS[protocol], vlan)


@dataclass(slots=True)
class _Counting(Joined):
    """One interface: what is attached, and its readers."""

    counters: PerCpuArrayMap
    sampling: PerCpuArrayMap
    ring: RingBuffer | None

    async def leave(self) -> None:
        if self.ring is not None:
            self.ring.close()
        await self.ingress.leave()


class XdpCounter(Touchpoint):
    """Touchpoint `xdp_counter`.

    Options:
        interfaces: names; by default those of all paths.
        mode: "auto", "native" or "generic".
        persist: let the counters and the program outlive the agent.
        sample_every: emit an event "packet.sampled" for one packet in so many, per CPU; 0: none.
        reattach: put back what somebody takes off an interface behind our back, at most five times in ten minutes.

    Needs kernel 5.10, CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON.
    """

    name: ClassVar[str] = "xdp_counter"
    counted: ClassVar[Mapping[str, str]] = {
        **COUNTED,
        "ring_drops": "Samples lost because the ring buffer was full.",
    }
    # It says where the chain that they share is pinned, and takes over the one of the agent before.
    opens_after: ClassVar[tuple[str, ...]] = ("link_watch",)
    variants: ClassVar[tuple[Variant, ...]] = (Variant("xdp", (*NEEDS, "ringbuf", "xdp_link")),)

    def __init__(self, options: Options) -> None:
        self._names = take_strings(options, "interfaces")
        self._mode = take(options, "mode", str, "auto", choices=("auto", "native", "generic"))
        self._every = take(options, "sample_every", int, 0, minimum=0, maximum=2**31)
        self._persist = take(options, "persist", bool, False)
        reattach = take(options, "reattach", bool, True)
        self._around: Surroundings | None = None
        self._keeper: Keeper | None = None
        self._program: IngressProgram | None = None
        self._interfaces = Interfaces("count on", self._attach, sensor=self.name, reattach=reattach)
        self._lost: dict[str, int] = {}

    def shortfalls(self, topology: Topology) -> tuple[str, ...]:
        return self._interfaces.shortfalls(topology, self._names)

    async def open(self, surroundings: Surroundings) -> None:
        """Attach to every interface that is there; raises the first error if none is."""
        self._around = surroundings
        self._keeper = keeper(surroundings)
        await in_thread(lambda: choose(self.name, self.variants))
        spec = await in_thread(lambda: ObjectSpec.read(object_path("xdp_counter")))
        self._program = IngressProgram(spec, SLOT, "xdp_counter", bare=True)
        await self._interfaces.open(surroundings, self._names)

    async def _attach(self, link: Entity, former: _Counting | None) -> _Counting:
        assert self._around is not None
        assert self._program is not None
        assert self._keeper is not None
        keep = self._keeper.keep(self.name, _KEPT, on=self._persist, interface=link.name)
        kept = await self._keeper.take(keep, self._program.spec)
        ingress = await join_ingress(
            self._around.shared(Hooks),
            link,
            self._program,
            self._mode,
            rodata={"sample_every": self._every},
            reuse={} if former is None else {name: former.ingress.loaded.maps[name] for name in _KEPT},
            kept=kept,
        )
        try:
            counters, sampling = (ingress.loaded.map(name, PerCpuArrayMap) for name in _KEPT)
            ring = None
            if self._every:
                ring = RingBuffer(ingress.loaded.maps["samples"], self._teller(link))
                ring.start()
        except BaseException:
            await ingress.leave()
            ingress.close()
            raise
        return _Counting(ingress, counters, sampling, ring)

    def _teller(self, entity: Entity) -> Callable[[bytes], None]:
        def tell(record: bytes) -> None:
            assert self._around is not None
            one = sample(record)
            fields: dict[str, Value] = {
                "bytes": one.bytes,
                "family": one.family,
                "protocol": one.protocol,
                "vlan": one.vlan,
            }
            self._around.emit(Event(one.time_ns, entity, "packet.sampled", fields))

        return tell

    async def close(self) -> None:
        await self._interfaces.close()

    def schema(self) -> Schema:
        return SCHEMA

    def read(self) -> Frame | None:
        """One row per interface: one batch read each, summed over the CPUs; one that is away keeps its counts."""
        rows = list(self._interfaces.attached.values())
        if self._around is None or not rows:
            return None
        if self._keeper is not None:
            self._keeper.serve()
        counters = np.zeros((len(rows), len(SCHEMA.counters)), dtype=np.uint64)
        for index, one in enumerate(rows):
            # a value is (packets, bytes); the schema has all packets first
            counters[index] = one.counters.summed()[1].T.ravel()
            if self._every:
                self._lost[one.entity.name] = int(one.sampling.summed()[1].ravel()[1])
        valid = np.ones(len(rows), dtype=np.bool_)
        entities = tuple(one.entity for one in rows)
        now = self._around.clock.now_ns()
        return Frame(now, SCHEMA, entities, counters, np.zeros((len(rows), 0)), valid)

    def status(self) -> Status:
        attached = self._interfaces.places()
        counts = self._interfaces.counts()
        if self._every:
            counts["ring_drops"] = sum(self._lost.values())
        lesser = tuple(word for one in self._interfaces.attached.values() for word in one.ingress.lesser)
        return Status(bool(attached), attached, (*self._interfaces.troubles(), *lesser), counts)
