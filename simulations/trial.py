"""One trial: rest, a random phase, the fault on whichever wire carries the traffic, the flow's verdict.

What counts is what the receivers got. The agents' own words only say where the time went.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from itertools import pairwise

from mapek.errors import TemporaryError
from mapek.simulations.agent import AgentEvent, Mapek
from mapek.simulations.contender import Contender
from mapek.simulations.faults import Fault
from mapek.simulations.flow import FlowWindow
from mapek.simulations.stalls import StallMeter
from mapek.simulations.traffic import Traffic
from mapek.simulations.wire import Wire

_BEFORE_NS = 5_000_000  # the gap that the fault makes begins with the last arrival before it
_WIRE_NS = 20_000_000  # by then whatever was on the way has arrived
_AFTER_S = 0.15  # how long a rescue is watched: a system that moves back and forth shows it here


@dataclass(frozen=True)
class Stages:
    """One node's way through an incident, in ms."""

    node: str
    detect: float
    plan: float
    act: float
    verify: float


@dataclass(frozen=True)
class TrialResult:
    """What one trial brought; times in CLOCK_MONOTONIC ns.

    `outage_ms`, `lost_percent` and `changes` are of the worse direction, `rescued` says that both
    directions flowed on while the fault still stood. `stall_ms` is the machine's longest stall around the
    outage. `carriers` are the wires that each direction took when the fault began: a node whose own traffic
    took another one has seen the fault and had nothing to move.
    """

    fault: str
    number: int
    family: int
    wire: str
    started_ns: int
    ended_ns: int
    rescued: bool
    directions: tuple[FlowWindow, FlowWindow]
    stall_ms: float
    stages: tuple[Stages, ...] = ()
    carriers: tuple[str | None, str | None] = (None, None)
    events: tuple[AgentEvent, ...] = field(default=(), repr=False)

    @property
    def outage_ms(self) -> float:
        """Longest gap in arrivals."""
        return max(window.outage_ms for window in self.directions)

    @property
    def lost_percent(self) -> float:
        """Share of the traffic that was lost."""
        return max(window.lost_percent for window in self.directions)

    @property
    def changes(self) -> int:
        """How often the traffic's path changed."""
        return max(window.changes for window in self.directions)


def stages_of(events: list[AgentEvent]) -> tuple[Stages, ...]:
    """The stages of every incident that recovered, from the agents' incident lines."""
    found = []
    for event in events:
        if event.kind != "incident" or event.fields.get("state") != "recovered":
            continue
        names = ("onset_ns", "detected_ns", "planned_ns", "acted_ns", "recovered_ns")
        marks = [mark for name in names if (mark := event.number(name)) is not None]
        if len(marks) == len(names):
            steps = [(later - earlier) / 1e6 for earlier, later in pairwise(marks)]
            found.append(Stages(event.node, *steps))
    return tuple(found)


class MissedError(TemporaryError):
    """The fault met no traffic; the trial says nothing and is to be run again."""


async def run_trial(
    contender: Contender,
    traffic: Traffic,
    fault: Fault,
    *,
    number: int,
    meter: StallMeter,
    chance: random.Random,
    patience_s: float | None = None,
) -> TrialResult:
    """Run one trial; the fault is gone and the nodes are at rest again when it returns.

    Raises MissedError when the traffic left the wire just before the fault, and TemporaryError when the
    nodes are not at rest, or the flow does not run, before or after.
    """
    patience = patience_s if patience_s is not None else max(2.0, 20 * contender.reaction_s)
    await traffic.settled(10.0)
    await asyncio.sleep(chance.uniform(0.0, 0.1))
    wire = await traffic.carrier_of(fault.direction)
    async with fault.on(wire) as start:
        rescued = await _watch(traffic, wire, fault, patience)
        used, end = traffic.arrived_by(start), time.monotonic_ns()
        if not fault.gray:
            await asyncio.sleep(_WIRE_NS / 1e9)
            windows = traffic.windows(start - _BEFORE_NS, end)
    if fault.gray:
        await asyncio.sleep(_WIRE_NS / 1e9)
        windows = traffic.windows(start, end)
    if wire.spec.name not in _affected(fault, used):
        # A voluntary return in that very moment: a fault that met no traffic would flatter the result.
        await contender.at_rest(60.0)
        raise MissedError("fault", f"wire {wire.spec.name}", "the traffic had just left it", "try again")
    stall = meter.worst_ms(start - _BEFORE_NS, max(window.gap_ns[1] for window in windows) + 1_000_000)
    await contender.at_rest(60.0)
    await traffic.settled(10.0)
    # An agent may report a recovery after the fault has gone; the line carries the times it is about.
    events = contender.events(start - _BEFORE_NS, time.monotonic_ns()) if isinstance(contender, Mapek) else []
    inside = [event for event in events if start <= (event.number("detected_ns") or event.time_ns) <= end]
    return TrialResult(
        fault.name,
        number,
        traffic.there.family,
        wire.spec.name,
        start,
        end,
        rescued,
        windows,
        stall,
        stages_of(inside),
        used,
        tuple(events),
    )


def _affected(fault: Fault, used: tuple[str | None, str | None]) -> tuple[str | None, ...]:
    return used if fault.direction == "both" else used[:1] if fault.direction == "ab" else used[1:]


async def _watch(traffic: Traffic, wire: Wire, fault: Fault, patience: float) -> bool:
    if fault.hold_s is not None:
        # Chance lets a lossy wire look well for a moment; that it is used no more, its own counters tell.
        await asyncio.sleep(0.75 * fault.hold_s)
        before = _flow_dropped(wire)
        await asyncio.sleep(0.25 * fault.hold_s)
        return _flow_dropped(wire) == before and traffic.flowing()
    deadline = time.monotonic() + patience
    await asyncio.sleep(0.03)
    while not traffic.flowing():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.01)
    await asyncio.sleep(_AFTER_S)
    return traffic.flowing()


def _flow_dropped(wire: Wire) -> int:
    return wire.counts("ab").flow_dropped + wire.counts("ba").flow_dropped
