"""In a node of the lab: open the sensors of a configuration and time their reads, one sensor after another.

`python -m mapek.simulations.bench.reads_child FILE SECONDS PAUSE`, one JSON line: for each sensor the ns of its
reads that gave something, and which sensors did not open. A sensor that asks the kernel in the background has nothing
to give until the next answer is there, and such a read takes next to no time: it is left out. The loop around them
runs, so that their maps hold what they hold in life. PAUSE: the seconds in which it sleeps before each turn.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Final

from mapek.assembly import build
from mapek.config import load_config
from mapek.contracts import Touchpoint

WARM_UP: Final = 20
"""Turns that are not told."""


async def main(file: str, seconds: float, pause_s: float) -> None:
    """Open, time for so long, say."""
    async with build(load_config(file)) as loop:
        failed = {name: str(error) for name, error in loop.failed_at_start.items()}
        touchpoints = {
            name: one.touchpoint
            for name, one in loop.monitor.watched.items()
            if one.open and one.touchpoint.period_ns
        }
        alone = await timed(touchpoints, seconds, pause_s)
    sys.stdout.write(json.dumps({"failed": failed, "alone_ns": alone}) + "\n")


async def timed(touchpoints: dict[str, Touchpoint], seconds: float, pause_s: float) -> dict[str, list[int]]:
    """ns of the reads that gave a Frame, by name; the first turns warm everything up."""
    alone: dict[str, list[int]] = {name: [] for name in touchpoints}
    end, turn = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        # The loop's own work, outside of what is timed.
        await asyncio.sleep(pause_s)
        for name, one in touchpoints.items():
            start = time.perf_counter_ns()
            frame = one.read()
            took = time.perf_counter_ns() - start
            if frame is not None and turn >= WARM_UP:
                alone[name].append(took)
        turn += 1
    return alone


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
