"""The timeline picture: the flow's rate over a campaign, and incidents close up with their stages.

matplotlib (extra `plot`) is imported when a picture is drawn, and without pyplot, so nothing global changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

from mapek.errors import FeatureError
from mapek.simulations.campaign import ArrivalTrace, CampaignResult
from mapek.simulations.trial import TrialResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

_WIRES: Final = ("#3b6fb6", "#e08a3c", "#5a9e6f", "#8d6cab", "#b05a5a", "#777777")
_MARKS: Final[dict[str, tuple[str, Literal["-", "--", "-.", ":"]]]] = {
    "fault": ("#c8102e", "-"),
    "suspicion": ("#d4a000", ":"),
    "verdict": ("#7b3fa0", "--"),
    "action": ("#0b3c7d", "-."),
    "recovered": ("#1b8a3a", "-"),
}
_CLOSE_UPS: Final = 4  # a row of them for each campaign


def draw(results: Sequence[CampaignResult], path: Path, *, title: str = "") -> None:
    """Draw all campaigns into `path` (.png or .svg); raises FeatureError without matplotlib."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch
    except ImportError as error:
        raise FeatureError("draw", path, "matplotlib is missing", "pip install mapek[plot]") from error
    shown = [result for result in results if result.traces]
    if not shown:
        raise FeatureError("draw", path, "there is nothing to draw", "run at least one series")
    height = 0.9 + 5.6 * len(shown)
    # The legend's strip at the bottom is kept free of panels.
    layout = ConstrainedLayoutEngine(rect=(0, 0.45 / height, 1, 1 - 0.75 / height))
    figure = Figure(figsize=(15.0, height), dpi=110, layout=layout, facecolor="white")
    figure.suptitle(
        title or "The measured flow: faults injected, and the loop healing each", fontsize=13, y=0.995
    )
    rows = np.atleast_1d(np.array(figure.subfigures(len(shown), 1), dtype=object))
    for row, result in zip(rows, shown, strict=True):
        _campaign(row, result)
    names = sorted(
        {name for result in shown for trace in result.traces for name in trace.interfaces.values()}
    )
    handles: list[Patch | Line2D] = [
        Patch(color=_color(name), alpha=0.8, label=f"by {name}") for name in names
    ]
    handles += [Line2D([], [], color=c, linestyle=s, lw=1.8, label=mark) for mark, (c, s) in _MARKS.items()]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _campaign(row: SubFigure, result: CampaignResult) -> None:
    trials = [trial for series in result.series for trial in series.trials]
    row.suptitle(result.name, x=0.008, ha="left", fontsize=11, fontweight="bold")
    close = _chosen(result)
    grid = row.add_gridspec(2, max(1, len(close)), height_ratios=(1.0, 1.7))
    _overview(row.add_subplot(grid[0, :]), result, trials)
    for column, trial in enumerate(close):
        _close_up(row.add_subplot(grid[1, column]), result, trial)


