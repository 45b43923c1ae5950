"""The table of one A/B, at most a hundred columns; what is noise has no number."""

from __future__ import annotations

from typing import Final

from mapek.simulations.profile.result import Result, Told
from mapek.simulations.profile.subjects import EMPTY, OTHERS, WITH, WITHOUT

_VERDICTS: Final = {"none": "no difference", "not measured": "not measured"}
_BESIDE: Final = {
    (WITHOUT, WITH): "",
    (EMPTY, WITH): ": beside an empty program",
    (WITHOUT, OTHERS): " of another process",
}


def text(result: Result, empty_ns: float | None = None) -> str:
    """The whole table; `empty_ns` is what bpf_stats says of the empty program."""
    told = result.comparisons()
    cells = [("", "without", "with", "difference", "95 % interval"), *(_cells(result, one) for one in told)]
    widths = [max(len(line[i]) for line in cells) for i in range(5)]
    lines = [_title(result)]
    lines += [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
        if told
    ]
    lines += _programs(result, empty_ns)
    if any(one.found.verdict == "not measured" for one in told):
        lines.append(
            "not measured: too few rounds, or an interval with 0 in it, too wide to decide; take more --seconds."
        )
    if not told:
        lines.append("not one round was done.")
    return "\n".join(lines)


def _title(result: Result) -> str:
    options = ", ".join(f"{name} = {value}" for name, value in result.subject.options.items())
    with_ = f" ({options})" if options else ""
    cut = "" if result.complete else ", cut short"
    count = len(result.rounds)
    return (
        f"{result.subject.sensor}{with_}: {count} rounds in {result.seconds:.0f} s{cut}, seed {result.seed}"
    )


def _cells(result: Result, told: Told) -> tuple[str, ...]:
    found, words = told.found, result.metrics[told.metric].words + _BESIDE[told.a, told.b]
    said = _VERDICTS.get(found.verdict, "") if found.difference is None else f"{found.difference:+.0f} ns"
    interval = "too few rounds"
    if found.interval is not None:
        interval = " to ".join(f"{edge:+.0f}" for edge in found.interval)
    return f"  {words}", f"{found.a:.0f} ns", f"{found.b:.0f} ns", said, interval


def _programs(result: Result, empty_ns: float | None) -> list[str]:
    unit = "packet" if result.subject.load == "flow" else "call"
    lines = []
    for one in result.shares:
        mean = one.runs.mean_ns
        told = f"{one.runs.count} runs" if mean is None else f"{mean:.0f} ns a run"
        lines.append(f"  program {one.program}: {one.each:.2f} runs a {unit}, {told} by bpf_stats")
    if lines and empty_ns is not None:
        lines.append(f"  the empty program: {empty_ns:.0f} ns a run by bpf_stats, which times itself too")
    return lines
