"""Turns a sensor on and off, in a process of its own (`child.sensor`), as an agent would have it: what it needs of CPU
for itself is not in the numbers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from mapek.bpf.inventory import programs
from mapek.bpf.run_stats import Runs, Watched, run_time_stats
from mapek.simulations.gauge import Gauge
from mapek.simulations.profile.subjects import EMPTY, OTHERS, WITHOUT, Subject


@dataclass(frozen=True, slots=True)
class Share:
    """A program of the sensor on this very load, by bpf_stats.

    Args:
        each: runs per packet or call.
    """

    program: str
    each: float
    runs: Runs


class Switch:
    """The process `gauge`, and what it has open.

    Args:
        process: whose system calls to watch, where the subject is about these.
    """

    def __init__(self, subject: Subject, gauge: Gauge, process: int = 0) -> None:
        self._subject, self._gauge, self._process = subject, gauge, process

    async def turn_to(self, setting: str) -> None:
        """Close what is open, open what `setting` wants. Raises PermanentError with the sensor's own words."""
        await self._gauge.ask("close")
        if setting == EMPTY:
            await self._gauge.ask("empty", self._subject.empty)
        elif setting != WITHOUT:
            options = json.dumps(self._options(setting))
            await self._gauge.ask("open", self._subject.sensor, options)

    def _options(self, setting: str) -> Mapping[str, object]:
        if self._subject.load == "flow":
            return self._subject.options
        whose = "self" if setting == OTHERS else str(self._process)
        return {**self._subject.options, "processes": [whose]}

    async def shares(self, load: Callable[[], Awaitable[int]]) -> list[Share]:
        """What each program that is open runs for, while `load` puts so many packets or calls through."""
        everything = await asyncio.to_thread(programs)
        ours = {
            one.id: one.name
            for one in everything
            if any(holder.pid == self._gauge.pid for holder in one.holders)
        }
        with Watched(ours) as watched, run_time_stats():
            before = watched.runs()
            count = await load()
            done = {ident: runs - before[ident] for ident, runs in watched.runs().items()}
        return [Share(ours[ident], runs.count / count, runs) for ident, runs in done.items() if runs.count]
