"""The bench's files: one per section, the joined report, and the rows of all sections in one place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from mapek.simulations.bench.plan import Section
from mapek.simulations.bench.targets import Row
from mapek.simulations.campaign import CampaignResult
from mapek.simulations.latencies import latencies, samples
from mapek.simulations.report import Json, campaign_entry, raw, write_json


def campaign_file(
    section: Section, result: CampaignResult, rows: Sequence[Row], took_s: float
) -> dict[str, Json]:
    """A campaign's file: its share of the report, the rows, and every trial."""
    return {
        "name": result.name,
        "profile": section.profile,
        "took_s": round(took_s, 1),
        "rows": [row.json() for row in rows],
        "entry": campaign_entry(result),
        "latencies_ms": latencies(result),
        "samples_ms": samples(result),
        "raw": raw(result),
    }


def measured_file(name: str, rows: Sequence[Row], took_s: float) -> dict[str, Json]:
    """The file of a section that is no campaign."""
    return {"name": name, "took_s": round(took_s, 1), "rows": [row.json() for row in rows]}


def joined(folder: Path, names: Iterable[str]) -> dict[str, Json]:
    """One report from the section files in `folder`: sections of one contender become one entry."""
    profiles: dict[str, dict[str, Json]] = {}
    peers: dict[str, dict[str, Json]] = {}
    for name in names:
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        section = json.loads(path.read_text())
        if "entry" not in section:
            continue
        profile, title = section["profile"], str(section["name"])
        if profile is not None:
            entry = profiles.setdefault(str(profile), {"profile": profile, "faults": []})
        else:
            entry = peers.setdefault(title, {"name": title, "faults": []})
        for key, value in section["entry"].items():
            known = entry.get(key)
            entry[key] = [*known, *value] if isinstance(known, list) else value
    return {"profiles": list(profiles.values()), "peers": list(peers.values())}


def summary(folder: Path, names: Iterable[str]) -> dict[str, Json]:
    """The rows of all section files in `folder`, by section, and how many targets were met."""
    rows: dict[str, Json] = {}
    verdicts: dict[str, int] = {"met": 0, "missed": 0, "not measured": 0}
    for name in names:
        path = folder / f"{name}.json"
        if path.exists():
            found = json.loads(path.read_text()).get("rows", [])
            rows[name] = found
            for row in found:
                if row["verdict"]:
                    verdicts[row["verdict"]] += 1
    return {"targets": verdicts, "sections": rows}


def write_joined(folder: Path, names: Sequence[str]) -> None:
    """`report.json` and `summary.json` anew."""
    write_json(folder / "report.json", joined(folder, names))
    write_json(folder / "summary.json", summary(folder, names))
