"""The bench: the full counts behind the claims, section by section, each of which can be run alone.

A section writes `build/bench/NAME.json` as soon as it is done, and `build/bench/report.json` joins what is
there, so a bench that is cut short has still measured what it says. All sections together take less than an
hour.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from mapek.errors import ConfigError
from mapek.simulations.agent import Mapek, Profile
from mapek.simulations.bird import Bird, BirdTimers
from mapek.simulations.campaign import CampaignResult, Series, Spell, run_campaign
from mapek.simulations.contender import Contender
from mapek.simulations.faults import DROP_AB, DROP_BA, DROP_BOTH, gray
from mapek.simulations.latencies import latencies
from mapek.simulations.report import Json, campaign_entry, raw, table, write_json
from mapek.simulations.told import Teller

_SLOW_MS = 5.0  # outages beyond this are listed one by one beside the stall meter


@dataclass(frozen=True)
class Section:
    """One contender's share of the bench: `profile` for ours, `bird` for the peer."""

    series: tuple[Series, ...]
    spells: tuple[Spell, ...] = ()
    profile: Profile | None = None
    bird: BirdTimers | None = None

    def contender(self, teller: Teller) -> Contender:
        """A fresh one."""
        return Mapek(self.profile, listener=teller.event) if self.profile else Bird(self.bird, families=(4,))


def _silence(trials: int, ipv6: int) -> tuple[Series, ...]:
    faults = (DROP_BOTH, DROP_AB, DROP_BA)
    return (
        *(Series(fault, trials) for fault in faults),
        *(Series(fault, ipv6, family=6) for fault in faults),
    )


def _gray(both: int, one_way: int, hold_s: float) -> tuple[Series, ...]:
    percents = (30, 10, 5)
    return (
        *(Series(gray(percent, hold_s=hold_s), both) for percent in percents),
        *(Series(gray(percent, "ab", hold_s), one_way) for percent in percents if one_way),
    )


def sections(trials: int = 30, seconds: float = 120.0, gray_s: float = 10.0) -> dict[str, Section]:
    """All sections by name.

    `trials` of each silent fault, `seconds` of each spell without one, `gray_s` seconds of each gray one.
    """
    quiet = (Spell(seconds), Spell(seconds, hogs=True), Spell(seconds / 2, fault=gray(0.1)))
    few, some = max(1, trials // 6), max(1, trials // 4)
    found: dict[str, Section] = {}
    profiles: tuple[Profile, ...] = ("fast", "default")
    for profile in profiles:
        found[f"silence-{profile}"] = Section(_silence(trials, few), profile=profile)
        found[f"quiet-{profile}"] = Section((), quiet, profile=profile)
        found[f"hogs-{profile}"] = Section((Series(DROP_BOTH, trials, hogs=True),), profile=profile)
        found[f"gray-{profile}"] = Section(_gray(some, few, gray_s), profile=profile)
    for name, timers in (("1ms", BirdTimers(1, 3)), ("10ms", BirdTimers(10, 3)), ("default", None)):
        found[f"bird-{name}"] = Section(
            (
                Series(DROP_BOTH, trials),
                Series(DROP_AB, max(1, trials // 3)),
                *_gray(max(1, trials // 10), 0, gray_s),
            ),
            quiet[:2] if name == "1ms" else (Spell(seconds / 2),),
            bird=timers,
        )
    return found


async def run_bench(
    folder: Path = Path("build/bench"),
    names: Sequence[str] = (),
    *,
    trials: int = 30,
    seconds: float = 120.0,
    gray_s: float = 10.0,
    seed: int = 0,
    out: TextIO | None = None,
) -> dict[str, CampaignResult]:
    """Run the named sections (default: all) and write their files; returns the results by section.

    Raises ConfigError for an unknown section.
    """
    known, stream = sections(trials, seconds, gray_s), out or sys.stdout
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError("run", "bench", f"no section {', '.join(unknown)}", f"take from {', '.join(known)}")
    teller, done = Teller(out), {}
    for name in names or known:
        section, start = known[name], time.monotonic()
        result = await run_campaign(
            section.contender(teller), section.series, section.spells, seed=seed, listener=teller
        )
        done[name] = result
        write_json(folder / f"{name}.json", _section_file(section, result, time.monotonic() - start))
        write_json(folder / "report.json", joined(folder, known))
        stream.write("\n" + table([result]) + "\n" + slow(result) + "\n")
        stream.flush()
    return done


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


def _section_file(section: Section, result: CampaignResult, took_s: float) -> dict[str, Json]:
    return {
        "name": result.name,
        "profile": section.profile,
        "took_s": round(took_s, 1),
        "entry": campaign_entry(result),
        "latencies_ms": latencies(result),
        "raw": raw(result),
    }


def joined(folder: Path, names: Sequence[str] | Mapping[str, Section]) -> dict[str, Json]:
    """One report from the section files in `folder`: sections of one contender become one entry."""
    profiles: dict[str, dict[str, Json]] = {}
    peers: dict[str, dict[str, Json]] = {}
    for name in names:
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        section = json.loads(path.read_text())
        profile, title = section["profile"], str(section["name"])
        if profile is not None:
            entry = profiles.setdefault(str(profile), {"profile": profile, "faults": []})
        else:
            entry = peers.setdefault(title, {"name": title, "faults": []})
        for key, value in section["entry"].items():
            known = entry.get(key)
            entry[key] = [*known, *value] if isinstance(known, list) else value
    return {"profiles": list(profiles.values()), "peers": list(peers.values())}
