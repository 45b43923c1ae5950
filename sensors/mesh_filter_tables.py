"""The maps of mesh_filter as one table that all its programs share, and the bytes in them.

They are made once and handed to the program of each interface, so that a program may come, go and be replaced
while they keep counts and verdicts. Used from the event loop only: each call is one or two system calls of about a
microsecond.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Mapping
from ipaddress import IPv4Network
from typing import Final

import numpy as np
import numpy.typing as npt

from mapek.bpf import LoadedObject, LpmTrieMap, ObjectSpec, PerCpuArrayMap, PerCpuHashMap, load_async
from mapek.bpf.keep import Kept
from mapek.bpf.maps import BPF_NOEXIST, Map, wrap
from mapek.bpf.worker import in_thread
from mapek.sensors.identities import ALLOW, Verdict
from mapek.sensors.identity_claims import Address

SHARED: Final = ("prefixes4", "prefixes6", "macs", "policies", "counts", "tallies", "settings")
TALLIES: Final = ("control", "undecoded", "spared", "map_full")
COUNTS: Final = ("packets", "bytes", "drops", "would_drop")
KINDS: Final = ("allow", "deny", "limit")
POLICY: Final = struct.Struct("=IIQQQQ")
COUNT: Final = struct.Struct("=4Q")
NUMBER: Final = struct.Struct("=I")

Counts = npt.NDArray[np.uint64]


def pack(verdict: Verdict) -> bytes:
    """A `struct policy` with a full bucket: lock, verdict, ns a packet, ns of a burst, credit, stamp."""
    interval = 1_000_000_000 // verdict.rate if verdict.rate else 0
    burst = interval * verdict.burst
    return POLICY.pack(0, KINDS.index(verdict.kind), interval, burst, burst, 0)


class Tables:
    """The maps, owned by whoever made them; closing twice is fine."""

    def __init__(self, loaded: LoadedObject) -> None:
        self._loaded = loaded
        self._counts = loaded.map("counts", PerCpuHashMap)
        self._tallies = loaded.map("tallies", PerCpuArrayMap)
        self._prefixes4 = loaded.map("prefixes4", LpmTrieMap)
        self._prefixes6 = loaded.map("prefixes6", LpmTrieMap)
        self._macs, self._policies = loaded.maps["macs"], loaded.maps["policies"]

    @classmethod
    async def make(
        cls, spec: ObjectSpec, identities: int, addresses: int, kept: Kept | None = None
    ) -> Tables:
        """Maps for so many identities beside the unknown one, and so many addresses of each kind: new ones, or those
        that are kept."""
        rows = identities + 1
        sizes = {"prefixes4": addresses, "prefixes6": addresses, "macs": addresses}
        loaded = await load_async(
            spec,
            programs=(),
            max_entries={**sizes, "counts": rows, "policies": rows},
            reuse=kept.reuse() if kept is not None else {},
        )
        try:
            if kept is not None and kept.holds:
                await in_thread(lambda: kept.settle(loaded))
            return cls(loaded)
        except BaseException:
            loaded.close()
            raise

    def strays(self, known: Collection[Address]) -> list[tuple[Map, bytes]]:
        """Keys that stand for none of `known`, each with its map. Blocks for a microsecond a key: use a thread."""
        wanted = {(table.name, key) for table, key in map(self.place, known)}
        found = []
        for table in (self._prefixes4, self._prefixes6, self._macs):
            # A map is used by one thread only.
            with wrap(os.dup(table.fd), table.name) as mine:
                found += [
                    (table, key)
                    for key in mine.keys()  # noqa: SIM118 - a map
                    if (table.name, key) not in wanted
                ]
        return found

    def room(self) -> tuple[int, int]:
        """For so many identities, and so many addresses of a kind."""
        return self._counts.max_entries - 1, self._macs.max_entries

    def judged(self, number: int) -> bool:
        """Has it a verdict?"""
        return self._policies.lookup(NUMBER.pack(number)) is not None

    def shared(self) -> Mapping[str, Map]:
        """What a program is loaded with, for `reuse`."""
        return {name: self._loaded.maps[name] for name in SHARED}

    def close(self) -> None:
        """Let go; the kernel keeps what a program still uses."""
        self._loaded.close()

    def assign(self, address: Address, number: int | None) -> bool:
        """Let `address` stand for an identity, or (None) for nobody; False when the map is full."""
        table, key = self.place(address)
        if number is None:
            table.delete(key)
            return True
        try:
            table.update(key, NUMBER.pack(number))
        except KeyError:
            return False
        return True

    def number(self, address: Address) -> int | None:
        """Whose exactly this prefix or MAC is, as the kernel has it."""
        table, key = self.place(address)
        value = table.lookup(key)
        return None if value is None else int(NUMBER.unpack(value)[0])

    def add_row(self, number: int, start: Counts | None = None) -> bool:
        """Let an identity be counted, from `start` (4,) on; False when the map is full. A row that is there stays."""
        first = COUNT.pack(*start.tolist()) if start is not None else bytes(COUNT.size)
        key = NUMBER.pack(number)
        if self._counts.lookup(key) is not None:
            return True
        try:
            self._counts.update(key, first + bytes(COUNT.size * (self._counts.cpus - 1)), BPF_NOEXIST)
        except KeyError:
            return False
        return True

    def drop_row(self, number: int) -> None:
        """Count an identity no more, and forget its verdict."""
        self._counts.delete(NUMBER.pack(number))
        self._policies.delete(NUMBER.pack(number))

    def count(self, number: int) -> Counts:
        """(4,): what `counts` has of one identity; zeros if it is not counted."""
        value = self._counts.lookup(NUMBER.pack(number))
        if value is None:
            return np.zeros(len(COUNTS), np.uint64)
        sums: Counts = np.frombuffer(value, np.uint64).reshape(-1, len(COUNTS)).sum(axis=0)
        return sums

    def verdict(self, number: int) -> bytes:
        """The `struct policy` of an identity as `pack` makes it: without the state of its bucket."""
        value = self._policies.lookup(NUMBER.pack(number))
        if value is None:
            return pack(ALLOW)
        _, kind, interval, burst, _, _ = POLICY.unpack(value)
        return POLICY.pack(0, kind, interval, burst, burst, 0)

    def judge(self, number: int, policy: bytes) -> bool:
        """Set a policy: one write, which holds for every interface. False when the map is full."""
        try:
            self._policies.update(NUMBER.pack(number), policy)
        except KeyError:
            return False
        return True

    def observe(self, on: bool) -> None:
        """Only count what would be dropped, or drop it."""
        self._loaded.maps["settings"].update(bytes(4), NUMBER.pack(on))

    def observing(self) -> bool:
        """What the kernel has."""
        return self._loaded.maps["settings"].lookup(bytes(4)) != bytes(4)

    def counts(self) -> tuple[npt.NDArray[np.uint32], Counts]:
        """(numbers (n,), packets, bytes, drops and would_drop (n, 4)), summed over CPUs, in the map's order."""
        keys, sums = self._counts.summed()
        return np.ascontiguousarray(keys).view(np.uint32).ravel(), sums

    def tallies(self) -> Counts:
        """In the order of `TALLIES`."""
        sums: Counts = self._tallies.summed()[1].ravel()
        return sums

    def set_tallies(self, values: Counts) -> None:
        """Begin from these, before any program runs."""
        for index, value in enumerate(values.tolist()):
            rest = bytes(8 * (self._tallies.cpus - 1))
            self._tallies.update(NUMBER.pack(index), struct.pack("=Q", value) + rest)

    def place(self, address: Address) -> tuple[Map, bytes]:
        """The map and the key of an address."""
        if isinstance(address, bytes):
            return self._macs, address + bytes(2)
        table = self._prefixes4 if isinstance(address, IPv4Network) else self._prefixes6
        return table, table.prefix(address.network_address.packed, address.prefixlen)
