"""In a node of the lab: build the loop of a configuration a few times and say how long each part took.

`python -m mapek.simulations.bench.startup_child FILE TIMES`, one JSON line for each time. What blocks the
event loop is found by timing every callback that it runs.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack

from mapek.assembly import build
from mapek.config import load_config
from mapek.monitor import Monitor


def who(handle: asyncio.Handle) -> str:
    """The function, or the coroutine of the task, that `handle` ran."""
    callback: object = getattr(handle, "_callback", None)
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        callback = owner.get_coro()
    return str(getattr(callback, "__qualname__", repr(callback)))


class Blocks:
    """The longest callback of the loop since `reset`, in ns, and what it was."""

    def __init__(self) -> None:
        self.longest_ns, self.what = 0, ""
        run = asyncio.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            start = time.perf_counter_ns()
            try:
                run(handle)
            finally:
                took = time.perf_counter_ns() - start
                if took > self.longest_ns:
                    self.longest_ns, self.what = took, who(handle)

        asyncio.Handle._run = timed  # type: ignore[method-assign,assignment]

    def reset(self) -> None:
        """Begin anew."""
        self.longest_ns, self.what = 0, ""


async def main(file: str, times: int) -> None:
    """Open and close the loop `times` times."""
    opened_ns: list[int] = []
    start_sensors = Monitor.start

    async def timed(self: Monitor) -> object:
        start = time.perf_counter_ns()
        failed = await start_sensors(self)
        opened_ns.append(time.perf_counter_ns() - start)
        return failed

    Monitor.start = timed  # type: ignore[method-assign,assignment]
    config, blocks = load_config(file), Blocks()
    for _ in range(times):
        await asyncio.sleep(0)
        blocks.reset()
        start = time.perf_counter_ns()
        async with AsyncExitStack() as life:
            loop = await life.enter_async_context(build(config))
            whole = time.perf_counter_ns() - start
            longest, what = blocks.longest_ns, blocks.what
            record = {
                "sensors_ms": opened_ns[-1] / 1e6,
                "loop_ms": whole / 1e6,
                "block_ms": longest / 1e6,
                "block": what,
                "failed": [str(error) for error in loop.failed_at_start.values()],
            }
        sys.stdout.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
