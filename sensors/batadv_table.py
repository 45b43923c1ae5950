"""What batadv's maps say, as rows: one for each neighbour on a link, and one for all that have none.

A neighbour that has a row keeps it, and what the kernel's tables forget goes to the remainder, so that no counter goes
backwards. The work in Python is per row; the neighbours beyond are only added up. Mirror of bpf/programs/batadv.h.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

NEIGHBOUR: Final = np.dtype(
    [
        ("lock", "u4"),
        ("newest", "u4"),
        ("window", "u8"),
        ("received", "u8"),
        ("lost", "u8"),
        ("late", "u8"),
        ("repeated", "u8"),
        ("restarts", "u8"),
        ("seen_ns", "u8"),
        ("newest_ns", "u8"),
        ("spacing_ns", "u8"),
        ("interval_ms", "u4"),
        ("packet_type", "u4"),
    ]
)
ORIGINATOR: Final = np.dtype([("received", "u8"), ("seen_ns", "u8"), ("newest", "u4"), ("packet_type", "u4")])
TALLIES: Final = (
    "frames",
    "own",
    "tagged",
    "malformed",
    "foreign_version",
    "neighbours_full",
    "originators_full",
)
COUNTED: Final = ("received", "lost", "late", "repeated", "restarts", "passed_on")
"""The counters of a row, in this order."""
OTHER: Final = "other"
SHORTEST_NS: Final = 10_000_000
LONGEST_NS: Final = 60_000_000_000
"""What a neighbour may say of its interval; it is not to be believed beyond."""
PRESENT_NS: Final = 30_000_000_000
"""An originator whose OGMs came within this time counts as present."""
_FORGET_AT_ONCE: Final = 64

Counts = npt.NDArray[np.uint64]
Records = npt.NDArray[Any]


def mac_text(number: int) -> str:
    """ "02:00:00:00:00:01"."""
    return number.to_bytes(6, "little").hex(":")


def interval_ns(spacing_ns: int, interval_ms: int) -> int:
    """How often a neighbour sends: as it says, else as it was learnt, else the longest; bounded in any case."""
    told = interval_ms * 1_000_000 or spacing_ns or LONGEST_NS
    return min(max(told, SHORTEST_NS), LONGEST_NS)


class Entries(Protocol):
    """What is read of a hash map; as `mapek.bpf.Map`."""

    def items(
        self, key_dtype: npt.DTypeLike | None = None, value_dtype: npt.DTypeLike | None = None
    ) -> tuple[Records, Records]:
        """All keys as bytes (n, key size), and all values."""

    def delete(self, key: bytes) -> bool:
        """Remove `key`; False when it was not there."""


@dataclass(frozen=True, slots=True)
class Row:
    """A neighbour now; times are CLOCK_MONOTONIC, `silent` and `turned` as of this reading."""

    mac: str
    counts: Counts
    seen_ns: int
    interval_ns: int
    silent: bool
    turned: bool
    originators: int


@dataclass(slots=True)
class _Kept:
    base: Counts
    silent: bool = False
    passed_on: int = 0
    """Of originators that are forgotten."""


@dataclass(slots=True)
class NeighbourTable:
    """The rows of one interface.

    Args:
        most: how many rows there may be.
        silent_after: intervals without a frame after which a neighbour is silent.
        forget_ns: what was not heard for so long leaves the kernel's tables.
    """

    most: int
    silent_after: int
    forget_ns: int
    _kept: dict[int, _Kept] = field(default_factory=dict)
    _known: Set[int] = frozenset()
    _gone: Counts = field(default_factory=lambda: np.zeros(len(COUNTED), np.uint64))
    _seen_ns: int = 0

    def rows(self, neighbours: Entries, originators: Entries, now_ns: int) -> tuple[list[Row], Counts]:
        """The neighbours that have a row, and what all others counted, those that are forgotten too."""
        keys, values = neighbours.items(value_dtype=NEIGHBOUR)
        macs = _numbers(keys[:, :6])
        counts = np.zeros((len(macs), len(COUNTED)), np.uint64)
        for column, name in enumerate(COUNTED[:-1]):
            counts[:, column] = values[name]
        through, passed = originators.items(value_dtype=ORIGINATOR)
        senders = _numbers(through[:, 6:12])
        fresh = passed["seen_ns"].astype(np.int64) > now_ns - PRESENT_NS
        at, hit = _places(macs, senders)
        np.add.at(counts[:, -1], at[hit], passed["received"][hit])
        present = np.bincount(at[hit & fresh], minlength=len(macs))
        stray = passed["received"][~hit].sum(dtype=np.uint64)
        places = dict(zip(macs.tolist(), range(len(macs)), strict=True))
        self._admit(places, counts)
        for mac, one in self._kept.items():
            counts[places[mac], -1] += np.uint64(one.passed_on)
        total = counts.sum(axis=0, dtype=np.uint64) + self._gone
        total[-1] += stray
        found = [
            self._row(mac, one, counts[places[mac]], values[places[mac]], int(present[places[mac]]), now_ns)
            for mac, one in self._kept.items()
        ]
        for row in found:
            total -= row.counts
        self._forget(neighbours, places, counts, values["seen_ns"], now_ns)
        self._forget_originators(originators, through, passed, senders, now_ns)
        return found, total

    def _admit(self, places: dict[int, int], counts: Counts) -> None:
        """Give what is free to who has none: to those that were heard most."""
        for mac in [mac for mac in self._kept if mac not in places]:
            # Only we delete, and then we know; but maps of a kernel are anybody's.
            del self._kept[mac]
        free = self.most - len(self._kept)
        if free > 0:
            waiting = [mac for mac in places if mac not in self._kept]
            waiting.sort(key=lambda mac: (-int(counts[places[mac], 0]), mac))
            for mac in waiting[:free]:
                # What it had until now was told as the remainder's, unless this is the first that we see of it.
                old = mac in self._known
                self._kept[mac] = _Kept(counts[places[mac]].copy() if old else np.zeros_like(self._gone))
        self._known = places.keys()

    def _row(self, mac: int, one: _Kept, counts: Counts, value: Records, present: int, now_ns: int) -> Row:
        every = interval_ns(int(value["spacing_ns"]), int(value["interval_ms"]))
        seen = int(value["seen_ns"])
        silent = now_ns - seen > self.silent_after * every
        turned, one.silent = silent != one.silent, silent
        return Row(mac_text(mac), counts - one.base, seen, every, silent, turned, present)

    def _forget(
        self, neighbours: Entries, places: dict[int, int], counts: Counts, seen: Records, now_ns: int
    ) -> None:
        forgotten: set[int] = set()
        for mac, place in self._old(places, seen, now_ns):
            if neighbours.delete(mac.to_bytes(8, "little")):
                one = self._kept.pop(mac, None)
                # Its originators are still in their table, and are counted there as nobody's.
                self._gone[:-1] += counts[place, :-1]
                self._gone[-1] += np.uint64(one.passed_on if one is not None else 0)
                forgotten.add(mac)
        if forgotten:
            self._known = self._known - forgotten

    def _old(self, places: dict[int, int], seen: Records, now_ns: int) -> Iterator[tuple[int, int]]:
        old = np.flatnonzero(seen.astype(np.int64) < now_ns - self.forget_ns)[:_FORGET_AT_ONCE]
        if len(old):
            names = {place: mac for mac, place in places.items()}
            yield from ((names[int(place)], int(place)) for place in old)

    def _forget_originators(
        self, originators: Entries, through: Records, passed: Records, senders: Records, now_ns: int
    ) -> None:
        old = np.flatnonzero(passed["seen_ns"].astype(np.int64) < now_ns - self.forget_ns)
        for place in old[:_FORGET_AT_ONCE]:
            if not originators.delete(through[place].tobytes()):
                continue
            count, kept = int(passed["received"][place]), self._kept.get(int(senders[place]))
            if kept is not None:
                kept.passed_on += count
            else:
                self._gone[-1] += np.uint64(count)


def _places(macs: npt.NDArray[np.uint64], senders: npt.NDArray[np.uint64]) -> tuple[Records, Records]:
    """For each sender its place in `macs`, and whether it is there at all."""
    if not len(macs):
        return np.zeros(len(senders), np.intp), np.zeros(len(senders), np.bool_)
    order = np.argsort(macs)
    at = order[np.searchsorted(macs[order], senders).clip(max=len(macs) - 1)]
    return at, macs[at] == senders


def _numbers(macs: Records) -> npt.NDArray[np.uint64]:
    wide = np.zeros((len(macs), 8), np.uint8)
    wide[:, :6] = macs
    return wide.view("<u8")[:, 0].astype(np.uint64)
