"""Section `syscalls`: what the sensor `syscall_latency` adds to a system call, watched or not, by variant.

A C program makes calls in slices. Rounds without the sensor, with two programs in its place that return at once, with
it watching that program, and with it watching others follow each other in changing order, so that what the machine
does meanwhile meets all alike. A round is its median slice, and each is compared with the bare one of its own turn.
What the sensor counted is held against the calls that were made: a number for calls that it did not see is not told.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from mapek.bpf.worker import in_thread
from mapek.errors import FeatureError, PermanentError
from mapek.knowledge import Topology
from mapek.sensors.syscall_latency import SyscallLatency
from mapek.sensors.variants import missing
from mapek.simulations.bench.native import compile_c
from mapek.simulations.bench.plan import Budget
from mapek.simulations.bench.targets import Row
from mapek.simulations.empties import attach_empty
from mapek.simulations.gauge import Gauge
from mapek.simulations.surroundings import opened

ROUNDS: Final = 11
SLICES: Final = 60
CALLS: Final = 5_000
READ: Final = 0
GETPPID: Final = 1
EMPTY: Final = "two empty programs"


Floats = npt.NDArray[np.float64]
Whose = Literal["watched", "self", "set"]
OPTIONS: Final[dict[Whose, Callable[[int], list[str]]]] = {
    "watched": lambda pid: [str(pid)],
    "self": lambda _: ["self"],
    "set": lambda _: [str(os.getpid())],
}
"""The option `processes`, by whom the sensor watches: those that make the calls, or, by either filter, only us."""
TARGETS: Final[dict[Whose, float]] = {"watched": 130.0, "self": 70.0}
WORDS: Final[dict[Whose, str]] = {
    "watched": "of the watched process",
    "self": "of another process than the agent",
    "set": "of another process than those of a set",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What runs at the tracepoints: "" for nothing, EMPTY for what they cost by themselves, else a variant."""

    variant: str
    whose: Whose = "watched"

    @property
    def calls(self) -> tuple[int, ...]:
        """The programs look at the number first: whose a call is makes no difference to one that nobody watches."""
        return (READ, GETPPID) if self.whose == "watched" else (READ,)


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
            return [*rows, Row("over a bare read", None, "ns", TARGETS["watched"], str(error))]
        took = await _rounds(program, here, random.Random(budget.seed))
    return [*_rows(took, here), *rows]


async def _rounds(
    program: Path, here: list[str], chance: random.Random
) -> dict[tuple[Setting, int], list[float]]:
    first = [Setting(""), *([Setting(EMPTY)] if await asyncio.to_thread(_empty_here) else [])]
    settings = [*first, *(Setting(name, whose) for name in here for whose in OPTIONS)]
    took: dict[tuple[Setting, int], list[float]] = {
        (one, which): [] for one in settings for which in one.calls
    }
    async with Gauge([program]) as loop:
        for _ in range(ROUNDS):
            for setting in chance.sample(settings, len(settings)):
                for which, median in (await _round(loop, setting)).items():
                    took[setting, which].append(median)
    return took


async def _round(loop: Gauge, setting: Setting) -> dict[int, float]:
    """The median slice in ns, by kind of call."""
    async with AsyncExitStack() as life:
        sensor = None
        if setting.variant == EMPTY:
            detach = await in_thread(lambda: attach_empty("syscalls"), ExitStack.close)
            life.push_async_callback(in_thread, detach.close)
        elif setting.variant:
            options = {
                "processes": OPTIONS[setting.whose](loop.pid),
                "variant": setting.variant,
                "syscalls": ["read"],
            }
            sensor = await life.enter_async_context(opened(SyscallLatency(options), Topology("bench")))
        before = _counted(sensor)
        found = {
            which: float(np.median(await loop.ask(which, SLICES, CALLS))) / 1e3 for which in setting.calls
        }
        seen = _counted(sensor) - before
    made = SLICES * CALLS
    if sensor is None:
        return found
    if setting.whose == "watched" and not made <= seen <= made + 100:
        raise PermanentError("count", f"calls by {setting.variant}", f"{seen} of {made}", "see its tests")
    if setting.whose != "watched" and seen >= made:
        raise PermanentError("filter", f"calls by {setting.variant}", f"{seen} were counted", "see its tests")
    return found


def _empty_here() -> bool:
    return not missing(next(one for one in SyscallLatency.variants if one.name == "tp_btf"))


def _counted(sensor: SyscallLatency | None) -> int:
    frame = sensor.read() if sensor is not None else None
    if frame is None:
        return 0
    column = [metric.name for metric in frame.schema.counters].index("calls")
    return int(frame.counters[0, column])


def _rows(took: dict[tuple[Setting, int], list[float]], here: list[str]) -> list[Row]:
    rows = []
    for which, name in ((READ, "read"), (GETPPID, "getppid")):
        bare = np.array(took[Setting(""), which])
        rows.append(_row(f"bare {name}", bare))
        for setting in (Setting(EMPTY), *(Setting(one, whose) for one in here for whose in OPTIONS)):
            if values := took.get((setting, which)):
                target = TARGETS.get(setting.whose) if setting.variant == here[0] and which == READ else None
                rows.append(_row(_words(setting, which, name), np.array(values) - bare, target))
    return rows


def _words(setting: Setting, which: int, name: str) -> str:
    if setting.variant == EMPTY:
        return f"{EMPTY}: {name}, over bare"
    call = f"{name} {WORDS[setting.whose]}" if which == READ else f"{name}, which is not watched"
    return f"{setting.variant}: {call}, over bare"


def _row(what: str, values: Floats, target: float | None = None) -> Row:
    low, high = np.percentile(values, (5, 95))
    note = f"p5-p95 {low:.0f}-{high:.0f}, n = {len(values)} rounds"
    return Row(what, round(float(np.median(values)), 1), "ns", target, note)
