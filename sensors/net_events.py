"""net_events: TCP retransmits and resets, packets dropped by the kernel's reason, and what each interface carries.

Counted in the kernel where it happens; a few of the rare events are told in detail, as events of a bounded rate. It
sees what the kernel decides: not what a driver or another machine loses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np

from mapek.bpf import ObjectSpec, RingBuffer
from mapek.bpf.keep import Kept
from mapek.bpf.worker import in_thread
from mapek.config.options import error, take
from mapek.contracts import Options, Status, Surroundings, Touchpoint, Variant
from mapek.model import Entity, Event, Frame, Metric, Schema
from mapek.sensors.keeper import Keeper, keeper
from mapek.sensors.links import Links
from mapek.sensors.net_events_kernel import OTHER, Running, start_btf, start_tracepoint, tracepoints_lack
from mapek.sensors.net_events_layout import FAMILIES, TCP_EVENTS, TRAFFIC, sample
from mapek.sensors.net_events_names import UNSPECIFIED
from mapek.sensors.net_events_traffic import Traffic
from mapek.sensors.variants import Choice, choose

if TYPE_CHECKING:
    from mapek.knowledge.topology import Topology

_RAREST: Final = 0.001
_HELP: Final = {
    "retransmit": "TCP segments sent again, by family.",
    "retransmit_synack": "SYN-ACKs sent again, by family of the listening socket.",
    "reset_sent": "TCP resets sent.",
    "reset_received": "TCP resets that a socket took.",
    "received_packets": "Packets that the stack received from the interface.",
    "received_bytes": "Bytes of these, from the network header on.",
    "sent_packets": "Packets handed to the driver.",
    "sent_bytes": "Bytes of these, from the link layer header on.",
}


def schema_of(reasons: tuple[str, ...], interfaces: tuple[str, ...]) -> Schema:
    """The columns where the kernel has these reasons and these interfaces were seen."""
    tcp = [
        Metric(
            f"tcp_{event}",
            "segments" if event == "retransmit" else "",
            _HELP[event],
            labels=(("family", one),),
        )
        for event in TCP_EVENTS
        for one in FAMILIES
    ]
    drops = [
        Metric(
            "drop", "packets", "Packets that the kernel dropped, by its reason.", labels=(("reason", one),)
        )
        for one in reasons
    ]
    traffic = [
        Metric(metric.removesuffix(f"_{unit}"), unit, _HELP[metric], labels=(("link", one),))
        for one in interfaces
        for metric in TRAFFIC
        for unit in (metric.partition("_")[2],)
    ]
    return Schema("net_events", "node", counters=(*tcp, *drops, *traffic))


SCHEMA: Final = schema_of((UNSPECIFIED, OTHER), (OTHER,))


class NetEvents(Touchpoint):
    """Touchpoint `net_events`.

    Options:
        variant: "auto", "tp_btf" or "tracepoint".
        samples_per_s: events "net.drop", "net.retransmit", ... told in detail, of each kind at most so many a second,
            0 for none, else 0.001 to 10 000.
        packets: count what each interface receives and sends too, which costs something for every packet.
        persist: let the counters and the programs outlive the agent.
        all_namespaces: count what happens in all network namespaces, not only in ours; not with `packets`.

    Needs kernel 5.10, CAP_BPF and CAP_PERFMON; without the kernel's BTF also CAP_DAC_READ_SEARCH and tracefs.
    """

    name: ClassVar[str] = "net_events"
    counted: ClassVar[Mapping[str, str]] = {
        "ring_drops": "Samples lost because the ring buffer was full.",
        "unsampled": "Events that were counted and not told one by one.",
        "map_full": "Packets of interfaces that found no room in the map.",
        "unattributed": "Drops whose network namespace could not be told.",
        "recursions": "Times the kernel skipped a program.",
    }
    variants: ClassVar[tuple[Variant, ...]] = (
        Variant(
            "tp_btf",
            ("CAP_BPF", "CAP_PERFMON", "btf", "ringbuf", "mmapable_array"),
            "knows the network namespace, the addresses of what is dropped, and interfaces",
            keeps=("CAP_BPF",),
        ),
        Variant(
            "tracepoint",
            ("CAP_BPF", "CAP_PERFMON", "CAP_DAC_READ_SEARCH", "ringbuf", "mmapable_array", "tracefs"),
            keeps=("CAP_BPF",),
        ),
    )

    def __init__(self, options: Options) -> None:
        self.wanted_variant = take(options, "variant", str, "auto", choices=("auto", "tp_btf", "tracepoint"))
        self._rate = take(options, "samples_per_s", float, 10.0, minimum=0, maximum=10_000)
        if 0 < self._rate < _RAREST:
            why = f"is {self._rate:g}, less than one in {1 / _RAREST:.0f} s"
            raise error(options, "samples_per_s", why, "set it to 0 for none")
        self._packets = take(options, "packets", bool, False)
        self._everywhere = take(options, "all_namespaces", bool, False)
        if self._packets and self._everywhere:
            why = "counts by interface numbers, which every network namespace has anew"
            raise error(options, "packets", why, "leave out packets or all_namespaces")
        self._persist = take(options, "persist", bool, False)
        self._around: Surroundings | None = None
        self._keeper: Keeper | None = None
        self._opened_ns = 0
        self._running: Running | None = None
        self._choice: Choice | None = None
        self._schema = SCHEMA
        self._carried: Traffic | None = None
        self._shown = 1

    def shortfalls(self, topology: Topology) -> tuple[str, ...]:
        choice = choose(self.name, self.variants, self.wanted_variant)
        lesser = choice.variant.name == "tracepoint"
        return tracepoints_lack(self._packets, self._everywhere) if lesser else ()

    async def open(self, surroundings: Surroundings) -> None:
        """Attach to the tracepoints; those that this kernel lacks are left out and said."""
        self._around = surroundings
        self._keeper = keeper(surroundings)
        self._opened_ns = surroundings.clock.now_ns()
        choice = self._choice = await in_thread(lambda: choose(self.name, self.variants, self.wanted_variant))
        start = start_btf if choice.variant.name == "tp_btf" else start_tracepoint
        running = self._running = await in_thread(
            lambda: start(self._constants(), self._packets, self._everywhere, self._keep), Running.close
        )
        self._carried = None if running.traffic is None else Traffic(running.traffic)
        self._schema, self._shown = schema_of(running.reasons, () if self._carried is None else (OTHER,)), 1
        if self._carried is not None:
            await surroundings.shared(Links).join(self._carried.hear, surroundings.clock.now_ns)
        if self._rate:
            running.ring = RingBuffer(running.loaded.maps["samples"], self._tell)
            running.ring.start()

    def _keep(
        self, spec: ObjectSpec, maps: tuple[str, ...], settings: Mapping[str, str], sizes: Mapping[str, int]
    ) -> Kept:
        assert self._keeper is not None
        meaning = {"namespaces": "all" if self._everywhere else "own"}
        keep = self._keeper.keep(self.name, maps, on=self._persist, meaning=meaning, settings=settings)
        return self._keeper.take_now(keep, spec, sizes)

    def _constants(self) -> dict[str, int | bytes]:
        if not self._rate:
            return {}
        interval = int(1e9 / self._rate)
        return {"sample_interval": interval, "sample_burst": max(interval, 1_000_000_000)}

    async def close(self) -> None:
        carried, self._carried = self._carried, None
        if carried is not None and self._around is not None:
            self._around.shared(Links).leave(carried.hear)
        running, self._running = self._running, None
        if running is not None:
            if running.ring is not None:
                running.ring.close()
            await in_thread(running.close)

    def _tell(self, record: bytes) -> None:
        running, around = self._running, self._around
        if running is None or around is None:
            return
        one = sample(record)
        if one.time_ns < self._opened_ns:
            return  # left in a ring that was kept: no news any more
        node = Entity("node", around.knowledge.topology.node)
        around.emit(Event(one.time_ns, node, f"net.{one.kind}", one.fields(running.names)))

    def schema(self) -> Schema:
        return self._schema

    def read(self) -> Frame | None:
        """One row, the node: counters from mapped memory, those of interfaces by one batch read."""
        running, around = self._running, self._around
        if running is None or around is None:
            return None
        if self._keeper is not None:
            self._keeper.serve()
        tcp = np.einsum("cef->ef", running.counts["tcp"]).ravel()
        drops = np.zeros(len(running.reasons), np.uint64)
        np.add.at(drops, running.columns, np.einsum("cr->r", running.counts["drops"]))
        parts = [tcp, drops]
        if self._carried is not None:
            self._carried.look()
            parts.extend(self._carried.totals.values())
            if len(self._carried.totals) > self._shown:
                self._shown = len(self._carried.totals)
                self._schema = schema_of(running.reasons, tuple(self._carried.totals))
        counters = np.concatenate(parts)[None, :]
        node = Entity("node", around.knowledge.topology.node)
        now = around.clock.now_ns()
        return Frame(now, self._schema, (node,), counters, np.zeros((1, 0)), np.ones(1, np.bool_))

    def status(self) -> Status:
        running = self._running
        if running is None:
            return Status(False)
        degraded = (*(self._choice.degraded() if self._choice else ()), *running.missing)
        if running.kept is not None and running.kept.trouble:
            degraded = (*degraded, running.kept.trouble)
        return Status(bool(running.where), dict(running.where), degraded, running.lost())
