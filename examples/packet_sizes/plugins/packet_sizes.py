"""packet_sizes: how long the frames are that arrive, a histogram for each interface."""

from pathlib import Path

import numpy as np

from mapek import Frame, Metric, Schema, Status, Touchpoint
from mapek.bpf import ObjectSpec, PerCpuArrayMap
from mapek.bpf.worker import in_thread
from mapek.config.options import take_strings
from mapek.sensors.hooks import Hooks
from mapek.sensors.ingress import NEEDS, IngressProgram, join_ingress
from mapek.sensors.interfaces import Interfaces

OBJECT = Path(__file__).parents[1] / "packet_sizes.o"
SCHEMA = Schema(
    "packet_sizes",
    "link",
    counters=(
        Metric("receive", "packets", "Packets that arrived."),
        Metric("receive", "bytes", "Bytes of their frames."),
    ),
    histograms=(
        Metric(
            "size",
            "bytes",
            "Length of the frames that arrived.",
            bounds=(64, 128, 256, 512, 1024, 2048),
            sum="receive",  # the counter that has its sum: `_sum` on /metrics
        ),
    ),
)


class PacketSizes(Touchpoint):
    name = "packet_sizes"
    opens_after = ("link_watch",)  # which says where the chain of an interface is pinned

    def __init__(self, options):
        self._names = take_strings(options, "interfaces")
        self._interfaces = Interfaces("measure on", self._attach, sensor=self.name)

    def capabilities(self, opened):
        return frozenset(NEEDS)  # `mapek run` gives up what no sensor says that it needs

    async def open(self, surroundings):
        self._around = surroundings
        spec = await in_thread(lambda: ObjectSpec.read(OBJECT))  # not on the loop: it takes milliseconds
        self._program = IngressProgram(spec, "user_a", "packet_sizes")
        await self._interfaces.open(surroundings, self._names)

    async def _attach(self, link, former):
        # An interface that was away comes back with the counts that it had.
        reuse = {} if former is None else {"sizes": former.loaded.maps["sizes"]}
        return await join_ingress(self._around.shared(Hooks), link, self._program, reuse=reuse)

    async def close(self):
        await self._interfaces.close()

    def schema(self):
        return SCHEMA

    def read(self):
        rows = list(self._interfaces.attached.values())
        if not rows:
            return None
        # (interfaces, buckets, 2): packets and bytes, summed over the CPUs
        counts = np.array([one.loaded.map("sizes", PerCpuArrayMap).summed()[1] for one in rows], np.uint64)
        return Frame(
            self._around.clock.now_ns(),
            SCHEMA,
            tuple(one.entity for one in rows),
            counts.sum(axis=1, dtype=np.uint64),
            np.zeros((len(rows), 0)),
            np.ones(len(rows), bool),
            (counts[:, :, 0].copy(),),
        )

    def status(self):
        attached = self._interfaces.places()
        return Status(bool(attached), attached, self._interfaces.troubles())
