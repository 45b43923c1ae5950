"""In a node of the lab: open the sensors of a configuration and time their reads, all of them in a row.

`python -m mapek.simulations.bench.reads_child FILE TIMES`, one JSON line: nanoseconds of each round over all
sensors, and of each sensor alone. The loop around them runs, so that their maps hold what they hold in life.
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
PAUSE_S: Final = 0.005


async def main(file: str, times: int) -> None:
    """Open, warm up, time, say."""
    async with build(load_config(file)) as loop:
        failed = {name: str(error) for name, error in loop.failed_at_start.items()}
        touchpoints = {
            name: one.touchpoint
            for name, one in loop.monitor.watched.items()
            if one.open and one.touchpoint.period_ns
        }
        alone: dict[str, list[int]] = {name: [] for name in touchpoints}
        rounds = list[int]()
        for turn in range(WARM_UP + times):
            # The loop's own work, outside of what is timed.
            await asyncio.sleep(PAUSE_S)
            took = {name: timed(one) for name, one in touchpoints.items()}
            if turn >= WARM_UP:
                rounds.append(sum(took.values()))
                for name, spent in took.items():
                    alone[name].append(spent)
    sys.stdout.write(json.dumps({"failed": failed, "rounds_ns": rounds, "alone_ns": alone}) + "\n")


def timed(touchpoint: Touchpoint) -> int:
    """Nanoseconds of one read."""
    start = time.perf_counter_ns()
    touchpoint.read()
    return time.perf_counter_ns() - start


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
