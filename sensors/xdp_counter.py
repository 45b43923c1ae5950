"""xdp_counter: packets and bytes that arrive, by family, protocol and VLAN tag, counted before the stack.

It sees what the driver hands to XDP: nothing that was sent, nothing that hardware offload kept, and merged
frames as one where the driver merges before XDP (generic mode after GRO). Costs a few ns a packet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from socket import if_nametoindex
from struct import Struct
from typing import ClassVar, Final

import numpy as np

from mapek.bpf import LoadedObject, ObjectSpec, PerCpuArrayMap, RingBuffer, object_path
from mapek.bpf.worker import in_thread
from mapek.bpf.xdp import Mode
from mapek.config.options import take, take_strings
from mapek.contracts import Options, Status, Surroundings, Touchpoint
from mapek.errors import AttachError, DegradedError, MapekError
from mapek.model import Entity, Event, Frame, Metric, Schema, Value
from mapek.sensors.hooks import Hooks

FAMILIES: Final = ("ipv4", "ipv6", "other")
PROTOCOLS: Final = ("tcp", "udp", "icmp", "other")
SLOT: Final = "xdp_counter"
_SAMPLE = Struct("=QIIBBBB4x")


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
class _Attached:
    entity: Entity
    loaded: LoadedObject
    counters: PerCpuArrayMap
    ring: RingBuffer | None


class XdpCounter(Touchpoint):
    """Touchpoint `xdp_counter`.

    Options:
        interfaces: names; by default those of all paths.
        mode: "auto", "native" or "generic".
        sample_every: emit an event "packet.sampled" for one packet in so many, per CPU; 0: none.

    Needs kernel 5.10, CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON (before 5.8: CAP_SYS_ADMIN).
    """

    name: ClassVar[str] = "xdp_counter"

    def __init__(self, options: Options) -> None:
        self._interfaces = take_strings(options, "interfaces")
        mode = take(options, "mode", str, "auto", choices=("auto", "native", "generic"))
        self._mode: Mode = "native" if mode == "native" else "generic" if mode == "generic" else "auto"
        self._every = take(options, "sample_every", int, 0, minimum=0, maximum=2**31)
        self._around: Surroundings | None = None
        self._hooks = Hooks()
        self._attached: dict[str, _Attached] = {}
        self._missing: dict[str, MapekError] = {}
        self._turn = asyncio.Lock()
        """An interface that comes back is heard of several times."""

    async def open(self, surroundings: Surroundings) -> None:
        """Attach to every interface that is there; raises the first error if none is."""
        self._around = surroundings
        self._hooks = surroundings.shared(Hooks)
        paths = surroundings.knowledge.topology.paths()
        for name in self._interfaces or tuple(dict.fromkeys(path.interface for path in paths)):
            await self._attach(name)
        if self._missing and not self._attached:
            raise next(iter(self._missing.values()))

    async def _attach(self, name: str) -> None:
        assert self._around is not None
        try:
            ifindex = if_nametoindex(name)
            spec = await in_thread(lambda: ObjectSpec.read(object_path("xdp_counter")))
            loaded = await self._hooks.join(
                ifindex, SLOT, spec, "xdp_counter", mode=self._mode, rodata={"sample_every": self._every}
            )
        except OSError as error:
            self._missing[name] = AttachError(
                "count on", name, "there is no such interface", "check the name"
            )
            self._missing[name].__cause__ = error
            return
        except (AttachError, DegradedError) as error:
            self._missing[name] = error
            return
        self._missing.pop(name, None)
        counters = loaded.maps["counters"]
        assert isinstance(counters, PerCpuArrayMap)
        ring = None
        if self._every:
            ring = RingBuffer(loaded.maps["samples"], self._teller(Entity("link", name, ifindex)))
            ring.start()
        self._attached[name] = _Attached(Entity("link", name, ifindex), loaded, counters, ring)

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
        attached, self._attached = self._attached, {}
        self._missing.clear()
        for one in attached.values():
            await self._detach(one)

    async def _detach(self, one: _Attached) -> None:
        if one.ring is not None:
            one.ring.close()
        await self._hooks.leave(one.entity.generation, SLOT)
        one.loaded.close()

    def on_event(self, event: Event) -> None:
        """Attach again when an interface is back."""
        if event.kind == "link.gone" and event.entity.name in self._attached:
            do = "it is counted again when it is back"
            self._missing[event.entity.name] = AttachError(
                "count on", event.entity.name, "the interface is gone", do
            )
        elif event.kind in ("link.new", "link.up") and self._around and self._is_stale(event.entity):
            self._around.spawn(self._reattach(event.entity))

    def _is_stale(self, link: Entity) -> bool:
        known = self._attached.get(link.name)
        return link.name in self._missing or (
            known is not None and known.entity.generation != link.generation
        )

    async def _reattach(self, link: Entity) -> None:
        async with self._turn:
            if not self._is_stale(link):
                return
            known = self._attached.pop(link.name, None)
            if known is not None:
                await self._detach(known)
            await self._attach(link.name)

    def schema(self) -> Schema:
        return SCHEMA

    def read(self) -> Frame | None:
        """One row per interface: one batch read each, summed over the CPUs."""
        if self._around is None or not self._attached:
            return None
        rows = list(self._attached.values())
        counters = np.zeros((len(rows), len(SCHEMA.counters)), dtype=np.uint64)
        for index, one in enumerate(rows):
            # a value is (packets, bytes); the schema has all packets first
            counters[index] = one.counters.summed()[1].T.ravel()
        valid = np.ones(len(rows), dtype=np.bool_)
        entities = tuple(one.entity for one in rows)
        now = self._around.clock.now_ns()
        return Frame(now, SCHEMA, entities, counters, np.zeros((len(rows), 0)), valid)

    def status(self) -> Status:
        attached = {
            name: f"xdp {self._hooks.mode(one.entity.generation)}" for name, one in self._attached.items()
        }
        return Status(bool(attached), attached, tuple(str(error) for error in self._missing.values()))
