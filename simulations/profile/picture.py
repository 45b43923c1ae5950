"""The picture of an A/B: every trial with and without, and the differences within rounds with their interval.

matplotlib (extra `plot`) is imported when a picture is drawn, and without pyplot, so nothing global changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from mapek.errors import FeatureError, PermanentError
from mapek.simulations.profile.result import Result, Told
from mapek.simulations.profile.subjects import EMPTY, OTHERS, WITH, WITHOUT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS: Final = {WITHOUT: "#777777", EMPTY: "#8d6cab", OTHERS: "#5a9e6f", WITH: "#3b6fb6"}
_WORDS: Final = {WITHOUT: "without", EMPTY: "empty\nprogram", OTHERS: "watches\nothers", WITH: "with"}
_INTERVAL: Final = "#c8102e"


def check(path: Path) -> None:
    """Raises FeatureError without matplotlib, PermanentError where no such file can be written."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise FeatureError("draw", path, "matplotlib is missing", "pip install mapek[plot]") from error
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise PermanentError("draw", path, "no kind of picture has that name", "name it .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise PermanentError("draw", path, "there is no such folder", "make it first")


def draw(results: Sequence[Result], path: Path) -> None:
    """A row for each sensor, a pair of panels for each metric. Raises as `check` does."""
    check(path)
    from matplotlib.figure import Figure

    widest = max(len(result.metrics) for result in results)
    figure = Figure(
        figsize=(5.2 * widest, 3.9 * len(results)), dpi=110, layout="constrained", facecolor="white"
    )
    rows = np.atleast_1d(np.array(figure.subfigures(len(results), 1), dtype=object))
    for row, result in zip(rows, results, strict=True):
        count = len(result.rounds)
        title = f"{result.subject.sensor}: {count} rounds in {result.seconds:.0f} s, seed {result.seed}"
        row.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        panels = row.subplots(1, 2 * widest, width_ratios=(1.35, 1) * widest, squeeze=False)[0]
        for number, metric in enumerate(result.metrics):
            told = [one for one in result.comparisons() if one.metric == metric]
            _trials(panels[2 * number], result, metric)
            _differences(panels[2 * number + 1], result, told)
        for panel in panels[2 * len(result.metrics) :]:
            panel.set_visible(False)
    figure.savefig(path)


def _trials(axes: Axes, result: Result, metric: str) -> None:
    settings = result.subject.settings
    chance = np.random.default_rng(0)
    for place, setting in enumerate(settings):
        values = np.array(result.values(setting, metric))
        spread = chance.uniform(-0.22, 0.22, len(values))
        axes.scatter(place + spread, values, s=11, color=_COLORS[setting], alpha=0.55, lw=0)
        middle = float(np.median(values))
        axes.plot([place - 0.32, place + 0.32], [middle, middle], color="#222222", lw=1.6)
    _within(axes, [result.values(setting, metric) for setting in settings])
    axes.set_xticks(range(len(settings)), [_WORDS[one] for one in settings], fontsize=8)
    axes.set_xlim(-0.55, len(settings) - 0.45)
    axes.set_title(f"{result.metrics[metric].words}, ns", fontsize=9, loc="left")
    _plain(axes)


def _differences(axes: Axes, result: Result, told: Sequence[Told]) -> None:
    chance = np.random.default_rng(0)
    axes.axhline(0, color="#222222", lw=0.8)
    shown = []
    for place, one in enumerate(told):
        values = np.array(result.values(one.b, one.metric)) - np.array(result.values(one.a, one.metric))
        shown.append(values.tolist())
        spread = chance.uniform(-0.2, 0.2, len(values))
        axes.scatter(place + spread, values, s=9, color=_COLORS[one.b], alpha=0.4, lw=0)
        if one.found.interval is not None:
            low, high = one.found.interval
            axes.vlines(place, low, high, color=_INTERVAL, lw=2.4)
            axes.scatter([place], [one.found.median], color=_INTERVAL, s=24, zorder=3)
        verdict = one.found.verdict
        words = {"none": "no difference", "not measured": "not measured"}.get(
            verdict, f"{one.found.median:+.0f}"
        )
        axes.annotate(
            words, (place, 1.0), (0, -2), ("data", "axes fraction"), "offset points", ha="center", va="top",
            fontsize=8, color=_INTERVAL if one.found.difference is not None else "#555555",
        )  # fmt: skip
    _within(axes, shown, room=0.16)
    labels = [f"{one.b}\n− {one.a}" for one in told]
    axes.set_xticks(range(len(told)), labels, fontsize=8)
    axes.set_xlim(-0.6, len(told) - 0.4)
    axes.set_title("difference, 95 % interval", fontsize=9, loc="left")
    _plain(axes)


def _within(axes: Axes, columns: Sequence[Sequence[float]], room: float = 0.05) -> None:
    """The middle of what was seen: a few stalls of the machine would squeeze all the rest into a line."""
    edges = [_fences(one) for one in columns]
    low, high = min(edge for edge, _ in edges), max(edge for _, edge in edges)
    span = (high - low) or 1.0
    axes.set_ylim(low - 0.05 * span, high + room * span)
    hidden = sum(
        int(np.sum((np.array(one) > high + room * span) | (np.array(one) < low - 0.05 * span)))
        for one in columns
    )
    if hidden:
        axes.annotate(
            f"{hidden} beyond", (1.0, 0.0), (-2, 3), "axes fraction", "offset points", ha="right", fontsize=7,
            color="#777777",
        )  # fmt: skip


def _fences(values: Sequence[float]) -> tuple[float, float]:
    """The outermost values within three times the width of the middle half."""
    first, third = np.percentile(values, (25, 75))
    width = 3 * (third - first)
    inside = [value for value in values if first - width <= value <= third + width]
    return min(inside), max(inside)


def _plain(axes: Axes) -> None:
    axes.ticklabel_format(axis="y", style="plain", useOffset=False)
    axes.tick_params(labelsize=8, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
