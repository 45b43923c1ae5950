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
READS: Final = 400
PATIENCE_S: Final = 10.0


async def measure(budget: Budget) -> list[Row]:
    """CPU, PSS, the flow's latency with and without, and the time of all reads together."""
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
    with_, without = (percentile(delays[kind], 50) or 0.0 for kind in (True, False))
    spans = f"{_span(delays[True])} and {_span(delays[False])}"
    note = f"{with_:.3f} with, {without:.3f} without; {TURNS} turns each: {spans}"
    return [
        Row("CPU", percentile(cpu, 50), "%", CPU_PERCENT, f"{_span(cpu)}; {everything.note}"),
        Row("PSS", percentile(pss, 50), "MB", PSS_MB, _span(pss)),
        Row("RSS", percentile(rss, 50), "MB", None, _span(rss)),
        Row("flow latency p99, more than without", round(with_ - without, 3), "ms", LATER_MS, note),
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
    node = next(iter(lab.nodes.values()))
    what = f"reads on {node.name}"
    (found,) = await measured("reads_child", "/run/mapek.toml", READS, what=what, inside=node.namespace)
    rounds, alone, failed = found["rounds_ns"], found["alone_ns"], found["failed"]
    assert isinstance(rounds, list)
    assert isinstance(alone, dict)
    note = f"p99 {_ms(rounds, 99)} ms, {len(alone)} sensors, two interfaces"
    if failed:
        note += f"; not open: {failed}"
    rows = [Row("all maps of all sensors read", _ms(rounds, 50), "ms", READS_MS, note)]
    for name, values in sorted(alone.items(), key=lambda pair: -_ms(pair[1], 50)):
        rows.append(Row(f"read of {name}", _ms(values, 50), "ms", None, f"p99 {_ms(values, 99)} ms"))
    return rows


def _ms(values: list[int], p: float) -> float:
    return round(float(np.percentile(values, p)) / 1e6, 4)
