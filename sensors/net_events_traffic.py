"""What each interface carried, by name: the kernel counts by number, and a number may change its name.

What was counted until then stays with the old name, so that no counter of a name goes backwards. The map has
room for so many at once: who is gone leaves it.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from struct import Struct
from typing import Final

import numpy as np
import numpy.typing as npt

from mapek.bpf import PerCpuHashMap
from mapek.model import Event
from mapek.sensors.net_events_kernel import OTHER
from mapek.sensors.net_events_layout import TRAFFIC

MOST_NAMES: Final = 128
"""Who is renamed beyond these is counted as OTHER."""

_KEY: Final = Struct("=I")

Counts = npt.NDArray[np.uint64]
"""In the order of TRAFFIC."""


@dataclass(slots=True)
class Traffic:
    """The interfaces of the map `counted`.

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
            name, gone = self._name(ifindex)
            if name not in self.totals and len(self.totals) >= MOST_NAMES:
                name = OTHER
            total = self.totals.setdefault(name, _none())
            total += now - self._seen.get(ifindex, 0)
            self._seen[ifindex] = now
            if gone:
                self._forget(ifindex)
        if len(keys) >= self.counted.max_entries:
            self._make_room()

    def hear(self, event: Event) -> None:
        """Take in that a number has another name now, or a new interface has it, or it is gone."""
        ifindex = event.entity.generation
        if event.kind in ("link.new", "link.renamed") and ifindex in self._names:
            self.look()
            self._names[ifindex] = event.entity.name
        elif event.kind == "link.gone":
            self.look()
            self._forget(ifindex)

    def _make_room(self) -> None:
        """Of who came and went while the kernel had more to tell than could be heard, nobody said that it is gone."""
        for ifindex in [one for one in self._names if one]:
            try:
                socket.if_indextoname(ifindex)
            except OSError:
                self._forget(ifindex)

    def _forget(self, ifindex: int) -> None:
        """Give its place in the map to another. The totals of its name stay."""
        self.counted.delete(_KEY.pack(ifindex))
        self._seen.pop(ifindex, None)
        self._names.pop(ifindex, None)

    def _name(self, ifindex: int) -> tuple[str, bool]:
        """And whether it is gone already, before it was ever read."""
        if ifindex not in self._names:
            try:
                self._names[ifindex] = socket.if_indextoname(ifindex)
            except OSError:
                return f"if{ifindex}", True
        return self._names[ifindex], False


def _none() -> Counts:
    return np.zeros(len(TRAFFIC), np.uint64)
