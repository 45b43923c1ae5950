"""What mesh_filter knows of identities, kept in step between the registry, the kernel's maps and the next life of both.

The maps go when the touchpoint closes, and nothing may be left behind then; so counts and verdicts are carried over in
memory to when it opens again. A write that finds no room leaves its address unknown, says so, and is tried again when
something went. Which identities have a row is remembered here, so that a full map costs no look at the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping
from itertools import islice
from typing import Final

import numpy as np

from mapek.bpf import Map, ObjectSpec
from mapek.bpf.keep import Kept
from mapek.bpf.worker import in_thread
from mapek.sensors.identities import Identities, Verdict
from mapek.sensors.identity_claims import Address
from mapek.sensors.mesh_filter_rows import Rows
from mapek.sensors.mesh_filter_tables import NUMBER, TALLIES, Tables, pack
from mapek.sensors.top_rows import Counts

UNKNOWN: Final = 0
LONGEST_NAME: Final = 2048
"""Bytes of a SPIFFE ID."""
AT_ONCE: Final = 32
"""Addresses between two breaths of the event loop: 1 ms if each is a new identity's, 0.1 ms if none is."""


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
        """Addresses that found no room."""
        self.addresses_refused = 0
        self.tallied: Counts = np.zeros(len(TALLIES), np.uint64)
        self._rows = Rows(rows)
        self._carried: dict[int, Counts] = {UNKNOWN: np.zeros(4, np.uint64)}
        self._pending: dict[Address, int | None] = {}
        self._draining = False
        self._numbers: set[int] = set()
        """Who has a row in the kernel."""
        self._ended: dict[int, None] = {}
        """Who has one, and may be registered no more; the first ended first."""
        self._no_row = self._something_went = False
        self._adopted: dict[int, str] = {}
        """The names of those whose rows were there before us, until somebody says who they are now."""
        self._names: Map | None = None
        self._registry: Identities | None = None
        self._spawn: Callable[[Awaitable[None]], None] | None = None

    async def open(
        self,
        spec: ObjectSpec,
        sizes: tuple[int, int],
        registry: Identities,
        spawn: Callable[[Awaitable[None]], None],
        kept: Kept | None = None,
    ) -> None:
        """Make maps for so many identities and addresses of a kind, with what was counted and decided before; or go on
        with those that are kept."""
        tables = self.tables = await Tables.make(spec, *sizes, kept)
        self._registry, self._spawn = registry, spawn
        self._names = kept.beside.get("names") if kept is not None else None
        if kept is not None and kept.adopted:
            self._adopt(tables, registry, verdicts=kept.unchanged)
        else:
            tables.set_tallies(self.tallied)
        for place, (number, counts) in enumerate(list(self._carried.items()), 1):
            if not tables.add_row(number, counts):
                self._rows.drop(number, self._carried.pop(number))
                continue
            self._numbers.add(number)
            self._write_name(number)
            if number in self.policies and tables.verdict(number) != self.policies[number]:
                tables.judge(number, self.policies[number])
            if number != UNKNOWN and not registry.active(number):
                self._ended[number] = None
            if place % AT_ONCE == 0:
                await asyncio.sleep(0)

    def _adopt(self, tables: Tables, registry: Identities, *, verdicts: bool) -> None:
        """Take over what an agent before us counted and decided. A row whose name is not known goes to the rest.

        `verdicts`: also that of the unknown, which is configured, and is as configured as before.
        """
        self.tallied = tables.tallies()
        numbers, sums = tables.counts()
        for row, number in enumerate(numbers.tolist()):
            name = self._name_of(number)
            if number != UNKNOWN and not (name and registry.remember(name, number)):
                self._forget(tables, number)
                continue
            self._adopted[number] = name
            self._carried[number] = sums[row].copy()
            if tables.judged(number) and (number != UNKNOWN or verdicts):
                self.policies[number] = tables.verdict(number)

    def _forget(self, tables: Tables, number: int) -> None:
        self._rows.drop(number, tables.count(number))
        tables.drop_row(number)
        self._numbers.discard(number)
        self._carried.pop(number, None)
        self.policies.pop(number, None)

    def _name_of(self, number: int) -> str:
        found = self._names.lookup(NUMBER.pack(number)) if self._names is not None else None
        return (found or b"").rstrip(b"\0").decode("utf-8", "replace")

    def _write_name(self, number: int) -> None:
        """For the next agent, whose registry may number anew."""
        name = self._registry.spiffe_id(number) if self._registry is not None else None
        if self._names is None or name is None or self._name_of(number) == name:
            return
        # Where it finds no room, the next agent adds what it counted to the rest.
        with contextlib.suppress(KeyError):
            self._names.update(NUMBER.pack(number), name.encode().ljust(LONGEST_NAME, b"\0"))

    async def reconcile(self, registry: Identities) -> None:
        """Nobody's any more are the addresses that an agent before us knew and the registry does not."""
        tables = self.tables
        if tables is None:
            return
        known = registry.addresses()
        strays = await in_thread(lambda: tables.strays(known))
        now = {(table.name, key) for table, key in map(tables.place, registry.addresses())}
        for place, (table, key) in enumerate(strays, 1):
            if (table.name, key) not in now:
                table.delete(key)
            if place % AT_ONCE == 0:
                await asyncio.sleep(0)

    async def fill(self, registry: Identities) -> None:
        """Take over what is known already; whoever calls it listens to the registry from before."""
        for place, entry in enumerate(registry.entries(), 1):
            known = registry.number(entry.spiffe_id)
            if known is not None and entry.verdict is not None and known not in self.policies:
                self.intend(known, entry.verdict)
            self.assign({one: now for one in entry.addresses() if (now := registry.whose(one)) is not None})
            if place % AT_ONCE == 0:
                await asyncio.sleep(0)
        await self.settle()

    def close(self) -> None:
        """Keep what was counted, and let the maps go; no program may count any more. Twice is fine."""
        self._pending.clear()
        self.refused.clear()
        self._numbers.clear()
        self._ended.clear()
        self._adopted.clear()
        self._names = None
        self._draining = self._no_row = self._something_went = False
        tables, self.tables = self.tables, None
        self._registry = self._spawn = None
        if tables is not None:
            try:
                numbers, sums = tables.counts()
                # An opening that was cancelled has not put all of them back into the kernel.
                self._carried |= {number: sums[row].copy() for row, number in enumerate(numbers.tolist())}
                self.tallied = tables.tallies()
            finally:
                tables.close()

    async def settle(self) -> None:
        """Until nothing is pending."""
        while self._pending:
            if not self._draining:
                self._write()
            await asyncio.sleep(0)

    def assign(self, addresses: Mapping[Address, int | None]) -> None:
        """As the registry says; many at once are written with breaths between, the new before the old."""
        for address, number in addresses.items():
            self._pending.pop(address, None)
            self._pending[address] = number
        self._go_on()

    def retire(self, numbers: Collection[int]) -> None:
        """Nobody is registered by these numbers any more: their rows are for whoever finds no other."""
        rows = self._numbers.intersection(numbers)
        if rows:
            self._ended.update(dict.fromkeys(rows))
            self._no_row, self._something_went = False, True
            self._go_on()

    def _go_on(self) -> None:
        self._retry()
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
        if tables is None or number not in self._numbers or not tables.judge(number, policy):
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
            while self._pending:
                await asyncio.sleep(0)
                self._write()
        finally:
            self._draining = False

    def _write(self) -> None:
        tables = self.tables
        if tables is None:
            self._pending.clear()
            return
        for address in list(islice(self._pending, AT_ONCE)):
            number = self._pending.pop(address)
            if number is None:
                tables.assign(address, None)
                self.refused.pop(address, None)
                self._something_went = True
            elif self._row(tables, number) and tables.assign(address, number):
                self.refused.pop(address, None)
            else:
                self._refuse(tables, address, number)
        self._retry()

    def _refuse(self, tables: Tables, address: Address, number: int) -> None:
        if address not in self.refused:
            # Rather nobody's than still that of the one before.
            tables.assign(address, None)
        if self.refused.get(address) != number:
            self.addresses_refused += 1
        self.refused[address] = number

    def _retry(self) -> None:
        """What was refused is tried again once something went, after all that is new, and with the same breaths."""
        if self._something_went and not self._pending:
            self._something_went = False
            self._pending.update(self.refused)

    def _row(self, tables: Tables, number: int) -> bool:
        """Make the identity countable, if need be in the place of one that is registered no more."""
        was = self._adopted.pop(number, None)
        if was and self._registry is not None and was != self._registry.spiffe_id(number):
            self._forget(tables, number)
        if number in self._numbers:
            return True
        if self._no_row:
            return False
        self._write_name(number)
        if not tables.add_row(number) and not (self._reclaim(tables) and tables.add_row(number)):
            self._no_row = True
            return False
        self._numbers.add(number)
        if number in self.policies:
            tables.judge(number, self.policies[number])
        return True

    def _reclaim(self, tables: Tables) -> bool:
        """Take the row of one that is registered no more; what it counted goes to the rest."""
        while self._ended:
            number = next(iter(self._ended))
            del self._ended[number]
            if self._registry is None or not self._registry.active(number):
                self._rows.drop(number, tables.count(number))
                tables.drop_row(number)
                if self._names is not None:
                    self._names.delete(NUMBER.pack(number))
                self._numbers.discard(number)
                self._carried.pop(number, None)
                return True
        return False
