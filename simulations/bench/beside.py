"""Section `beside`: the same counts by bpftool and by bpftrace, side by side with ours.

bpftool reads maps that are there, as JSON; bpftrace traces by itself. Three jobs: the counters of xdp_counter read;
the latency histogram of one process's reads; TCP retransmissions and packet drops by reason. What is compared is what
each adds to a traced call, how long it takes to start, and the memory and CPU it wants.
"""

from __future__ import annotations

import asyncio
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from mapek.bpf import ObjectSpec, PerCpuArrayMap, load, object_path
from mapek.errors import FeatureError, MapekError, TemporaryError
from mapek.knowledge import Topology
from mapek.sensors.net_events import NetEvents
from mapek.sensors.syscall_latency import SyscallLatency
from mapek.sensors.syscall_latency_numbers import number_of
from mapek.simulations.bench.bpftrace import Bpftrace
from mapek.simulations.bench.map_rivals import bpftool
from mapek.simulations.bench.maps import timed
from mapek.simulations.bench.native import compile_c
from mapek.simulations.bench.plan import Budget
from mapek.simulations.bench.syscalls import CALLS, READ, SLICES
from mapek.simulations.bench.targets import Row
from mapek.simulations.gauge import Gauge
from mapek.simulations.surroundings import opened

ROUNDS: Final = 5
IDLE_S: Final = 3.0
HISTOGRAM: Final = (
    "tracepoint:raw_syscalls:sys_enter /pid == {pid} && args->id == {number}/ {{ @start[tid] = nsecs; }} "
    "tracepoint:raw_syscalls:sys_exit /pid == {pid} && @start[tid]/ "
    "{{ @latency = hist(nsecs - @start[tid]); delete(@start[tid]); }}"
)
EVENTS: Final = (
    "tracepoint:skb:kfree_skb { @drops[args->reason] = count(); } "
    "tracepoint:tcp:tcp_retransmit_skb { @retransmits = count(); } "
    "interval:s:1 { print(@drops); print(@retransmits); }"
)


async def measure(budget: Budget) -> list[Row]:
    """Rows of the three jobs; none has a target, for rivals promise nothing."""
    del budget
    rows: list[Row] = []
    for job in (_counters, _histogram, _events):
        try:
            rows += await job()
        except (FeatureError, TemporaryError) as error:
            rows.append(Row(f"{job.__name__.strip('_')}: beside others", None, "", None, str(error)))
    return rows


async def _counters() -> list[Row]:
    with load(ObjectSpec.read(object_path("xdp_counter"))) as loaded:
        counters = loaded.map("counters", PerCpuArrayMap)
        timed(counters.summed, 20)
        cpu = time.process_time_ns()
        ours = timed(counters.summed, 2000)
        spent = (time.process_time_ns() - cpu) / len(ours)
        before = _children_ns()
        theirs = [await bpftool(counters.id) for _ in range(15)]
        theirs_cpu = (_children_ns() - before) / len(theirs)
    return [
        *_reading("counters of one interface: mapek", ours, spent),
        *_reading("counters of one interface: bpftool -j", theirs, theirs_cpu),
    ]


def _children_ns() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) * 1e9


def _reading(what: str, took: list[int], cpu_ns: float) -> list[Row]:
    low, middle, high = (round(float(np.percentile(took, p)) / 1e3, 1) for p in (5, 50, 99))
    return [
        Row(f"{what}, latency", middle, "µs", None, f"p5 {low}, p99 {high} µs, n = {len(took)}"),
        Row(f"{what}, CPU", round(cpu_ns / 1e3, 1), "µs"),
    ]


async def _histogram() -> list[Row]:
    (number,) = number_of(("read",))
    over: dict[str, list[float]] = {"mapek": [], "bpftrace": []}
    started: dict[str, list[float]] = {"mapek": [], "bpftrace": []}
    counted, pss = list[int](), list[float]()
    with TemporaryDirectory(prefix="mapek-bench-") as folder:
        async with Gauge([await compile_c("syscall_loop", Path(folder))]) as loop:
            for _ in range(ROUNDS):
                bare = await _call_ns(loop)
                sensor = SyscallLatency({"processes": [str(loop.pid)], "syscalls": ["read"]})
                start = time.monotonic()
                async with opened(sensor, Topology("bench")):
                    started["mapek"].append((time.monotonic() - start) * 1e3)
                    over["mapek"].append(await _call_ns(loop) - bare)
                async with Bpftrace(HISTOGRAM.format(pid=loop.pid, number=number)) as rival:
                    started["bpftrace"].append(rival.ready_s * 1e3)
                    over["bpftrace"].append(await _call_ns(loop) - bare)
                    pss.append(rival.usage().pss_mb)
                    counted.append((await rival.counts()).get("@latency", 0))
    rows = []
    for name, values in over.items():
        note = f"{min(values):.0f}-{max(values):.0f}, n = {ROUNDS}"
        if name == "bpftrace":
            note += f"; it counted {min(counted)}-{max(counted)} of {SLICES * CALLS} calls"
        rows.append(
            Row(f"read latency histogram: {name}, a call over bare", _median(values), "ns", None, note)
        )
        rows.append(Row(f"read latency histogram: {name}, started in", _median(started[name]), "ms"))
    return [*rows, Row("read latency histogram: bpftrace, PSS", _median(pss), "MB")]


async def _call_ns(loop: Gauge) -> float:
    return float(np.median(await loop.ask(READ, SLICES, CALLS))) / 1e3


async def _events() -> list[Row]:
    rows: list[Row] = []
    try:
        start = time.monotonic()
        async with opened(NetEvents({}), Topology("bench")) as sensor:
            took, cpu = (time.monotonic() - start) * 1e3, time.process_time()
            for _ in range(int(IDLE_S)):
                await asyncio.sleep(1.0)
                sensor.read()
            cpu = 100 * (time.process_time() - cpu) / IDLE_S
        rows.append(Row("drops and retransmits: mapek, started in", round(took, 1), "ms"))
        rows.append(Row("drops and retransmits: mapek, CPU", round(cpu, 2), "%", None, "read once a second"))
    except MapekError as error:
        rows.append(Row("drops and retransmits: mapek", None, "", None, str(error)))
    async with Bpftrace(EVENTS) as rival:
        before = rival.usage()
        await asyncio.sleep(IDLE_S)
        after = rival.usage()
        cpu = 100 * (after.cpu_seconds - before.cpu_seconds) / IDLE_S
    return [
        *rows,
        Row("drops and retransmits: bpftrace, started in", round(rival.ready_s * 1e3, 1), "ms"),
        Row("drops and retransmits: bpftrace, CPU", round(cpu, 2), "%", None, "printed once a second"),
        Row("drops and retransmits: bpftrace, PSS", round(after.pss_mb, 1), "MB"),
    ]


def _median(values: list[float]) -> float:
    return round(float(np.median(values)), 1)
