"""Section `syscalls`: what the sensor `syscall_latency` adds to a system call, watched or not, by variant.

A C program makes calls in slices; rounds without the sensor, with it watching that program, and with it watching
another one follow each other in changing order, so that what the machine does meanwhile meets all alike. A round is
its median slice, and each is compared with the bare one of its own turn. What the sensor counted is held against the
calls that were made: a number for calls that it did not see is not told.
"""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from mapek.errors import FeatureError, PermanentError
from mapek.knowledge import Topology
from mapek.sensors.syscall_latency import SyscallLatency
from mapek.sensors.variants import missing
from mapek.simulations.bench.native import Native, compile_c
from mapek.simulations.bench.plan import Budget
from mapek.simulations.bench.surroundings import opened
from mapek.simulations.bench.targets import Row

IN_NS: Final = 130.0
OUT_NS: Final = 70.0
ROUNDS: Final = 11
SLICES: Final = 60
CALLS: Final = 5_000
READ: Final = 0
GETPPID: Final = 1


@dataclass(frozen=True, slots=True)
class Setting:
    """A way to run the sensor: `watched` or not; `variant` "" for no sensor at all."""

    variant: str
    watched: bool = False


async def measure(budget: Budget) -> list[Row]:
    """ns over the bare call; the first variant, which is what "auto" takes, has the targets."""
    here, rows = list[str](), list[Row]()
    for one in SyscallLatency.variants:
        why = await asyncio.to_thread(missing, one)
        if why:
            rows.append(Row(f"{one.name}: over a bare read", None, "ns", None, why))
        else:
            here.append(one.name)
    if not here:
        return rows
    with TemporaryDirectory(prefix="mapek-bench-") as folder:
        try:
            program = await compile_c("syscall_loop", Path(folder))
        except FeatureError as error:
            return [*rows, Row("over a bare read", None, "ns", IN_NS, str(error))]
        took = await _rounds(program, here, random.Random(budget.seed))
    return [*_rows(took, here), *rows]


async def _rounds(
    program: Path, here: list[str], chance: random.Random
) -> dict[tuple[Setting, int], list[float]]:
    settings = [Setting(""), *(Setting(name, watched) for name in here for watched in (True, False))]
    took: dict[tuple[Setting, int], list[float]] = {
        (one, which): [] for one in settings for which in (READ, GETPPID)
    }
    async with Native(program) as loop:
        for _ in range(ROUNDS):
            for setting in chance.sample(settings, len(settings)):
                for which, median in (await _round(loop, setting)).items():
                    took[setting, which].append(median)
    return took


async def _round(loop: Native, setting: Setting) -> dict[int, float]:
    """The median slice in ns, by kind of call."""
    async with AsyncExitStack() as life:
        sensor = None
        if setting.variant:
            whom = loop.pid if setting.watched else os.getpid()
            options = {"processes": [str(whom)], "variant": setting.variant, "syscalls": ["read"]}
            sensor = await life.enter_async_context(opened(SyscallLatency(options), Topology("bench")))
        before = _counted(sensor)
        found = {
            which: float(np.median(await loop.ask(which, SLICES, CALLS))) / 1e3 for which in (READ, GETPPID)
        }
        seen = _counted(sensor) - before
    made = SLICES * CALLS
    if setting.watched and not made <= seen <= made + 100:
        raise PermanentError("count", f"calls by {setting.variant}", f"{seen} of {made}", "see its tests")
    if setting.variant and not setting.watched and seen >= made:
        raise PermanentError("filter", f"calls by {setting.variant}", f"{seen} were counted", "see its tests")
    return found


def _counted(sensor: SyscallLatency | None) -> int:
    frame = sensor.read() if sensor is not None else None
    if frame is None:
        return 0
    column = [metric.name for metric in frame.schema.counters].index("calls")
    return int(frame.counters[0, column])


def _rows(took: dict[tuple[Setting, int], list[float]], here: list[str]) -> list[Row]:
    rows = []
    for which, name in ((READ, "read"), (GETPPID, "getppid, not watched for")):
        bare = np.array(took[Setting(""), which])
        rows.append(
            Row(f"bare {name.partition(',')[0]}", round(float(np.median(bare)), 1), "ns", None, _spread(bare))
        )
        for variant in here:
            for watched, most in ((True, IN_NS), (False, OUT_NS)):
                over = np.array(took[Setting(variant, watched), which]) - bare
                promised = variant == here[0] and which == READ
                whose = "of the watched process" if watched else "of another process"
                rows.append(
                    Row(
                        f"{variant}: {name} {whose}, over bare",
                        round(float(np.median(over)), 1),
                        "ns",
                        most if promised else None,
                        _spread(over),
                    )
                )
    return rows


def _spread(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str:
    low, high = np.percentile(values, (5, 95))
    return f"p5-p95 {low:.0f}-{high:.0f}, n = {len(values)} rounds"
