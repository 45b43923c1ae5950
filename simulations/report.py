"""`report.json`: one form for demo and bench, from the raw results; and the table that people read.

Percentiles are over trials; an unrecovered trial counts with the outage that it had when the patience
ended, so it makes the numbers worse and never better.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from mapek.simulations.campaign import CampaignResult, SeriesResult, SpellResult
from mapek.simulations.stats import percentile, spread
from mapek.simulations.trial import TrialResult

Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | int | float | bool | None"


def fault_entry(result: SeriesResult) -> dict[str, Json]:
    """One series as the report has it."""
    trials, series = result.trials, result.series
    name = series.fault.name + ("_ipv6" if series.family == 6 else "") + ("_hogs" if series.hogs else "")
    stages = [stage for trial in trials for stage in trial.stages]
    entry: dict[str, Json] = {
        "name": name,
        "trials": len(trials) + len(result.failed),
        "recovered": sum(trial.rescued for trial in trials),
        "outage_ms": spread([trial.outage_ms for trial in trials]),
        "stages_ms": {
            part: percentile((getattr(stage, part) for stage in stages), 50)
            for part in ("detect", "plan", "act", "verify")
        },
    }
    if series.fault.gray:
        entry["path_changes"] = sum(trial.changes for trial in trials)
        entry["traffic_lost_percent"] = dict(spread([trial.lost_percent for trial in trials], (50, 95)))
    return entry


def quiet_entry(result: SpellResult) -> dict[str, Json]:
    """One spell as the report has it."""
    found = result.result
    return {
        "seconds": round(found.seconds, 1),
        "hogs": found.hogs,
        "suspicions": found.suspicions,
        "failovers": found.failovers,
    }


def campaign_entry(result: CampaignResult) -> dict[str, Json]:
    """One contender without its name: "faults", "quiet", "agent" as far as they were measured.

    Beside hogs, or under a fault too mild to matter, spells are listed in "spells": "quiet" is the one
    without.
    """
    entry: dict[str, Json] = {"faults": [fault_entry(series) for series in result.series]}
    plain = [spell for spell in result.spells if not spell.spell.hogs and spell.spell.fault is None]
    if plain:
        found = plain[0].result
        entry["quiet"] = quiet_entry(plain[0])
        entry["agent"] = {
            "pss_mb": round(found.usage.pss_mb, 1),
            "rss_mb": round(found.usage.rss_mb, 1),
            "cpu_percent": round(found.cpu_percent, 2),
        }
    others = [spell for spell in result.spells if spell not in plain[:1]]
    if others:
        entry["spells"] = [
            quiet_entry(spell) | {"fault": spell.spell.fault.name if spell.spell.fault else None}
            for spell in others
        ]
    return entry


def report(profiles: Mapping[str, CampaignResult], peers: Iterable[CampaignResult] = ()) -> dict[str, Json]:
    """The whole report; `profiles` by profile name."""
    return {
        "profiles": [{"profile": name} | campaign_entry(result) for name, result in profiles.items()],
        "peers": [{"name": result.name} | campaign_entry(result) for result in peers],
    }


def raw_trial(trial: TrialResult) -> dict[str, Json]:
    """One trial with everything that its judgement rests on."""
    return {
        "fault": trial.fault,
        "number": trial.number,
        "family": trial.family,
        "wire": trial.wire,
        "started_ns": trial.started_ns,
        "ended_ns": trial.ended_ns,
        "rescued": trial.rescued,
        "outage_ms": round(trial.outage_ms, 3),
        "lost_percent": round(trial.lost_percent, 4),
        "changes": trial.changes,
        "stall_ms": round(trial.stall_ms, 3),
        "directions": [
            {
                "direction": window.direction,
                "outage_ms": round(window.outage_ms, 3),
                "gap_ns": list(window.gap_ns),
                "sent": window.sent,
                "lost": window.lost,
                "changes": window.changes,
                "sender_late_ms": round(window.sender_late_ms, 3),
                "reader_late_ms": round(window.reader_late_ms, 3),
            }
            for window in trial.directions
        ],
        "stages": [
            {"node": s.node, "detect": s.detect, "plan": s.plan, "act": s.act, "verify": s.verify}
            for s in trial.stages
        ],
    }


def raw(result: CampaignResult) -> dict[str, Json]:
    """Every trial of a campaign, and why others could not be judged."""
    return {
        "name": result.name,
        "trials": [raw_trial(trial) for series in result.series for trial in series.trials],
        "failed": [why for series in result.series for why in series.failed],
    }


def write_json(path: Path, value: Json) -> None:
    """Write atomically: a reader never sees half a report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(value, indent=2) + "\n")
    scratch.replace(path)


def table(results: Iterable[CampaignResult]) -> str:
    """What people read at the end: a line for each fault and each spell of each contender."""
    rows = [
        ("", "fault", "healed", "outage p50 / p95 / max ms", "detect+plan+act+verify ms", "lost %", "moves")
    ]
    for result in results:
        name = result.name
        for series in result.series:
            entry = fault_entry(series)
            outage = spread([trial.outage_ms for trial in series.trials])
            stages = [stage for trial in series.trials for stage in trial.stages]
            parts = [
                percentile((getattr(s, part) for s in stages), 50)
                for part in ("detect", "plan", "act", "verify")
            ]
            lost = percentile((trial.lost_percent for trial in series.trials), 50)
            rows.append(
                (
                    name,
                    str(entry["name"]),
                    f"{entry['recovered']}/{entry['trials']}",
                    " / ".join(_short(outage[key]) for key in ("p50", "p95", "max")),
                    " + ".join(map(_short, parts)) if stages else "",
                    "" if not series.series.fault.gray or lost is None else f"{lost:.3f}",
                    str(sum(trial.changes for trial in series.trials)),
                )
            )
            name = ""
        for spell in result.spells:
            found = spell.result
            beside = " beside hogs" if found.hogs else ""
            under = f" with {spell.spell.fault.name}" if spell.spell.fault else ""
            told = "" if found.suspicions is None else f"{found.suspicions} suspicions, "
            rows.append(
                (name, f"no fault{under}{beside}", f"{found.seconds:.0f} s", "", "", "", str(found.failovers))
            )
            cost = f"{told}{found.cpu_percent:.1f} % CPU, {found.usage.pss_mb:.0f} MB PSS"
            rows.append(("", f"  {cost}", "", "", "", "", ""))
            name = ""
    # The costs of a spell are a remark and may run across the columns.
    widths = [max(len(row[i]) for row in rows if not row[1].startswith("  ")) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
