"""What each interface carried, by name: the kernel counts by number, and a number may change its name.

What was counted until then stays with the old name, so that no counter of a name goes backwards.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from mapek.bpf import PerCpuHashMap
from mapek.model import Event
from mapek.sensors.net_events_kernel import OTHER
from mapek.sensors.net_events_layout import TRAFFIC

MOST_NAMES: Final = 128
"""Who is renamed beyond these is counted as OTHER."""

Counts = npt.NDArray[np.uint64]
"""In the order of TRAFFIC."""


@dataclass(slots=True)
class Traffic:
    """The interfaces of the map `counted`, which keeps all that ever had a place in it.

    Args:
        totals: by name, in the order in which they were first seen.
    """

    counted: PerCpuHashMap
    totals: dict[str, Counts] = field(default_factory=lambda: {OTHER: _none()})
    _names: dict[int, str] = field(default_factory=lambda: {0: OTHER})
    _seen: dict[int, Counts] = field(default_factory=dict)

    def look(self) -> None:
        """Add to the totals what was counted since the last look. One batch read."""
        keys, values = self.counted.summed()
        for ifindex, now in zip(keys.view(np.uint32).ravel().tolist(), values, strict=True):
            name = self._name(ifindex)
            if name not in self.totals and len(self.totals) >= MOST_NAMES:
                name = OTHER
            total = self.totals.setdefault(name, _none())
            total += now - self._seen.get(ifindex, 0)
            self._seen[ifindex] = now

    def hear(self, event: Event) -> None:
        """Take in that a number has another name now; also one that was given to a new interface."""
        ifindex = event.entity.generation
        if event.kind in ("link.new", "link.renamed") and ifindex in self._names:
            self.look()
            self._names[ifindex] = event.entity.name

    def _name(self, ifindex: int) -> str:
        if ifindex not in self._names:
            try:
                self._names[ifindex] = socket.if_indextoname(ifindex)
            except OSError:
                # Gone before it was ever read.
                self._names[ifindex] = f"if{ifindex}"
        return self._names[ifindex]


def _none() -> Counts:
    return np.zeros(len(TRAFFIC), np.uint64)
