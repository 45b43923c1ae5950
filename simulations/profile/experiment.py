"""Runs the A/B of one sensor: its load and its switch are opened, then settings follow each other in turns."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from mapek.errors import PermanentError
from mapek.simulations.gauge import Gauge
from mapek.simulations.process import child_command
from mapek.simulations.profile.loads import CallsLoad, FlowLoad, Load
from mapek.simulations.profile.result import Result
from mapek.simulations.profile.subjects import WITH, Subject
from mapek.simulations.profile.switch import Switch
from mapek.simulations.road import Road
from mapek.simulations.turns import in_turns


async def run(subject: Subject, seconds: float, seed: int, result: Result) -> None:
    """Measure for `seconds`; `result` has what there is at any time, also when this is cancelled.

    Raises PermanentError when the sensor does not open, or none of its programs has anything to do with the load.
    """
    async with _opened(subject) as (load, switch):
        await switch.turn_to(WITH)
        await load.trial()
        result.shares = await switch.shares(load.stretch)
        if not result.shares:
            why = f"none of its programs runs for a {load.unit}"
            raise PermanentError("measure", subject.sensor, why, "choose other options")
        await alternate(subject.settings, switch.turn_to, load, seconds, seed, result)


async def alternate(
    settings: tuple[str, ...],
    turn_to: Callable[[str], Awaitable[None]],
    load: Load,
    seconds: float,
    seed: int,
    result: Result,
) -> None:
    """One trial for each setting, in an order of its own each time, until the time is up."""
    start = time.monotonic()

    async def trial(setting: str) -> dict[str, float]:
        await turn_to(setting)
        return await load.trial()

    def enough() -> bool:
        result.seconds = time.monotonic() - start
        return result.seconds >= seconds

    await in_turns(settings, trial, result.rounds, random.Random(seed), enough)
    result.complete = True


@asynccontextmanager
async def _opened(subject: Subject) -> AsyncIterator[tuple[Load, Switch]]:
    command = child_command("sensor")
    if subject.load == "flow":
        async with Road() as road, Gauge(command, name=subject.sensor, inside=road.receiver) as sensor:
            yield FlowLoad(road), Switch(subject, sensor)
    else:
        async with Gauge(child_command("calls")) as calls, Gauge(command, name=subject.sensor) as sensor:
            yield CallsLoad(calls), Switch(subject, sensor, calls.pid)
