"""The targets of the campaigns, by profile, and how their results are held against them.

Outages are held against their targets in tenths of a millisecond: the flow sends once a millisecond, so a gap
of three is 3 ms and some microseconds of jitter. `report.json` has them as they were measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mapek.simulations.agent import Profile
from mapek.simulations.bench.targets import Row
from mapek.simulations.campaign import CampaignResult, SeriesResult, SpellResult
from mapek.simulations.stats import percentile


@dataclass(frozen=True, slots=True)
class Targets:
    """Of one profile: outages in ms, traffic lost in % (both ways p50 and p95, one way p95), CPU in % of a
    core, and the grace in ms that an inquiry may take."""

    outage_p50: float
    outage_p95: float
    lost_p50: float
    lost_p95: float
    lost_one_way_p95: float
    cpu_percent: float | None
    grace_ms: float


TARGETS: Final[dict[Profile, Targets]] = {
    "fast": Targets(3.0, 4.0, 0.05, 0.1, 0.2, None, 0.3),
    "default": Targets(16.0, 25.0, 0.5, 1.0, 2.0, 2.0, 1.0),
}
PSS_MB: Final = 50.0


def campaign_rows(result: CampaignResult, profile: Profile | None) -> list[Row]:
    """All rows of one campaign; without a profile (a peer's) nothing has a target."""
    targets = TARGETS[profile] if profile else None
    rows: list[Row] = []
    for series in result.series:
        rows += _gray(series, targets) if series.series.fault.gray else _silence(series, targets)
    for spell in result.spells:
        rows += _quiet(spell, targets)
    return rows


def _name(series: SeriesResult) -> str:
    version = " IPv6" if series.series.family == 6 else ""
    return f"{series.series.fault.name}{version}{' beside hogs' if series.series.hogs else ''}"


def _unrecovered(series: SeriesResult, targets: Targets | None) -> Row:
    trials = len(series.trials) + len(series.failed)
    bad = len(series.failed) + sum(not trial.rescued for trial in series.trials)
    note = f"of {trials} trials" + (f"; {len(series.failed)} not judged" if series.failed else "")
    return Row(f"{_name(series)}: not healed", bad, "", 0 if targets else None, note)


def _silence(series: SeriesResult, targets: Targets | None) -> list[Row]:
    outages = [round(trial.outage_ms, 1) for trial in series.trials]
    stalls = sum(trial.stall_ms >= 1.0 for trial in series.trials)
    note = f"{stalls} trials with a stall of the machine > 1 ms" if stalls else ""
    # Beside hogs healing is promised, and the time it takes is told.
    held = None if series.series.hogs else targets
    return [
        _unrecovered(series, targets),
        Row(f"{_name(series)}: outage p50", percentile(outages, 50), "ms", held.outage_p50 if held else None),
        Row(
            f"{_name(series)}: outage p95",
            percentile(outages, 95),
            "ms",
            held.outage_p95 if held else None,
            note,
        ),
    ]


def _gray(series: SeriesResult, targets: Targets | None) -> list[Row]:
    lost = [trial.lost_percent for trial in series.trials]
    changes = sorted(trial.changes for trial in series.trials)
    other = sum(count != 1 for count in changes)
    both = series.series.fault.direction == "both"
    rows = [
        _unrecovered(series, targets),
        Row(
            f"{_name(series)}: not exactly one path change",
            other,
            "",
            0 if targets else None,
            f"changes: {' '.join(map(str, changes))}",
        ),
        Row(
            f"{_name(series)}: traffic lost p50",
            percentile(lost, 50),
            "%",
            targets.lost_p50 if targets and both else None,
        ),
    ]
    most = None if targets is None else targets.lost_p95 if both else targets.lost_one_way_p95
    return [*rows, Row(f"{_name(series)}: traffic lost p95", percentile(lost, 95), "%", most)]


def _quiet(spell: SpellResult, targets: Targets | None) -> list[Row]:
    found, fault = spell.result, spell.spell.fault
    beside = " beside hogs" if found.hogs else ""
    under = f" under {fault.name}" if fault else " without fault"
    said = "" if found.suspicions is None else f"{found.suspicions} suspicions; "
    note = f"{said}longest stall of the machine {found.stall_ms:.1f} ms"
    title = f"{found.seconds:.0f} s{under}{beside}"
    rows = [Row(f"{title}: failovers", found.failovers, "", 0 if targets else None, note)]
    if not found.hogs and fault is None:
        rows += [
            Row(f"{title}: PSS of a node", round(found.usage.pss_mb, 1), "MB", PSS_MB if targets else None),
            Row(f"{title}: RSS of a node", round(found.usage.rss_mb, 1), "MB"),
            Row(f"{title}: CPU", round(found.cpu_percent, 2), "%", targets.cpu_percent if targets else None),
        ]
    return rows
