"""What mesh_filter knows of identities, kept in step between the registry, the kernel's maps and the next life of both.

The maps go when the touchpoint closes, and nothing may be left behind then; so counts and verdicts are carried over in
memory to when it opens again. A write that finds no room leaves its address unknown, says so, and is tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import numpy as np

from mapek.bpf import ObjectSpec
from mapek.sensors.identities import Address, Identities, Verdict
from mapek.sensors.mesh_filter_rows import Counts, Rows
from mapek.sensors.mesh_filter_tables import TALLIES, Tables, pack

UNKNOWN: Final = 0
AT_ONCE: Final = 64
"""Map writes between two breaths of the event loop: 0.1 ms."""


class Store:
    """Lives as long as the touchpoint; `tables` are there while it is open.

    Args:
        rows: identities with a row of their own in a frame.
        unknown: the verdict of what no identity is known of.
    """

    def __init__(self, rows: int, unknown: Verdict) -> None:
        self.tables: Tables | None = None
        self.policies = {UNKNOWN: pack(unknown)}
        """What was decided, by number; the kernel's belong to rows and go with them."""
        self.refused: dict[Address, int] = {}
        self.full = 0
        self.tallied: Counts = np.zeros(len(TALLIES), np.uint64)
        self._rows = Rows(rows)
        self._carried: dict[int, Counts] = {UNKNOWN: np.zeros(4, np.uint64)}
        self._pending: dict[Address, int | None] = {}
        self._draining = False
        self._registry: Identities | None = None
        self._spawn: Callable[[Awaitable[None]], None] | None = None

    async def open(
        self,
        spec: ObjectSpec,
        sizes: tuple[int, int],
        registry: Identities,
        spawn: Callable[[Awaitable[None]], None],
    ) -> None:
        """Make maps for so many identities and addresses of a kind, and fill them with what was and what is known."""
        tables = self.tables = await Tables.make(spec, *sizes)
        self._registry, self._spawn = registry, spawn
        for number, counts in self._carried.items():
            if not tables.add_row(number, counts):
                self._rows.drop(number, counts)
            elif number in self.policies:
                tables.judge(number, self.policies[number])
        tables.set_tallies(self.tallied)
        for entry in registry.entries():
            known = registry.number(entry.spiffe_id)
            if known is not None and entry.verdict is not None and known not in self.policies:
                self.intend(known, entry.verdict)
        self.assign(registry.addresses())

    def close(self) -> None:
        """Keep what was counted, and let the maps go; no program may count any more. Twice is fine."""
        self._pending.clear()
        self.refused.clear()
        self._draining = False
        tables, self.tables = self.tables, None
        self._registry = self._spawn = None
        if tables is not None:
            try:
                numbers, sums = tables.counts()
                self._carried = {number: sums[row].copy() for row, number in enumerate(numbers.tolist())}
                self.tallied = tables.tallies()
            finally:
                tables.close()

    async def settle(self) -> None:
        """Until nothing is pending."""
        while self._pending:
            self._write()
            await asyncio.sleep(0)

    def assign(self, addresses: Mapping[Address, int | None]) -> None:
        """As the registry says; many at once are written with breaths between, the new before the old."""
        for address, number in addresses.items():
            self._pending.pop(address, None)
            self._pending[address] = number
        if self._draining or not self._pending:
            return
        self._write()
        if self._pending and self._spawn is not None:
            self._draining = True
            self._spawn(self._drain())

    def intend(self, number: int, verdict: Verdict) -> None:
        """An entry came with a verdict of its own."""
        self.policies[number] = pack(verdict)
        if self.tables is not None and self._row(self.tables, number):
            self.tables.judge(number, self.policies[number])

    def judge(self, number: int, policy: bytes) -> bool:
        """Set the verdict of an identity: one map write. False when it is not filtered, because a map is full."""
        tables = self.tables
        if tables is None or not tables.has_row(number) or not tables.judge(number, policy):
            return False
        self.policies[number] = policy
        return tables.verdict(number) == policy

    def rows(self) -> tuple[list[int], Counts]:
        """The numbers that have a row, and the rows (n + 2, 4): the unknown, theirs, the remainder."""
        assert self.tables is not None
        self.tallied = self.tables.tallies()
        numbers, sums = self.tables.counts()
        nobody = numbers == UNKNOWN
        own, values = self._rows.take(numbers[~nobody], sums[~nobody])
        return own, np.concatenate((sums[nobody], values))

    async def _drain(self) -> None:
        try:
            await asyncio.sleep(0)
            await self.settle()
        finally:
            self._draining = False

    def _write(self) -> None:
        tables = self.tables
        if tables is None:
            self._pending.clear()
            return
        removed = False
        for address in list(self._pending)[:AT_ONCE]:
            number = self._pending.pop(address)
            self.refused.pop(address, None)
            if number is None:
                removed = True
                tables.assign(address, None)
            elif not (self._row(tables, number) and tables.assign(address, number)):
                # Rather nobody's than still that of the one before.
                tables.assign(address, None)
                self.refused[address] = number
                self.full += 1
        if removed and self.refused and not self._pending:
            for address, number in list(self.refused.items()):
                if self._row(tables, number) and tables.assign(address, number):
                    del self.refused[address]

    def _row(self, tables: Tables, number: int) -> bool:
        """Make the identity countable, if need be in the place of one that is registered no more."""
        if tables.has_row(number):
            return True
        if not tables.add_row(number):
            numbers, sums = tables.counts()
            for row, other in enumerate(numbers.tolist()):
                if other != UNKNOWN and self._registry is not None and not self._registry.active(other):
                    tables.drop_row(other)
                    self._rows.drop(other, sums[row].copy())
                    break
            if not tables.add_row(number):
                return False
        if number in self.policies:
            tables.judge(number, self.policies[number])
        return True