def _chosen(result: CampaignResult) -> list[TrialResult]:
    """The trial with the median outage of each series: silent faults, gray ones, then IPv6."""
    found = []
    for series in sorted(result.series, key=lambda one: (one.series.family, one.series.fault.gray)):
        ordered = sorted(series.trials, key=lambda trial: trial.outage_ms)
        if ordered:
            found.append(ordered[len(ordered) // 2])
    return found[:_CLOSE_UPS]


def _overview(axes: Axes, result: CampaignResult, trials: Sequence[TrialResult]) -> None:
    start = min(int(trace.arrived_ns[0]) for trace in result.traces if len(trace.arrived_ns))
    end = max(int(trace.arrived_ns[-1]) for trace in result.traces if len(trace.arrived_ns))
    # Wide enough bins that a healthy flow looks flat, narrow enough that an outage of some ms still bites.
    bins = np.arange(start, end + 10_000_000, 10_000_000)
    seconds = (bins[:-1] - start) / 1e9
    low = np.zeros(len(bins) - 1)
    for name in _wires(result.traces):
        rate = (
            sum((np.histogram(_by(trace, name), bins)[0] for trace in result.traces), np.zeros(len(low))) / 10
        )
        axes.fill_between(seconds, low, low + rate, step="post", color=_color(name), alpha=0.8, lw=0)
        low = low + rate
    for trial in trials:
        left, right = (trial.started_ns - start) / 1e9, (trial.ended_ns - start) / 1e9
        axes.axvspan(left, right, ymin=0.0, ymax=0.86, color=_MARKS["fault"][0], alpha=0.16, lw=0)
        axes.axvline(left, ymax=0.86, color=_MARKS["fault"][0], lw=0.9)
    for series in result.series:
        if series.trials:
            first = (series.trials[0].started_ns - start) / 1e9
            version = " IPv6" if series.series.family == 6 else ""
            text = f"{series.series.fault.name}{version} ×{len(series.trials)}"
            axes.annotate(
                text, (first, 1.0), (0, -3), ("data", "axes fraction"), "offset points", va="top", fontsize=8
            )
    axes.set_xlim(0, (end - start) / 1e9)
    axes.set_ylim(0, 2.75)
    axes.set_yticks((0, 1, 2))
    axes.set_ylabel("arrivals per ms,\nboth ways", fontsize=8)
    axes.set_xlabel("seconds", fontsize=8, labelpad=1)
    _plain(axes)


def _close_up(axes: Axes, result: CampaignResult, trial: TrialResult) -> None:
    zero = trial.started_ns
    gray = trial.rescued and (trial.ended_ns - trial.started_ns) > 1_500_000_000
    last = max(trial.directions, key=lambda window: window.outage_ms).gap_ns[1]
    marks = _marks(trial)
    ends = [] if gray and marks else [last]
    ends += [time for _, _, time in marks]
    right = max(6.0, min(150.0, (max(ends) - zero) / 1e6 * 1.25 + 2))
    if gray and not marks:
        right = 100.0
    left = -0.25 * right
    span = (zero + int(left * 1e6), zero + int(right * 1e6))
    traces = [trace for trace in result.traces if trace.family == trial.family]
    for level, trace in enumerate(reversed(traces)):
        for name in _wires(traces):
            times = _by(trace, name)
            times = times[(times >= span[0]) & (times <= span[1])]
            x = (times.astype(np.int64) - zero) / 1e6
            axes.vlines(x, level + 0.12, level + 0.88, color=_color(name), lw=1.1, alpha=0.9)
    for window in trial.directions:
        place = next(i for i, trace in enumerate(reversed(traces)) if trace.direction == window.direction)
        # A gap of a few periods is the fault's; shorter ones are what any flow has.
        if not gray and window.outage_ms > 2.0:
            x0, x1 = ((edge - zero) / 1e6 for edge in window.gap_ns)
            span_x, y = [x0, x1], place + 0.5
            axes.plot(span_x, [y, y], color="#444", lw=1.0, marker="|", markersize=6)
            label, box = f"{x1 - x0:.1f} ms", {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            axes.text(
                (x0 + x1) / 2, y + 0.06, label, ha="center", fontsize=8, color="#222", clip_on=True, bbox=box
            )
    axes.axvline(0, color=_MARKS["fault"][0], lw=1.8)
    for node, mark, time in marks:
        color, style = _MARKS[mark]
        # The node that speaks is the one that sends: its marks lie over the direction that it steers.
        place = next((i for i, trace in enumerate(reversed(traces)) if trace.direction.startswith(node)), 0)
        axes.plot(
            [(time - zero) / 1e6] * 2, [place + 0.02, place + 0.98], color=color, linestyle=style, lw=1.8
        )
    axes.set_xlim(left, right)
    axes.set_ylim(0, len(traces))
    axes.set_yticks(
        [i + 0.5 for i in range(len(traces))], [t.direction.replace(">", "→") for t in reversed(traces)]
    )
    axes.set_xlabel("ms after the fault; each stroke is one arrival", fontsize=8, labelpad=1)
    lost = f", {trial.lost_percent:.2f} % lost" if gray else ""
    axes.set_title(
        f"{trial.fault} on {trial.wire}: {trial.outage_ms:.1f} ms gap{lost}", fontsize=9, loc="left"
    )
    _plain(axes)


def _marks(trial: TrialResult) -> list[tuple[str, str, int]]:
    """Node, mark and time of the first of each kind that the agents said about the trial."""
    found: dict[tuple[str, str], int] = {}
    for event in trial.events:
        times: dict[str, int | None] = {}
        if event.kind == "suspicion":
            times["suspicion"] = event.time_ns
        elif event.kind == "incident" and event.fields.get("state") == "recovered":
            for mark, name in (
                ("verdict", "detected_ns"),
                ("action", "acted_ns"),
                ("recovered", "recovered_ns"),
            ):
                times[mark] = event.number(name)
        for mark, time in times.items():
            if time is not None and trial.started_ns <= time <= trial.ended_ns:
                found.setdefault((event.node, mark), time)
    return [(node, mark, time) for (node, mark), time in found.items()]


def _wires(traces: Sequence[ArrivalTrace]) -> list[str]:
    return sorted({name for trace in traces for name in trace.interfaces.values()})


def _by(trace: ArrivalTrace, wire: str) -> NDArray[np.uint64]:
    indices = [index for index, name in trace.interfaces.items() if name == wire]
    return trace.arrived_ns[np.isin(trace.ifindex, indices)]


def _color(wire: str) -> str:
    number = int(wire[1:]) if wire[1:].isdigit() else 0
    return _WIRES[number % len(_WIRES)]


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=8, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
