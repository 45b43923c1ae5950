"""Section `maps`: whole maps read by `mapek.bpf`, by C with libbpf's batches and by `bpftool -j`, in turns.

Turns of some reads each, so that what the machine does meanwhile meets all alike and every reader is warm;
both keep their buffers from read to read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from mapek.bpf.maps import BPF_F_MMAPABLE, ArrayMap, Map, PerCpuArrayMap, PerCpuHashMap, create_map
from mapek.errors import FeatureError
from mapek.simulations.bench.map_rivals import bpftool
from mapek.simulations.bench.native import compile_c
from mapek.simulations.bench.plan import Budget
from mapek.simulations.bench.targets import Row
from mapek.simulations.gauge import Gauge
from mapek.simulations.stats import percentile

VALUE: Final = 16
TO_C: Final = {64: 1.5, 100_000: 1.2}
"""The ratio to C that is promised, from so many entries on."""

SPAN_NS: Final = 600_000_000
"""Of each reader's reads on one map, about."""


@dataclass(frozen=True, slots=True)
class Case:
    """A map to read; `held` for one whose memory is mapped."""

    kind: str
    entries: int
    held: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.entries}{' mmapped' if self.held else ''}"


CASES: Final = (
    *(Case("percpu_array", entries) for entries in (24, 64, 1024)),
    Case("percpu_hash", 10_000),
    Case("percpu_hash", 100_000),
    Case("hash", 10_000),
    Case("hash", 100_000),
    Case("array", 1024, held=True),
)


def filled(case: Case) -> Map:
    """A new map of the case's kind with all its entries set."""
    flags = BPF_F_MMAPABLE if case.held else 0
    found = create_map(case.kind, 4, VALUE, case.entries, flags=flags)
    for index in range(case.entries):
        value = np.arange(index, index + 2, dtype=np.uint64).tobytes()
        found.update(index.to_bytes(4, "little"), value * found.cpus)
    return found


def reader(found: Map) -> Callable[[], object]:
    """How a sensor would read all of `found`."""
    if isinstance(found, PerCpuArrayMap | PerCpuHashMap):
        return lambda: found.summed(np.uint64)
    if isinstance(found, ArrayMap) and found.flags & BPF_F_MMAPABLE:
        view = found.view(np.uint64)
        kept = np.empty_like(view)
        # Through memoryviews, as link_watch does it: numpy's own copy costs more than the bytes.
        source, target = view.reshape(-1).data, kept.reshape(-1).data
        return partial(target.__setitem__, slice(None), source)
    return lambda: found.items(np.uint32, np.uint64)


def timed(read: Callable[[], object], times: int) -> list[int]:
    """Nanoseconds of each of `times` reads."""
    found, clock = [], time.perf_counter_ns
    for _ in range(times):
        start = clock()
        read()
        found.append(clock() - start)
    return found


async def measure(budget: Budget) -> list[Row]:
    """A row for each map and each reader: medians, ratios, and p99 in the note."""
    del budget
    rows: list[Row] = []
    with TemporaryDirectory(prefix="mapek-bench-") as folder:
        try:
            program, why = await compile_c("map_reads", Path(folder), "libbpf"), ""
        except FeatureError as error:
            program, why = None, str(error)
        for case in CASES:
            with filled(case) as found:
                rows += await _measured(case, found, program, why)
    return rows


async def _measured(case: Case, found: Map, program: Path | None, why: str) -> list[Row]:
    read = reader(found)
    ours, theirs = timed(read, 5), list[int]()
    turn = max(5, min(200, 20_000_000 // min(ours)))
    turns = max(5, min(100, SPAN_NS // (turn * min(ours))))
    ours.clear()
    if program is None:
        for _ in range(turns):
            ours += timed(read, turn)
    else:
        async with Gauge([program, found.id]) as rival:
            await rival.ask(turn)
            for _ in range(turns):
                ours += timed(read, turn)
                theirs += await rival.ask(turn)
    target = next((TO_C[least] for least in sorted(TO_C, reverse=True) if case.entries >= least), None)
    mine = _micro(ours, 50)
    rows = [Row(f"{case}: mapek", mine, "µs", None, f"p99 {_micro(ours, 99)} µs, n = {len(ours)}")]
    c = _micro(theirs, 50) if theirs else None
    rows.append(Row(f"{case}: C", c, "µs", None, f"p99 {_micro(theirs, 99)} µs" if theirs else why))
    ratio = round(mine / c, 3) if c else None
    rows.append(Row(f"{case}: mapek to C", ratio, "x", target, why))
    try:
        times = max(1, min(9, 30_000 // case.entries))
        tool = percentile([await bpftool(found.id) / 1e3 for _ in range(times)], 50)
        assert tool is not None
        rows.append(Row(f"{case}: bpftool -j to mapek", round(tool / mine), "x", None, f"{tool:.0f} µs"))
    except FeatureError as error:
        rows.append(Row(f"{case}: bpftool -j to mapek", None, "x", None, str(error)))
    return rows


def _micro(nanoseconds: list[int], p: float) -> float:
    return round(float(np.percentile(nanoseconds, p)) / 1e3, 2)
