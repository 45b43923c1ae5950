"""Section `ring`: a million records a second from a BPF program to Python, by batch and by callback, in turns.

A process beside us makes a program write 24-byte records (32 in the ring) at a steady rate; the reader runs on
an event loop here and does what a sensor would do with them: it counts them by key. The CPU time is this
process's own, kernel part included. Losses are told twice: by the program, which counts records that found no
room, and by what arrived; the two must agree.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from mapek.bpf import ArrayMap, Map, ObjectSpec, RingBatches, RingBuffer, load, object_path
from mapek.bpf.ringbatch import Records, reads_directly
from mapek.errors import PermanentError
from mapek.simulations.bench.child import measured, number
from mapek.simulations.bench.plan import Budget
from mapek.simulations.bench.targets import Row
from mapek.simulations.stats import percentile

RATE: Final = 1_000_000
CPU_PERCENT: Final = 15.0
TURNS: Final = 5
SECONDS: Final = 2.0
RECORD: Final = np.dtype([("seq", "u8"), ("time_ns", "u8"), ("key", "u8")])
STRIDE: Final = 32
RING_BYTES: Final = 1 << 24
"""Half a second of records: what a reader may be stalled for without a loss."""

WAKE_RECORDS: Final = 10_000
TICK_S: Final = 0.1
_WORDS: Final = struct.Struct("=QQQ")
_EVERY: Final = 97
"""Of the latencies one in so many is kept."""


class Counted:
    """What one reader saw in one turn, and the CPU time of this process from the first record to the last."""

    def __init__(self) -> None:
        self.records = 0
        self.by_key = np.zeros(64, np.int64)
        self.latencies_ns: list[int] = []
        self._first = self._last = (0, 0)

    def batch(self, found: Records) -> None:
        """Take a batch."""
        self._seen()
        now = time.monotonic_ns()
        self.records += len(found)
        self.by_key += np.bincount(found["key"].astype(np.intp), minlength=len(self.by_key))
        self.latencies_ns += (now - found["time_ns"][::_EVERY].astype(np.int64)).tolist()

    def one(self, record: bytes) -> None:
        """Take a single record."""
        _, time_ns, key = _WORDS.unpack(record)
        self.by_key[key] += 1
        if self.records % _EVERY == 0:
            self._seen()
            self.latencies_ns.append(time.monotonic_ns() - time_ns)
        self.records += 1

    def _seen(self) -> None:
        self._last = time.monotonic_ns(), time.process_time_ns()
        if not self.records:
            self._first = self._last

    @property
    def cpu_percent(self) -> float:
        """Of one core."""
        span, cpu = (last - first for first, last in zip(self._first, self._last, strict=True))
        return 100 * cpu / span if span else 0.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of one reader."""

    rate: float
    cpu_percent: float
    lost: int
    latencies_ns: list[int]


Reader = Callable[[Map, Counted], RingBatches | RingBuffer]


def by_batch(ring: Map, counted: Counted, *, direct: bool) -> RingBatches:
    """Woken by the program for some thousand records, and by a tick for the rest."""
    reader = RingBatches(ring, RECORD, counted.batch, direct=direct)
    reader.start(tick_s=TICK_S)
    return reader


def by_callback(ring: Map, counted: Counted) -> RingBuffer:
    """A call for each record."""
    reader = RingBuffer(ring, counted.one)
    reader.start()
    return reader


async def measure(budget: Budget) -> list[Row]:
    """CPU, losses and latencies of each reader at the full rate."""
    del budget
    readers: dict[str, Reader] = {}
    if reads_directly():
        readers["batches"] = partial(by_batch, direct=True)
    readers["batches through libbpf"] = partial(by_batch, direct=False)
    readers["a callback each"] = by_callback
    turns: dict[str, list[Turn]] = {name: [] for name in readers}
    for turn in range(TURNS):
        for name, reader in readers.items():
            # Those that cannot keep up are told from two turns.
            if turn < 2 or name == "batches":
                turns[name].append(await flooded(reader, RATE, SECONDS))
    best = next(iter(readers))
    return [row for name, found in turns.items() for row in rows(name, found, promised=name == best)]


async def flooded(reader: Reader, rate: int, seconds: float) -> Turn:
    """One turn: a new ring, a writer beside us, and our CPU time while it writes."""
    spec = ObjectSpec.read(object_path("ring_flood"))
    wake = {"wake_bytes": WAKE_RECORDS * STRIDE}
    counted = Counted()
    with load(spec, rodata=wake, max_entries={"flood": RING_BYTES}) as loaded:
        fd = loaded.programs["ring_flood"].fd
        with reader(loaded.maps["flood"], counted):
            (told,) = await measured(
                "ring_child", fd, rate, seconds, what="writer of records", pass_fds=(fd,)
            )
            await _drained(counted)
        sent, no_room, _ = loaded.map("count", ArrayMap).items(None, np.uint64)[1].ravel().tolist()
    lost = sent - counted.records
    if lost != no_room or int(counted.by_key.sum()) != counted.records:
        why = f"{sent} written, {no_room} without room, {counted.records} read"
        raise PermanentError("count", "records of a ring", why, "see the tests of RingBatches")
    return Turn(sent / number(told, "took_s"), counted.cpu_percent, lost, counted.latencies_ns)


async def _drained(counted: Counted) -> None:
    """Until nothing more comes."""
    before = -1
    while counted.records != before:
        before = counted.records
        await asyncio.sleep(2 * TICK_S)


def rows(name: str, turns: list[Turn], *, promised: bool) -> list[Row]:
    """Of one reader."""
    cpu = [turn.cpu_percent for turn in turns]
    rate = float(np.median([turn.rate for turn in turns]))
    latencies = [value / 1e6 for turn in turns for value in turn.latencies_ns]
    reached = rate >= 0.99 * RATE
    note = f"{rate / 1e6:.3g} M records/s, {len(turns)} turns: {min(cpu):.1f}-{max(cpu):.1f} %"
    share = round(float(np.median(cpu)), 1) if reached else None
    why = note if reached else f"the writer reached only {rate / 1e6:.3g} M records/s"
    lost = sum(turn.lost for turn in turns)
    return [
        Row(f"{name}: CPU", share, "%", CPU_PERCENT if promised else None, why),
        Row(f"{name}: records lost", lost, "", 0 if promised else None),
        Row(f"{name}: from the program to us p50", percentile(latencies, 50), "ms"),
        Row(f"{name}: from the program to us p99", percentile(latencies, 99), "ms"),
    ]
