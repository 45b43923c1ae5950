"""Section `load`: how long it takes to load and attach the sensors, and an agent to be ready.

In the lab, on a node with two links, for the default set and for all sensors: the agent as a person starts it,
and the same loop built several times in fresh processes, which tells the parts and the longest time that
nothing else could run meanwhile. The first time in a process pays for imports, every later one does not.
"""

from __future__ import annotations

import time
from typing import Final

from mapek.errors import PermanentError
from mapek.simulations.agent import Mapek
from mapek.simulations.bench.child import Record, measured, number
from mapek.simulations.bench.everything import all_sensors
from mapek.simulations.bench.plan import Budget
from mapek.simulations.bench.targets import Row
from mapek.simulations.lab import Lab, Node
from mapek.simulations.stats import percentile
from mapek.simulations.topology import pair

PROCESSES: Final = 5
TIMES: Final = 3
STARTS: Final = 3
LOAD_MS: Final = 150.0
BLOCK_MS: Final = 5.0


async def measure(budget: Budget) -> list[Row]:
    """Medians of the times, maxima of the gaps, for both sets of sensors; the default set's have targets."""
    del budget
    rows: list[Row] = []
    async with Lab(pair(links=2)) as lab:
        everything = await all_sensors(lab)
        for name, extra, note in (
            ("default set", "", ""),
            ("all sensors", everything.tables, everything.note),
        ):
            ready = await _ready(lab, extra)
            parts = [await _parts(next(iter(lab.nodes.values()))) for _ in range(PROCESSES)]
            rows += rows_of(name, ready, parts, note, promised=not extra)
    return rows


async def _ready(lab: Lab, extra: str) -> list[float]:
    """From the start of the agents to "ready", in ms; their configurations and keys stay."""
    found: list[float] = []
    for _ in range(STARTS):
        agents = Mapek("default", extra=extra)
        start = time.monotonic_ns()
        try:
            await agents.open(lab)
            found += [
                (event.time_ns - start) / 1e6
                for event in agents.events(start, time.monotonic_ns())
                if event.kind == "ready"
            ]
        finally:
            await agents.close()
    return found


def rows_of(
    name: str, ready: list[float], parts: list[list[Record]], note: str, *, promised: bool
) -> list[Row]:
    """The rows of a set of sensors: `ready` in ms, and for each process what each of its times took."""
    first, again = [one[0] for one in parts], [part for one in parts for part in one[1:]]
    rows = [_row(f"{name}: agents started until ready, two at once", ready, note=note)]
    for when, found in (("first", first), ("again", again)):
        blocks = max(found, key=lambda part: number(part, "block_ms"))
        said = f"longest callback {number(blocks, 'block_ms'):.1f} ms: {blocks['block']}"
        load, gap, whole = (
            [number(part, word) for part in found] for word in ("sensors_ms", "opening_gap_ms", "gap_ms")
        )
        rows += [
            _row(f"{name}: load and attach, {when}", load, LOAD_MS if promised else None),
            _row(f"{name}: build the loop, {when}", [number(part, "loop_ms") for part in found]),
            _longest(f"{name}: event loop blocked meanwhile, {when}", gap, BLOCK_MS if promised else None),
            _longest(f"{name}: event loop blocked while the loop is built, {when}", whole, note=said),
        ]
    return rows


def _row(what: str, values: list[float], target: float | None = None, note: str = "") -> Row:
    spread = f"{min(values):.0f}-{max(values):.0f}, n = {len(values)}"
    return Row(what, percentile(values, 50), "ms", target, f"{spread}; {note}" if note else spread)


def _longest(what: str, values: list[float], target: float | None = None, note: str = "") -> Row:
    """For a gap that must never be: the worst is told, not the usual."""
    told = f"the longest; median {percentile(values, 50):.1f}, n = {len(values)}"
    return Row(what, max(values), "ms", target, f"{told}; {note}" if note else told)


async def _parts(node: Node) -> list[Record]:
    parts = await measured(
        "startup_child", "/run/mapek.toml", TIMES, what=f"loop on {node.name}", inside=node.namespace
    )
    failed = [str(part["failed"]) for part in parts if part["failed"]]
    if len(parts) < TIMES or failed:
        why = (failed or ["it ended early"])[0]
        raise PermanentError("build", f"loop on {node.name}", why, "run mapek by hand")
    return parts
