"""What the bench consists of: campaigns with their counts, then the measurements of single parts.

`cost_s` are estimates from runs on a machine with two cores; their sum is what keeps the whole bench below an
hour when somebody adds to it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final

from mapek.simulations.agent import Mapek, Profile
from mapek.simulations.bench.targets import Row
from mapek.simulations.bird import Bird, BirdTimers
from mapek.simulations.campaign import Series, Spell
from mapek.simulations.contender import Contender
from mapek.simulations.faults import DROP_AB, DROP_BA, DROP_BOTH, gray
from mapek.simulations.told import Teller

PROFILES: Final[tuple[Profile, ...]] = ("fast", "default")


@dataclass(frozen=True, slots=True)
class Budget:
    """How much of everything.

    Args:
        trials: of each silent fault over IPv4.
        seconds: of each spell without fault.
        gray_s: that a gray fault lasts.
        virtual_s: of virtual time at each rate of loss.
        folder: where sections find each other's files.
    """

    trials: int = 30
    seconds: float = 120.0
    gray_s: float = 10.0
    virtual_s: float = 3600.0
    seed: int = 0
    folder: Path = Path("build/bench")


Measure = Callable[[Budget], Awaitable[list[Row]]]


@dataclass(frozen=True)
class Section:
    """A campaign of one contender: `profile` for ours, `bird` for the peer (None: its defaults)."""

    series: tuple[Series, ...]
    spells: tuple[Spell, ...] = ()
    profile: Profile | None = None
    bird: BirdTimers | None = None

    def contender(self, teller: Teller) -> Contender:
        """A fresh one."""
        return Mapek(self.profile, listener=teller.event) if self.profile else Bird(self.bird, families=(4,))

    @property
    def cost_s(self) -> float:
        """About how long it takes, from what trials took when this was written."""
        kind = self.profile or ("slow" if self.bird is None else "")
        silent = {"fast": 0.7, "default": 1.2, "slow": 3.0}.get(kind, 1.0)
        # A gray path has to be well again first: its window of 512 probes empties, then three clean seconds.
        after = {"fast": 3.6, "default": 9.0, "slow": 3.0}.get(kind, 1.5)
        trials = sum(
            one.trials * ((one.fault.hold_s or 0) + after if one.fault.gray else silent)
            for one in self.series
        )
        return 5.0 + trials + sum(spell.seconds + 1 for spell in self.spells)


# Imported when they run: a campaign needs no compiler, and a map no lab.
MEASURES: Final[dict[str, tuple[str, float]]] = {
    "latencies": ("latencies", 1.0),
    "maps": ("maps", 25.0),
    "packets": ("packets", 10.0),
    "ring": ("ring", 25.0),
    "flow": ("flow", 25.0),
    "syscalls": ("syscalls", 30.0),
    "load": ("startup", 45.0),
    "beside": ("beside", 30.0),
    "agent": ("cost", 95.0),
    "all-sensors": ("together", 103.0),
    "virtual-hour": ("virtual_hour", 90.0),
}


def measure(name: str) -> Measure:
    """The function behind one of `MEASURES`."""
    found: Measure = import_module(f"mapek.simulations.bench.{MEASURES[name][0]}").measure
    return found


def _silence(trials: int, ipv6: int) -> tuple[Series, ...]:
    faults = (DROP_BOTH, DROP_AB, DROP_BA)
    return (
        *(Series(fault, trials) for fault in faults),
        *(Series(fault, ipv6, family=6) for fault in faults),
    )


def _gray(both: int, one_way: int, hold_s: float) -> tuple[Series, ...]:
    percents = (30, 10, 5)
    return (
        *(Series(gray(percent, hold_s=hold_s), both) for percent in percents),
        *(Series(gray(percent, "ab", hold_s), one_way) for percent in percents if one_way),
    )


def sections(trials: int = 30, seconds: float = 120.0, gray_s: float = 10.0) -> dict[str, Section]:
    """All campaigns by name.

    `trials` of each silent fault, `seconds` of each spell without one, `gray_s` seconds of each gray one.
    """
    quiet = (Spell(seconds), Spell(seconds, hogs=True), Spell(seconds / 2, fault=gray(0.1)))
    few, some = max(1, trials // 6), max(1, round(trials * 7 / 30))
    found: dict[str, Section] = {}
    for profile in PROFILES:
        found[f"silence-{profile}"] = Section(_silence(trials, few), profile=profile)
        found[f"quiet-{profile}"] = Section((), quiet, profile=profile)
        found[f"hogs-{profile}"] = Section((Series(DROP_BOTH, trials, hogs=True),), profile=profile)
        found[f"gray-{profile}"] = Section(_gray(some, some, gray_s), profile=profile)
    one_way = Series(DROP_AB, max(1, trials // 6))
    found["bird-1ms"] = Section(
        (Series(DROP_BOTH, trials), one_way, *_gray(max(1, trials // 15), 0, gray_s)),
        quiet[:2],
        bird=BirdTimers(1, 3),
    )
    for name, timers in (("10ms", BirdTimers(10, 3)), ("default", None)):
        found[f"bird-{name}"] = Section(
            (
                Series(DROP_BOTH, max(1, trials // 3)),
                Series(DROP_AB, max(1, trials // 10)),
                *_gray(max(1, trials // 30), 0, gray_s),
            ),
            (Spell(seconds / 4),),
            bird=timers,
        )
    return found


def names() -> list[str]:
    """Every section, in the order in which `make bench` runs them."""
    return [*sections(), *MEASURES]


def planned_s() -> float:
    """About how long the whole bench takes."""
    return sum(one.cost_s for one in sections().values()) + sum(cost for _, cost in MEASURES.values())
