"""Made-up results, for what only reads results."""

from __future__ import annotations

import numpy as np

from mapek.simulations.agent import AgentEvent, Scalar
from mapek.simulations.campaign import ArrivalTrace, CampaignResult, Series, SeriesResult, Spell, SpellResult
from mapek.simulations.contender import Usage
from mapek.simulations.faults import DROP_BOTH, Fault, gray
from mapek.simulations.flow import FlowWindow
from mapek.simulations.quiet import QuietResult
from mapek.simulations.topology import Family
from mapek.simulations.trial import TrialResult, stages_of

MS = 1_000_000
START = 50_000 * MS


def window(
    direction: str, outage_ms: float, lost: int = 0, changes: int = 1, start: int = START
) -> FlowWindow:
    gap = (start, start + int(outage_ms * MS))
    return FlowWindow(direction, outage_ms, gap, True, 1000, lost, changes, 0.1, 0.1)


def trial(fault: Fault, number: int, outage_ms: float, *, family: Family = 4, lost: int = 0) -> TrialResult:
    start = START + number * 1000 * MS
    marks: dict[str, Scalar] = {
        "entity": "l0",
        "onset_ns": start,
        "detected_ns": start + 2 * MS,
        "planned_ns": start + 2 * MS + 100_000,
        "acted_ns": start + 2 * MS + 200_000,
        "recovered_ns": start + 3 * MS,
        "state": "recovered",
    }
    events = [
        AgentEvent("a", "suspicion", start + MS, {"entity": "l0"}),
        AgentEvent("a", "incident", start + 3 * MS, marks),
        AgentEvent("b", "incident", start + 3 * MS, marks),
    ]
    directions = window("a>b", outage_ms, lost, start=start), window("b>a", outage_ms / 2, start=start)
    return TrialResult(
        fault.name, number, family, "l0", start, start + 300 * MS, outage_ms < 100, directions, 0.0,
        stages_of(events), ("l0", "l0"), tuple(events),
    )  # fmt: skip


def campaign(name: str = "mapek fast") -> CampaignResult:
    drop = SeriesResult(Series(DROP_BOTH, 3), tuple(trial(DROP_BOTH, i, 2.0 + i) for i in range(3)), ())
    loss = gray(30, hold_s=1)
    half = SeriesResult(
        Series(loss, 1), (trial(loss, 4, 3.0, lost=2),), ("wait for flow: it does not arrive",)
    )
    quiet = QuietResult(
        8.0, 0, 3, 0, (window("a>b", 1.0, 0, 0), window("b>a", 1.0, 0, 0)), 1.25, Usage(30.0, 40.0, 1.0), 0.0
    )
    spells = (
        SpellResult(Spell(8.0), quiet),
        SpellResult(Spell(8.0, hogs=True), QuietResult(**{**vars(quiet), "hogs": 2, "failovers": 1})),
    )
    times = np.arange(START - 500 * MS, START + 6000 * MS, MS, dtype=np.uint64)
    trace = [
        ArrivalTrace(way, 4, times, np.full(len(times), 2, np.uint32), {2: "l0", 3: "l1"})
        for way in ("a>b", "b>a")
    ]
    return CampaignResult(name, (drop, half), spells, tuple(trace))
