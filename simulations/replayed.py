"""What a replayed recording shows of healing: its incidents in report.json's form, as a table, as a picture.

A recording holds what one node's loop saw, not the flow. So there is no outage here, only MTTR by the loop's
own evidence; what was not measured is null in the report and missing in the table, never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mapek.errors import FeatureError
from mapek.model import Incident
from mapek.simulations.replay import ReplayReport
from mapek.simulations.report import Json
from mapek.simulations.stats import percentile, spread
from mapek.tally import stages

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STAGES: Final = ("detect", "plan", "act", "verify")
_COLORS: Final = {"detect": "#d4a000", "plan": "#7b3fa0", "act": "#0b3c7d", "verify": "#1b8a3a"}
_ILL, _DOUBT, _FINE = "#c8102e", "#d4a000", "#1b8a3a"


@dataclass(frozen=True)
class Replayed:
    """One recording replayed.

    Args:
        name: the file's.
        profile: of the agent that recorded it.
        begin_ns: when it begins.
        suspicions: when each suspicion was raised.
    """

    name: str
    profile: str
    begin_ns: int
    report: ReplayReport
    suspicions: tuple[int, ...]

    @property
    def groups(self) -> dict[str, list[Incident]]:
        """Incidents by kind, in order; what passed without an action is no success and a kind of its own."""
        found: dict[str, list[Incident]] = {}
        for one in self.report.incidents:
            passed = one.state == "recovered" and not one.acted_ns
            found.setdefault(f"{one.kind}_passed" if passed else one.kind, []).append(one)
        return found


def mttr_ms(incident: Incident) -> float | None:
    """Onset to recovery; None unless recovered."""
    if incident.state != "recovered":
        return None
    return (incident.recovered_ns - incident.onset_ns) / 1e6


def stages_ms(incident: Incident) -> dict[str, float]:
    """The stages that came, by name."""
    return {name: seconds * 1e3 for name, seconds in stages(incident).items()}


def document(all_of: Sequence[Replayed]) -> dict[str, Json]:
    """report.json of replays: "faults" by kind of incident, with "mttr_ms" and "outage_ms" of nulls."""
    return {"profiles": [_profile(one) for one in all_of], "peers": []}


def _profile(one: Replayed) -> dict[str, Json]:
    report = one.report
    return {
        "profile": one.profile,
        "recording": one.name,
        "node": report.about.topology.node,
        "seconds": round(report.seconds, 3),
        "decisions": {"recorded": report.recorded, "replayed": report.replayed, "alike": report.alike},
        "questions": {"asked": report.asked, "unknown": report.unknown},
        "suspicions": len(one.suspicions),
        "faults": [_fault(name, incidents) for name, incidents in one.groups.items()],
    }


def _fault(name: str, incidents: Sequence[Incident]) -> dict[str, Json]:
    times = [time for one in incidents if (time := mttr_ms(one)) is not None]
    parts = [stages_ms(one) for one in incidents if one.state == "recovered"]
    return {
        "name": name,
        "trials": len(incidents),
        "recovered": len(times),
        "outage_ms": spread([]),
        "mttr_ms": spread(times),
        "stages_ms": {
            stage: percentile((part[stage] for part in parts if stage in part), 50) for stage in STAGES
        },
    }


def table(all_of: Sequence[Replayed]) -> str:
    """A line for each kind of incident of each recording."""
    rows = [("", "kind", "recovered", "MTTR p50 / max ms", "detect+plan+act+verify ms")]
    for one in all_of:
        name = f"{one.name} ({one.profile})"
        for kind, incidents in one.groups.items():
            times = spread([time for each in incidents if (time := mttr_ms(each)) is not None], (50,))
            parts = [stages_ms(each) for each in incidents if each.state == "recovered"]
            medians = [percentile((part[stage] for part in parts if stage in part), 50) for stage in STAGES]
            healed = sum(each.state == "recovered" for each in incidents)
            mttr = f"{_short(times['p50'])} / {_short(times['max'])}"
            rows.append((name, kind, f"{healed}/{len(incidents)}", mttr, " + ".join(map(_short, medians))))
            name = ""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def draw(all_of: Sequence[Replayed], path: Path) -> None:
    """Draw when each incident was and what its stages took into `path`; FeatureError without matplotlib."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise FeatureError("draw", path, "matplotlib is missing", "pip install mapek[plot]") from error
    bars = [max(1, len(one.report.incidents)) for one in all_of]
    ratios = [ratio for count in bars for ratio in (1.6, 0.5 * count + 0.6)]
    figure = Figure(figsize=(12.0, sum(ratios) + 1.6), dpi=110, layout="constrained", facecolor="white")
    figure.suptitle("Replayed recordings: what one node saw, and how long each stage of healing took")
    grid = figure.add_gridspec(len(ratios), 1, height_ratios=ratios)
    for place, one in enumerate(all_of):
        _timeline(figure.add_subplot(grid[2 * place, 0]), one)
        _bars(figure.add_subplot(grid[2 * place + 1, 0]), one)
    handles = [Patch(color=color, label=name) for name, color in _COLORS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _timeline(axes: Axes, one: Replayed) -> None:
    doubts = [(time - one.begin_ns) / 1e9 for time in one.suspicions]
    axes.vlines(doubts, 0.0, 0.3, color=_DOUBT, lw=0.8)
    for incident in one.report.incidents:
        begin = (incident.onset_ns - one.begin_ns) / 1e9
        end = (incident.recovered_ns - one.begin_ns) / 1e9 if incident.recovered_ns else one.report.seconds
        axes.axvspan(begin, end, color=_ILL, alpha=0.3, lw=0)
        axes.axvline(begin, color=_ILL, lw=1.2)
        axes.axvline(end, color=_FINE if incident.recovered_ns else _ILL, lw=1.2)
        axes.annotate(f" {incident.id}", (begin, 0.98), va="top", ha="right", fontsize=8)
    axes.set_xlim(0, max(one.report.seconds, 0.001))
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.set_xlabel("seconds; red: onset, green: recovered, below: suspicions", fontsize=8)
    title = f"{one.name}: node {one.report.about.topology.node}, {one.profile} profile"
    axes.set_title(title, fontsize=10, loc="left", fontweight="bold")
    _plain(axes)


def _bars(axes: Axes, one: Replayed) -> None:
    incidents = one.report.incidents
    for place, incident in enumerate(incidents):
        left = 0.0
        for name, length in stages_ms(incident).items():
            axes.barh(place, length, left=left, color=_COLORS.get(name, "#777777"), height=0.6)
            left += length
        took = mttr_ms(incident)
        word = "not recovered" if took is None else f"{took:.2f} ms"
        if took is not None and not incident.acted_ns:
            word = f"passed without an action after {took:.0f} ms"
        axes.annotate(f" {word}", (left, place), va="center", fontsize=8)
    axes.set_yticks(
        range(len(incidents)), [f"{one.id}: {one.entity.name} {one.kind}" for one in incidents], fontsize=8
    )
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("ms after the onset", fontsize=8)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=8, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
