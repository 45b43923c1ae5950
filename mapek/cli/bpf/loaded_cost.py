"""What the programs that are loaded now cost: which of them are meant, watching them, and what is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from mapek.bpf.run_stats import FEWEST, Runs, Size
from mapek.cli.bpf.subject import is_id
from mapek.errors import ConfigError, ObjectError

if TYPE_CHECKING:
    from mapek.bpf.inventory import Loaded
    from mapek.bpf.stop_watch import StopWatch
    from mapek.cli.printing import Json

DISPATCHER: Final = "dispatcher"


@dataclass(frozen=True, slots=True)
class Cost:
    """One program over `seconds`. `inside` is the id of the dispatcher that runs it, and within whose time it is."""

    program: Loaded
    runs: Runs
    size: Size
    seconds: float
    inside: int | None = None

    @property
    def percent(self) -> float:
        """Of one core."""
        return 100 * self.runs.spent_ns / 1e9 / self.seconds

    def json(self) -> dict[str, Json]:
        """As the command's document has it."""
        one = self.program
        mean = self.runs.mean_ns
        return {
            "id": one.id,
            "name": one.name,
            "type": one.type,
            "object": one.object or None,
            "runs": self.runs.count,
            "runs_per_second": round(self.runs.count / self.seconds, 3),
            "ns_per_run": None if mean is None else round(mean, 2),
            "percent_of_core": round(self.percent, 5),
            "map_bytes": self.size.maps,
            "program_bytes": self.size.program,
            "jited_bytes": self.size.jited or None,
            "instructions": one.instructions,
            "verified_instructions": one.verified or None,
            "inside": self.inside,
        }


def choose(programs: Sequence[Loaded], wanted: Sequence[str], known: Sequence[str]) -> list[Loaded]:
    """Those of `programs` that are meant: ours, or by `wanted` sensors' names and ids, with what dispatches them.

    Args:
        known: names that a sensor can have.

    Raises:
        ConfigError: an unknown name. ObjectError: what is known, but not loaded.
    """
    found: list[Loaded] = []
    for name in wanted:
        if not is_id(name) and name not in known:
            raise ConfigError(
                "profile", name[:40], "no sensor with a program of its own", f"take from {', '.join(known)}"
            )
        these = [one for one in programs if _is(one, name)]
        if not these:
            do = "see mapek bpf list" if is_id(name) else "start an agent with it, or measure it with --ab"
            raise ObjectError("profile", name, "it is not loaded now", do)
        found += these
    if not wanted:
        found = [one for one in programs if one.object]
        if not found:
            do = "start an agent, give the id of another's, or measure a sensor with --ab"
            raise ObjectError("profile", "programs of ours", "none is loaded now", do)
    above = inside(programs)
    meant = {one.id for one in found} | {above[one.id] for one in found if one.id in above}
    return [one for one in programs if one.id in meant]


def _is(one: Loaded, name: str) -> bool:
    if is_id(name):
        return one.id == int(name)
    # A sensor may have an object for each of its variants: net_events, net_events_tp.
    return one.object == name or one.object.startswith(f"{name}_")


def inside(programs: Sequence[Loaded]) -> dict[int, int]:
    """The dispatcher's id for each program that is reached through one: they share its chain, and no link is theirs."""
    heads = {ident: one.id for one in programs if one.object == DISPATCHER for ident in one.map_ids}
    return {
        one.id: heads[shared]
        for one in programs
        if one.object != DISPATCHER and all(at.kind == "chain" for at in one.attached)
        for shared in one.map_ids
        if shared in heads
    }


def document(costs: Sequence[Cost], watch: StopWatch, seconds: float, cut_short: bool) -> dict[str, Json]:
    """As JSON has it (docs/PROFILE.md)."""
    rows: list[Json] = [cost.json() for cost in costs]
    stats: Mapping[str, Json] = asdict(watch)
    return {
        "seconds": round(seconds, 3),
        "interrupted": cut_short,
        "bpf_stats": dict(stats),
        "programs": rows,
    }


def table(costs: Sequence[Cost], watch: StopWatch, seconds: float) -> str:
    """For people, at most a hundred columns."""
    head = ("id", "program", "object", "runs/s", "ns/run", "% core", "maps", "verified", "JITed")
    cells = [head, *map(_cells, costs)]
    cells.append(("", "empty program", "", "", f"{watch.empty_ns:.1f}", "", "", "", ""))
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i in (1, 2) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    lines.append(f"\nby bpf_stats, over {seconds:.1f} s. {_of(watch)}")
    within = sorted({cost.inside for cost in costs if cost.inside is not None})
    if within:
        lines.append(f"inside N: run by dispatcher {', '.join(map(str, within))}, and within its time.")
    if any(cost.runs.mean_ns is None and cost.inside is None for cost in costs):
        lines.append(f"-: not measured, for fewer than {FEWEST} runs tell nothing.")
    return "\n".join(lines)


def _of(watch: StopWatch) -> str:
    of = f"Each ns/run holds what it takes to time the empty program: {watch.empty_ns:.0f} ns."
    if watch.adds_ns is None:
        return f"{of}\nbpf_stats was on before, and stays on."
    longer = f"bpf_stats makes each run of each program {watch.adds_ns:.0f} ns longer"
    return f"{of}\nWhile it is on, {longer}; it is off again."


def _cells(cost: Cost) -> tuple[str, ...]:
    one, mean = cost.program, cost.runs.mean_ns
    if cost.inside is not None and not cost.runs.count:
        rates = (f"inside {cost.inside}", "", "")
    else:
        share = f"{cost.percent:.3g}" if mean is not None else "-"
        rates = (_rate(cost.runs.count / cost.seconds), "-" if mean is None else f"{mean:.1f}", share)
    return (
        str(one.id),
        one.name,
        one.object or "foreign",
        *rates,
        _bytes(cost.size.maps),
        str(one.verified or "-"),
        _bytes(cost.size.jited) if cost.size.jited else "-",
    )


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == 0 else f"{value:.3g}"


def _bytes(value: int) -> str:
    """
    >>> [_bytes(value) for value in (0, 512, 4096, 5 << 20)]
    ['0 B', '512 B', '4 KiB', '5 MiB']
    """
    for unit, size in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value} B"
