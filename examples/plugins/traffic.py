"""traffic: bytes that each interface received and sent, from /proc/net/dev."""

from pathlib import Path

import numpy as np

from mapek import Entity, Frame, Metric, Schema, Touchpoint

SCHEMA = Schema("traffic", "link", counters=(Metric("receive", "bytes"), Metric("transmit", "bytes")))


class Traffic(Touchpoint):
    name = "traffic"

    async def open(self, surroundings):
        self.now_ns = surroundings.clock.now_ns

    def read(self):
        rows = [line.replace(":", " ").split() for line in Path("/proc/net/dev").read_text().splitlines()[2:]]
        links = tuple(Entity("link", row[0]) for row in rows)
        totals = np.array([(row[1], row[9]) for row in rows], np.uint64)
        return Frame(self.now_ns(), SCHEMA, links, totals, np.zeros((len(rows), 0)), np.ones(len(rows), bool))
