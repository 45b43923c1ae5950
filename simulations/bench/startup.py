"""Section `load`: how long it takes to load and attach the default set, and an agent to be ready.

In the lab, on a node with two links: the agent as a person starts it, and the same loop built several times
in one process, which tells the parts and the longest time that nothing else could run meanwhile.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Final

from mapek.errors import PermanentError
from mapek.simulations.agent import Mapek
from mapek.simulations.bench.plan import Budget
from mapek.simulations.bench.targets import Row
from mapek.simulations.lab import Lab, Node
from mapek.simulations.process import end
from mapek.simulations.stats import percentile
from mapek.simulations.topology import pair

TIMES: Final = 7
STARTS: Final = 3


async def measure(budget: Budget) -> list[Row]:
    """Medians and maxima; nothing of it was promised."""
    del budget
    ready: list[float] = []
    async with Lab(pair(links=2)) as lab:
        for _ in range(STARTS):
            agents = Mapek("default")
            start = time.monotonic_ns()
            try:
                await agents.open(lab)
                ready += [
                    (event.time_ns - start) / 1e6
                    for event in agents.events(start, time.monotonic_ns())
                    if event.kind == "ready"
                ]
            finally:
                await agents.close()
        # The configuration and the keys of the last agent are still there.
        parts = await _parts(next(iter(lab.nodes.values())))
    first, again = parts[0], parts[1:]
    block = max(parts, key=lambda part: float(str(part["block_ms"])))
    return [
        _row("agents started until ready, two at once", ready),
        _row("load and attach the default set, first", [_number(first, "sensors_ms")]),
        _row("load and attach the default set, again", [_number(part, "sensors_ms") for part in again]),
        _row("build the loop, first", [_number(first, "loop_ms")]),
        _row("build the loop, again", [_number(part, "loop_ms") for part in again]),
        Row("longest block of the event loop, first", _number(first, "block_ms"), "ms"),
        Row(
            "longest block of the event loop, all",
            _number(block, "block_ms"),
            "ms",
            None,
            str(block["block"]),
        ),
    ]


def _number(part: dict[str, object], name: str) -> float:
    value = part[name]
    assert isinstance(value, float)
    return round(value, 2)


def _row(what: str, values: list[float]) -> Row:
    note = f"max {max(values):.0f}, n = {len(values)}" if len(values) > 1 else ""
    return Row(what, percentile(values, 50), "ms", None, note)


async def _parts(node: Node) -> list[dict[str, object]]:
    command = [sys.executable, "-m", "mapek.simulations.bench.startup_child", "/run/mapek.toml", str(TIMES)]
    process = await node.namespace.start(command)
    try:
        output, said = await process.communicate()
    finally:
        await end(process)
    parts: list[dict[str, object]] = [json.loads(line) for line in output.splitlines()]
    last = said.decode(errors="replace").strip().splitlines()[-1:] or ["it ended without a word"]
    failed = [str(part["failed"]) for part in parts if part["failed"]]
    if len(parts) < TIMES or failed:
        raise PermanentError("build", f"loop on {node.name}", (failed or last)[0], "run mapek by hand")
    return parts
