"""The two loads that programs are measured on, each by what a process of its own says of a short piece of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from mapek.errors import PermanentError
from mapek.simulations.gauge import Gauge
from mapek.simulations.road import Road

SLICES: Final = 12
DATAGRAMS: Final = 640
WARM_UP: Final = 2
PINGS: Final = 600
CALLS: Final = 2500
TRIES: Final = 3
"""A machine that stalls loses some packets once; a program that drops them does so each time."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a trial, in ns.

    Args:
        words: for people.
        decides: how narrow an interval must be to say that there is no difference, as a share of the number.
    """

    words: str
    decides: float


class Load(Protocol):
    """Gives the metrics of one trial, by name; knows nothing of what hangs where."""

    @property
    def unit(self) -> str:
        """What there is one of: "packet" or "call"."""

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """By name, the first the one that settings are told apart by."""

    async def trial(self) -> dict[str, float]:
        """Some ten milliseconds of it."""

    async def stretch(self) -> int:
        """A longer piece that is not timed; returns of how many packets or calls."""


class FlowLoad:
    """A saturated flow over the road, then datagrams one at a time.

    The cost is the CPU of both sides; latency is from before a datagram is sent to after it was received.
    """

    unit: Final = "packet"
    metrics: Final[Mapping[str, Metric]] = {
        "cpu_ns": Metric("CPU a packet", 0.01),
        "p50_ns": Metric("latency p50", 0.01),
        "p99_ns": Metric("latency p99", 0.05),
    }

    def __init__(self, road: Road) -> None:
        self._road = road

    async def trial(self) -> dict[str, float]:
        """Raises PermanentError when a hundredth does not arrive: then it would be measured how fast one drops."""
        await self._road.flow(WARM_UP, DATAGRAMS)
        for _ in range(TRIES):
            arrived, took = await self._road.flow(SLICES, DATAGRAMS)
            lost, answers = await self._road.ping(PINGS)
            if arrived >= 0.99 * SLICES * DATAGRAMS and lost <= 0.01 * PINGS:
                break
        else:
            why = f"{arrived} of {SLICES * DATAGRAMS} packets arrived, and {PINGS - lost} of {PINGS}"
            raise PermanentError("measure", "the flow", why, "let the program pass them")
        middle, worst = np.percentile(answers, (50, 99))
        return {"cpu_ns": float(np.median(took)), "p50_ns": float(middle), "p99_ns": float(worst)}

    async def stretch(self) -> int:
        arrived, _ = await self._road.flow(SLICES, DATAGRAMS)
        return arrived


class CallsLoad:
    """System calls of one thread: `read`, which is watched, and `getppid`, which is not."""

    unit: Final = "call"
    metrics: Final[Mapping[str, Metric]] = {
        "read_ns": Metric("CPU a read", 0.01),
        "getppid_ns": Metric("CPU a getppid", 0.01),
    }

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge

    async def trial(self) -> dict[str, float]:
        return {f"{which}_ns": await self._median(which) for which in ("read", "getppid")}

    async def _median(self, which: str) -> float:
        took = await self._gauge.ask(which, WARM_UP + SLICES, CALLS)
        return float(np.median(took[WARM_UP:])) / 1e3

    async def stretch(self) -> int:
        await self._gauge.ask("read", SLICES, CALLS)
        return SLICES * CALLS
