"""What batadv's maps say, as rows: one for each neighbour on a link, and one for all that have none.

A neighbour that has a row keeps it, and what the remainder ever had stays there, so that no counter goes backwards and
nothing counts twice. All is done on whole columns: the tables may be full of forged addresses. Mirror of
bpf/programs/batadv.h.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from mapek.sensors.top_rows import Counts, Mask, Places, Sought, TopRows

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
_FORGET_AT_ONCE: Final = 32

Records = npt.NDArray[Any]
Numbers = npt.NDArray[np.uint64]
"""Addresses as numbers, or counts of one column."""


def mac_text(number: int) -> str:
    """ "02:00:00:00:00:01"."""
    return number.to_bytes(6, "little").hex(":")


def intervals_ns(
    spacing_ns: npt.NDArray[np.uint64], interval_ms: npt.NDArray[np.uint32]
) -> npt.NDArray[np.int64]:
    """How often each neighbour sends: as it says, else as it was learnt, else the longest; bounded in any case."""
    told = interval_ms.astype(np.uint64) * np.uint64(1_000_000)
    told = np.where(told, told, np.where(spacing_ns, spacing_ns, np.uint64(LONGEST_NS)))
    return told.clip(SHORTEST_NS, LONGEST_NS).astype(np.int64)


class Entries(Protocol):
    """What is read of a hash map; as `mapek.bpf.Map`."""

    def items(
        self, key_dtype: npt.DTypeLike | None = None, value_dtype: npt.DTypeLike | None = None
    ) -> tuple[Records, Records]:
        """All keys as bytes (n, key size), and all values."""

    def delete(self, key: bytes) -> bool:
        """Remove `key`; False when it was not there."""


@dataclass(frozen=True, slots=True)
class _Match:
    """Which originators came through which neighbour; worth keeping, for a full table has the same keys each time."""

    keys: Records
    through: Records
    found: Sought
    senders: Numbers
    at: Places
    hit: Mask

    @classmethod
    def of(cls, keys: Records, through: Records) -> _Match:
        found, senders = Sought.among(_numbers(keys[:, :6])), _numbers(through[:, 6:12])
        return cls(keys, through, found, senders, *found.places(senders))

    def is_of(self, keys: Records, through: Records) -> bool:
        return np.array_equal(keys, self.keys) and np.array_equal(through, self.through)


@dataclass(frozen=True, slots=True)
class Rows:
    """The neighbours that have a row, now: item i of each belongs to row i; times are CLOCK_MONOTONIC.

    `names` is the same object as long as the rows are the same; `counts` are (n, 6) as `COUNTED`; `silent` and `turned`
    are as of this reading.
    """

    names: tuple[str, ...]
    counts: Counts
    seen_ns: npt.NDArray[np.int64]
    interval_ns: npt.NDArray[np.int64]
    silent: Mask
    turned: Mask
    originators: npt.NDArray[np.intp]


@dataclass(slots=True)
class _Kept:
    """What is known beside the counts of those with a row: what originators counted that are forgotten."""

    passed_on: Numbers = field(default_factory=lambda: np.zeros(0, np.uint64))
    silent: Mask = field(default_factory=lambda: np.zeros(0, np.bool_))
    names: tuple[str, ...] = ()

    def without(self, gone: Mask) -> _Kept:
        stay = ~gone
        names = tuple(name for name, one in zip(self.names, stay, strict=True) if one)
        return _Kept(self.passed_on[stay], self.silent[stay], names)

    def with_more(self, macs: Numbers) -> _Kept:
        n = len(macs)
        return _Kept(
            np.concatenate([self.passed_on, np.zeros(n, np.uint64)]),
            np.concatenate([self.silent, np.zeros(n, np.bool_)]),
            self.names + tuple(mac_text(mac) for mac in macs.tolist()),
        )


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
    _kept: _Kept = field(default_factory=_Kept)
    _match: _Match | None = None
    _known: Numbers = field(default_factory=lambda: np.zeros(0, np.uint64))
    """The neighbours of the last reading."""
    _strays: Numbers = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Who passed on OGMs until then and was no neighbour: the remainder has these."""
    _top: TopRows = field(init=False)

    def __post_init__(self) -> None:
        self._top = TopRows(self.most, len(COUNTED))

    def rows(self, neighbours: Entries, originators: Entries, now_ns: int) -> tuple[Rows, Counts]:
        """The neighbours that have a row, and what all others counted, those that are forgotten too."""
        keys, values = neighbours.items(value_dtype=NEIGHBOUR)
        through, passed = originators.items(value_dtype=ORIGINATOR)
        if self._match is None or not self._match.is_of(keys, through):
            self._match = _Match.of(keys, through)
        macs, senders, at, hit = self._match.found.keys, self._match.senders, self._match.at, self._match.hit
        counts = np.empty((len(macs), len(COUNTED)), np.uint64)
        for column, name in enumerate(COUNTED[:-1]):
            counts[:, column] = values[name]
        counts[:, -1] = _sums(at[hit], passed["received"][hit], len(macs))
        fresh = passed["seen_ns"].astype(np.int64) > now_ns - PRESENT_NS
        present = np.bincount(at[hit & fresh], minlength=len(macs))

        places = self._admit(self._match.found, counts)
        mine = counts[places]
        mine[:, -1] += self._kept.passed_on
        total = counts.sum(axis=0, dtype=np.uint64) + self._top.gone
        for beside in (passed["received"][~hit], self._kept.passed_on):
            total[-1:] += beside.sum(dtype=np.uint64)
        found = self._rows(values[places], mine - self._top.base, present[places], now_ns)
        self._known, self._strays = macs, senders[~hit]
        self._forget(neighbours, keys, macs, counts, values["seen_ns"], now_ns)
        self._forget_originators(originators, through, passed, senders, now_ns)
        return found, total - found.counts.sum(axis=0, dtype=np.uint64)

    def _admit(self, found: Sought, counts: Counts) -> Places:
        """Give what is free to who has no row. Returns the places of all rows."""
        places, there = found.places(self._top.keys)
        if not there.all():
            # Only we delete, and then we know; but maps of a kernel are anybody's.
            self._leave(~there)
            places = places[there]

        def told(new: Places) -> Counts:
            # What it had until now was told as the remainder's, unless this is the first that we see of it.
            macs = found.keys[new]
            old = np.isin(macs, self._known)[:, None].repeat(len(COUNTED), 1)
            old[:, -1] |= np.isin(macs, self._strays)
            return np.where(old, counts[new], np.uint64(0))

        new = self._top.admit(found, counts, told)
        if len(new):
            self._kept = self._kept.with_more(found.keys[new])
        return np.concatenate([places, new])

    def _leave(self, rows: Mask) -> None:
        self._top.leave(rows)
        self._kept = self._kept.without(rows)

    def _rows(self, values: Records, counts: Counts, present: Places, now_ns: int) -> Rows:
        every = intervals_ns(values["spacing_ns"], values["interval_ms"])
        seen = values["seen_ns"].astype(np.int64)
        silent = now_ns - seen > self.silent_after * every
        turned, self._kept.silent = silent != self._kept.silent, silent
        return Rows(self._kept.names, counts, seen, every, silent, turned, present)

    def _forget(
        self, neighbours: Entries, keys: Records, macs: Numbers, counts: Counts, seen: Records, now_ns: int
    ) -> None:
        old = np.flatnonzero(seen.astype(np.int64) < now_ns - self.forget_ns)[:_FORGET_AT_ONCE]
        gone = np.array([place for place in old if neighbours.delete(keys[place].tobytes())], np.intp)
        if not len(gone):
            return
        # Who comes back is new, but its originators are not.
        self._known = np.delete(macs, gone)
        self._strays = np.concatenate([self._strays, macs[gone]])
        having = np.isin(macs[gone], self._top.keys)
        # The remainder keeps what it has of them, and gets no more: a row's past is no news.
        self._top.gone[:-1] += counts[gone[~having], :-1].sum(axis=0, dtype=np.uint64)
        # Their originators are still in their table, and are counted there as nobody's from now on.
        self._top.gone[-1:] -= counts[gone[having], -1:].sum(axis=0, dtype=np.uint64)
        self._leave(np.isin(self._top.keys, macs[gone]))

    def _forget_originators(
        self, originators: Entries, through: Records, passed: Records, senders: Numbers, now_ns: int
    ) -> None:
        old = np.flatnonzero(passed["seen_ns"].astype(np.int64) < now_ns - self.forget_ns)
        for place in old[:_FORGET_AT_ONCE]:
            if originators.delete(through[place].tobytes()):
                kept = self._top.keys == senders[place]
                count = passed["received"][place : place + 1]
                if kept.any():
                    self._kept.passed_on[kept] += count
                else:
                    self._top.gone[-1:] += count


def _sums(at: Places, counts: Numbers, size: int) -> Numbers:
    sums = np.zeros(size, np.uint64)
    np.add.at(sums, at, counts)
    return sums


def _numbers(macs: Records) -> Numbers:
    wide = np.zeros((len(macs), 8), np.uint8)
    wide[:, :6] = macs
    return wide.view("<u8")[:, 0].astype(np.uint64)
