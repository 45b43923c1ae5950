"""Section `all-sensors`: every sensor of this machine at its default rate, beside traffic, and without them.

Two nodes with two links, 1000 datagrams a second each way. Turns with an agent on each node that runs all sensors
and turns without any agent alternate; the datagrams' time from send to arrival (the kernel's stamp) tells what the
sensors do to a flow. CPU and memory are of the costlier agent; what programs spend in the kernel on the packets and
system calls of others is not in it, but in the flow's latency and in the sections `flow` and `syscalls`.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import numpy as np

from mapek.simulations.agent import Mapek
from mapek.simulations.bench.child import measured
from mapek.simulations.bench.everything import AllSensors, all_sensors
from mapek.simulations.bench.judge import PSS_MB
from mapek.simulations.bench.plan import Budget
from mapek.simulations.bench.targets import Row
from mapek.simulations.lab import Lab
from mapek.simulations.stats import percentile
from mapek.simulations.topology import pair
from mapek.simulations.traffic import Traffic, traffic

CPU_PERCENT: Final = 2.0
LATER_MS: Final = 0.5
READS_MS: Final = 0.3
TURNS: Final = 4
READS_S: Final = 10.0
"""Of all sensors; some have something to give once a second only."""
DEFAULT_READS_S: Final = 3.0
IDLE_S: Final = 0.005
"""Before each turn of reads: in life the processor has slept, and its caches are cold."""
PATIENCE_S: Final = 10.0


async def measure(budget: Budget) -> list[Row]:
    """CPU, PSS, the flow's latency with and without, and the time of reads: the default set's, and everyone's."""
    seconds = max(2.0, budget.seconds / 8 / TURNS * 2)
    cpu, pss, rss = list[float](), list[float](), list[float]()
    delays: dict[bool, list[float]] = {True: [], False: []}
    async with Lab(pair(links=2)) as lab:
        everything = await all_sensors(lab)
        agents = Mapek("default", extra=everything.tables)
        await lab.static_routes()
        async with traffic(lab) as flow:
            for _ in range(TURNS):
                await flow.settled(PATIENCE_S)
                delays[False].append(await _delay(flow, seconds))
                try:
                    await agents.open(lab)
                    before, start = agents.usage(), time.monotonic_ns()
                    delays[True].append(await _delay(flow, seconds))
                    after, span = agents.usage(), (time.monotonic_ns() - start) / 1e9
                finally:
                    await agents.close()
                cpu.append(100 * max(after[n].cpu_seconds - before[n].cpu_seconds for n in after) / span)
                pss.append(max(one.pss_mb for one in after.values()))
                rss.append(max(one.rss_mb for one in after.values()))
        reads = await _reads(lab, everything)
    promised = await default_reads()
    with_, without = (percentile(delays[kind], 50) or 0.0 for kind in (True, False))
    spans = f"{_span(delays[True])} and {_span(delays[False])}"
    note = f"{with_:.3f} with, {without:.3f} without; {TURNS} turns each: {spans}"
    return [
        Row("CPU", percentile(cpu, 50), "%", CPU_PERCENT, f"{_span(cpu)}; {everything.note}"),
        Row("PSS", percentile(pss, 50), "MB", PSS_MB, _span(pss)),
        Row("RSS", percentile(rss, 50), "MB", None, _span(rss)),
        Row("flow latency p99, more than without", round(with_ - without, 3), "ms", LATER_MS, note),
        *promised,
        *reads,
    ]


def _span(values: list[float]) -> str:
    return f"{min(values):.3g}-{max(values):.3g}"


async def _delay(flow: Traffic, seconds: float) -> float:
    """p99 of the time from send to arrival, in ms, of both directions together."""
    start = time.monotonic_ns()
    await asyncio.sleep(seconds)
    found = [one.arrivals(start) for one in (flow.there, flow.back)]
    taken = np.concatenate(
        [one["arrived_ns"].astype(np.int64) - one["sent_ns"].astype(np.int64) for one in found]
    )
    return float(np.percentile(taken, 99)) / 1e6


async def _reads(lab: Lab, everything: AllSensors) -> list[Row]:
    """Of all sensors with the defaults of one node; the last agent's configuration and keys are still there."""
    alone, failed = await _timed(lab, READS_S)
    note = f"{len(alone)} sensors, interfaces {_interfaces(lab)}"
    if failed:
        note += f"; not open: {failed}"
    return reads_rows("all maps of all sensors read", alone, note)


async def default_reads() -> list[Row]:
    """Of the default set, on a node with one interface."""
    async with Lab(pair(links=1)) as lab:
        agents = Mapek("default")
        try:
            await agents.open(lab)
        finally:
            await agents.close()
        alone, failed = await _timed(lab, DEFAULT_READS_S)
        warm, _ = await _timed(lab, DEFAULT_READS_S, 0.0)
        note = f"{' '.join(alone)}, interface {_interfaces(lab)}"
    what = "all default maps of one interface read"
    if failed:
        return [Row(what, None, "ms", READS_MS, f"not open: {failed}")]
    return [
        *reads_rows(what, alone, f"after {IDLE_S * 1e3:.0f} ms of sleep; {note}", READS_MS, each=False),
        *reads_rows("the same, without sleep in between", warm, note, each=False),
    ]


def _interfaces(lab: Lab) -> str:
    return " ".join(link.name for link in lab.topology.links)


async def _timed(
    lab: Lab, seconds: float, pause_s: float = IDLE_S
) -> tuple[dict[str, list[int]], dict[str, str]]:
    node = next(iter(lab.nodes.values()))
    what = f"reads on {node.name}"
    (found,) = await measured(
        "reads_child", "/run/mapek.toml", seconds, pause_s, what=what, inside=node.namespace
    )
    alone, failed = found["alone_ns"], found["failed"]
    assert isinstance(alone, dict)
    assert isinstance(failed, dict)
    return alone, failed


def reads_rows(
    what: str, alone: dict[str, list[int]], note: str, target: float | None = None, *, each: bool = True
) -> list[Row]:
    """The sum of the medians of the reads that gave something, then (with `each`) a row a sensor.

    What is promised is promised of all sensors: with a `target`, one that gave nothing leaves no sum.
    """
    told = {name: took for name, took in alone.items() if took}
    silent = " ".join(name for name in alone if name not in told)
    why = f"gave nothing: {silent}" if silent else ""
    if not told or (silent and target is not None):
        rows = [Row(what, None, "ms", target, why or "no sensor is open")]
    else:
        whole = round(sum(_ms(took, 50) for took in told.values()), 4)
        fewest = min(map(len, told.values()))
        said = f"sum of the medians, n = {fewest} or more; {note}"
        rows = [Row(what, whole, "ms", target, f"{said}; {why}" if why else said)]
    if each:
        for name, took in sorted(told.items(), key=lambda pair: -_ms(pair[1], 50)):
            spread = f"p99 {_ms(took, 99)} ms, n = {len(took)}"
            rows.append(Row(f"read of {name}", _ms(took, 50), "ms", None, spread))
    return rows


def _ms(values: list[int], p: float) -> float:
    return round(float(np.percentile(values, p)) / 1e6, 4)
