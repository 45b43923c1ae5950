"""In a node of the lab: build the loop of a configuration a few times and say how long each part took.

`python -m mapek.simulations.bench.startup_child FILE TIMES`, one JSON line for each time. How long the event
loop is blocked is told twice: by a ticker on it that expects to be called each millisecond, which feels
whatever holds the interpreter too (a thread that imports), and by timing every callback, which names the one.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from typing import Final

from mapek.assembly import SWITCH_S, build
from mapek.clock import TimerFd
from mapek.config import load_config
from mapek.monitor import Monitor

TICK_NS: Final = 1_000_000


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


class Ticker:
    """A tick of the loop's own clock each millisecond; `gap_ns` is the longest time between two."""

    def __init__(self) -> None:
        self._timer = TimerFd()
        self._last = self.gap_ns = 0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._timer.fd, self._tick)
        self._timer.set(time.monotonic_ns() + TICK_NS, TICK_NS)

    def _tick(self) -> None:
        self._timer.read()
        now = time.monotonic_ns()
        self.gap_ns = max(self.gap_ns, now - self._last)
        self._last = now

    def reset(self) -> None:
        """Begin anew."""
        self._last, self.gap_ns = time.monotonic_ns(), 0

    def longest_ns(self) -> int:
        """Up to now, with the tick that is still due."""
        return max(self.gap_ns, time.monotonic_ns() - self._last)

    def close(self) -> None:
        """Stop ticking."""
        self._loop.remove_reader(self._timer.fd)
        self._timer.close()


async def main(file: str, times: int) -> None:
    """Open and close the loop `times` times."""
    opened_ns, opening_gap_ns = list[int](), list[int]()
    start_sensors, ticker = Monitor.start, Ticker()

    async def timed(self: Monitor) -> object:
        before = ticker.longest_ns()
        ticker.reset()
        start = time.perf_counter_ns()
        failed = await start_sensors(self)
        opened_ns.append(time.perf_counter_ns() - start)
        opening_gap_ns.append(ticker.longest_ns())
        ticker.gap_ns = max(before, ticker.gap_ns)
        return failed

    Monitor.start = timed  # type: ignore[method-assign,assignment]
    config, blocks = load_config(file), Blocks()
    for _ in range(times):
        await asyncio.sleep(0.01)
        blocks.reset()
        ticker.reset()
        start = time.perf_counter_ns()
        async with AsyncExitStack() as life:
            loop = await life.enter_async_context(build(config))
            whole = time.perf_counter_ns() - start
            longest, what, gap = blocks.longest_ns, blocks.what, ticker.longest_ns()
            record = {
                "sensors_ms": opened_ns[-1] / 1e6,
                "loop_ms": whole / 1e6,
                "block_ms": longest / 1e6,
                "block": what,
                "gap_ms": gap / 1e6,
                "opening_gap_ms": opening_gap_ns[-1] / 1e6,
                "failed": [str(error) for error in loop.failed_at_start.values()],
            }
        sys.stdout.write(json.dumps(record) + "\n")
    ticker.close()


if __name__ == "__main__":
    # As `mapek run` does.
    sys.setswitchinterval(SWITCH_S)
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
