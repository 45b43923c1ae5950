"""A spell without any fault, quiet or beside CPU hogs: whatever moves in it is a false alarm."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from mapek.simulations.agent import Mapek
from mapek.simulations.contender import Contender, Usage
from mapek.simulations.faults import Fault
from mapek.simulations.flow import FlowWindow
from mapek.simulations.hogs import hogs
from mapek.simulations.stalls import StallMeter
from mapek.simulations.traffic import Traffic


@dataclass(frozen=True)
class QuietResult:
    """What happened in `seconds` without cause.

    `failovers` counts path changes of the traffic plus switches that agents report, whichever is more on a
    node. `suspicions` is None for systems that do not tell. `cpu_percent` is of one core, the costlier
    node's.
    """

    seconds: float
    hogs: int
    suspicions: int | None
    failovers: int
    directions: tuple[FlowWindow, FlowWindow]
    cpu_percent: float
    usage: Usage
    stall_ms: float

    @property
    def lost_percent(self) -> float:
        """Share of the traffic that was lost, in the worse direction."""
        return max(window.lost_percent for window in self.directions)


async def run_quiet(
    contender: Contender,
    traffic: Traffic,
    seconds: float,
    *,
    meter: StallMeter,
    with_hogs: bool = False,
    fault: Fault | None = None,
) -> QuietResult:
    """Watch for `seconds`; `fault`, if any, is too mild for any system to move (0.1 % loss, say)."""
    await traffic.settled(10.0)
    await contender.at_rest(60.0)
    async with hogs(with_hogs) as count:
        before, start = contender.usage(), time.monotonic_ns()
        if fault is None:
            await asyncio.sleep(seconds)
        else:
            async with fault.on(await traffic.carrier_of(fault.direction)):
                await asyncio.sleep(seconds)
        after, end = contender.usage(), time.monotonic_ns()
    await asyncio.sleep(0.05)
    windows = traffic.windows(start, end)
    suspicions, switches = None, dict.fromkeys(after, 0)
    if isinstance(contender, Mapek):
        suspicions = 0
        for event in contender.events(start, end):
            suspicions += event.kind == "suspicion"
            switches[event.node] += event.kind == "switch"
    # A flow's path is chosen by the node that sends it.
    moved = {traffic.there.source.name: windows[0].changes, traffic.back.source.name: windows[1].changes}
    failovers = sum(max(moved.get(name, 0), count) for name, count in switches.items())
    seconds = (end - start) / 1e9
    cpu = {name: 100 * (after[name].cpu_seconds - before[name].cpu_seconds) / seconds for name in after}
    heaviest = max(after.values(), key=lambda usage: usage.pss_mb)
    return QuietResult(
        seconds,
        count,
        suspicions,
        failovers,
        windows,
        max(cpu.values()),
        heaviest,
        meter.worst_ms(start, end),
    )
