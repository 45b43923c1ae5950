"""Runs sections one after another; one that fails is told and does not take the others with it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from mapek.errors import ConfigError, MapekError
from mapek.simulations.bench import files
from mapek.simulations.bench.judge import campaign_rows
from mapek.simulations.bench.plan import Budget, Section, measure, sections
from mapek.simulations.bench.plan import names as all_names
from mapek.simulations.bench.targets import Row, rows_table
from mapek.simulations.campaign import CampaignResult, run_campaign
from mapek.simulations.report import table, write_json
from mapek.simulations.told import Teller

_SLOW_MS = 5.0  # outages beyond this are listed one by one beside the stall meter


@dataclass(slots=True)
class Done:
    """What was measured, by section; `failed` holds why others could not be."""

    rows: dict[str, list[Row]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every section that was asked for could be run, whatever it found."""
        return not self.failed


async def run_bench(
    folder: Path = Path("build/bench"),
    names: Sequence[str] = (),
    *,
    trials: int = 30,
    seconds: float = 120.0,
    gray_s: float = 10.0,
    virtual_s: float = 3600.0,
    seed: int = 0,
    out: TextIO | None = None,
) -> Done:
    """Run the named sections (default: all) and write their files; returns their rows.

    Raises ConfigError for an unknown section; what else goes wrong is in `Done.failed`.
    """
    campaigns, known, stream = sections(trials, seconds, gray_s), all_names(), out or sys.stdout
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError("run", "bench", f"no section {', '.join(unknown)}", f"take from {', '.join(known)}")
    budget = Budget(trials, seconds, gray_s, virtual_s, seed, folder)
    teller, done = Teller(out), Done()
    for name in names or known:
        teller.say(f"section {name}")
        start = time.monotonic()
        try:
            if name in campaigns:
                text, rows = await _campaign(name, campaigns[name], budget, teller, start)
            else:
                text, rows = "", await measure(name)(budget)
                took = time.monotonic() - start
                write_json(folder / f"{name}.json", files.measured_file(name, rows, took))
        except (MapekError, OSError) as error:
            # OSError: a program that cannot be started, a socket, or (TimeoutError) one that does not answer.
            done.failed[name] = why = str(error) or type(error).__name__
            teller.say(f"section {name} could not be measured: {why}")
            continue
        done.rows[name] = rows
        files.write_joined(folder, known)
        stream.write(f"\n{text}{rows_table(name, rows)}\n\n")
        stream.flush()
    stream.write(_end(done) + "\n")
    return done


async def _campaign(
    name: str, section: Section, budget: Budget, teller: Teller, start: float
) -> tuple[str, list[Row]]:
    result = await run_campaign(
        section.contender(teller), section.series, section.spells, seed=budget.seed, listener=teller
    )
    rows = campaign_rows(result, section.profile)
    took = time.monotonic() - start
    write_json(budget.folder / f"{name}.json", files.campaign_file(section, result, rows, took))
    late = slow(result)
    return table([result]) + "\n" + (late + "\n" if late else "") + "\n", rows


def _end(done: Done) -> str:
    """Which targets were missed, or could not be measured."""
    lines = []
    rows = [(name, row) for name, found in done.rows.items() for row in found]
    for verdict in ("missed", "not measured"):
        for name, row in rows:
            if row.verdict == verdict:
                unit = f" {row.unit}" if row.unit else ""
                beside = "" if row.measured is None else f" {row.measured:g} > {row.target:g}{unit}"
                lines.append(f"{verdict}: {name}: {row.what}{beside} {row.note}".rstrip())
    lines += [f"failed: {name}: {why}" for name, why in done.failed.items()]
    met = sum(row.verdict == "met" for _, row in rows)
    promised = sum(row.verdict != "" for _, row in rows)
    return "\n".join([*lines, f"{met} of {promised} targets met in {len(done.rows)} sections"])


def slow(result: CampaignResult) -> str:
    """A line for every trial whose outage was over 5 ms, with the machine's own stalls beside it."""
    lines = []
    for series in result.series:
        for trial in series.trials:
            if trial.outage_ms > _SLOW_MS and not series.series.fault.gray:
                window = max(trial.directions, key=lambda one: one.outage_ms)
                lines.append(
                    f"over {_SLOW_MS:g} ms: {trial.fault} #{trial.number + 1}: {trial.outage_ms:.1f} ms "
                    f"({window.direction}); machine stalled {trial.stall_ms:.1f}, sender late "
                    f"{window.sender_late_ms:.1f}, receiver late {window.reader_late_ms:.1f} ms"
                )
    return "\n".join(lines)
