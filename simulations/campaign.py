"""A campaign: one system in one lab, fault after fault, then quiet spells; results are told at once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mapek.errors import TemporaryError
from mapek.simulations.contender import Contender
from mapek.simulations.faults import Fault
from mapek.simulations.hogs import hogs
from mapek.simulations.lab import Lab
from mapek.simulations.quiet import QuietResult, run_quiet
from mapek.simulations.stalls import StallMeter
from mapek.simulations.topology import Family, Topology, pair
from mapek.simulations.traffic import Traffic, traffic
from mapek.simulations.trial import MissedError, TrialResult, run_trial


@dataclass(frozen=True)
class Series:
    """`trials` of one fault over one IP version; `hogs` burns every CPU meanwhile."""

    fault: Fault
    trials: int
    family: Family = 4
    hogs: bool = False


@dataclass(frozen=True)
class Spell:
    """A quiet spell; `fault` is one that nobody should react to."""

    seconds: float
    hogs: bool = False
    fault: Fault | None = None


@dataclass(frozen=True)
class SeriesResult:
    """A series and what became of each trial; `failed` holds why trials could not be judged."""

    series: Series
    trials: tuple[TrialResult, ...]
    failed: tuple[str, ...]


@dataclass(frozen=True)
class SpellResult:
    """A spell and what happened in it."""

    spell: Spell
    result: QuietResult


@dataclass(frozen=True)
class ArrivalTrace:
    """Arrivals of one direction of the flow over one version of IP: when (ns), and by which interface."""

    direction: str
    family: Family
    arrived_ns: NDArray[np.uint64]
    ifindex: NDArray[np.uint32]
    interfaces: dict[int, str]


@dataclass(frozen=True)
class CampaignResult:
    """All results of one contender; `name` as reports call it."""

    name: str
    series: tuple[SeriesResult, ...]
    spells: tuple[SpellResult, ...]
    traces: tuple[ArrivalTrace, ...]

    @property
    def healed(self) -> bool:
        """Whether every trial could be judged and its traffic was rescued."""
        return all(not one.failed and all(trial.rescued for trial in one.trials) for one in self.series)


class Listener:
    """Hears of results as they come; the base hears nothing."""

    def opened(self, contender: Contender) -> None:
        """The contender runs on every node."""

    def trial(self, contender: Contender, series: Series, result: TrialResult) -> None:
        """A trial has ended."""

    def failed(self, contender: Contender, series: Series, why: str) -> None:
        """A trial could not be judged."""

    def spell(self, contender: Contender, spell: Spell, result: QuietResult) -> None:
        """A quiet spell has ended."""


async def run_campaign(
    contender: Contender,
    series: Sequence[Series],
    spells: Sequence[Spell] = (),
    *,
    topology: Topology | None = None,
    seed: int = 0,
    listener: Listener | None = None,
) -> CampaignResult:
    """Open a lab, run everything on it in order (series of IPv4, spells, series of IPv6), and close it.

    A trial that cannot be judged is counted and does not end the campaign; a system that ends itself does
    (PermanentError).
    """
    told, chance = listener or Listener(), random.Random(seed)
    done: list[SeriesResult] = []
    quiet: list[SpellResult] = []
    traces: list[ArrivalTrace] = []
    async with Lab(topology or pair(links=2)) as lab, StallMeter() as meter:
        try:
            await contender.open(lab)
            told.opened(contender)
            families: tuple[Family, ...] = (4, 6)
            for family in families:
                mine = [one for one in series if one.family == family]
                rest = spells if family == 4 else ()
                if not mine and not rest:
                    continue
                async with traffic(lab, family=family) as flow:
                    for one in mine:
                        async with hogs(one.hogs):
                            done.append(await _run_series(contender, flow, one, meter, chance, told))
                    for spell in rest:
                        found = await run_quiet(
                            contender,
                            flow,
                            spell.seconds,
                            meter=meter,
                            with_hogs=spell.hogs,
                            fault=spell.fault,
                        )
                        quiet.append(SpellResult(spell, found))
                        told.spell(contender, spell, found)
                    traces += _traces(lab, flow)
        finally:
            await contender.close()
    return CampaignResult(contender.name, tuple(done), tuple(quiet), tuple(traces))


async def _run_series(
    contender: Contender,
    flow: Traffic,
    series: Series,
    meter: StallMeter,
    chance: random.Random,
    told: Listener,
) -> SeriesResult:
    results: list[TrialResult] = []
    failed: list[str] = []
    misses = 0
    while (number := len(results) + len(failed)) < series.trials:
        try:
            result = await run_trial(contender, flow, series.fault, number=number, meter=meter, chance=chance)
        except MissedError as error:
            misses += 1
            if misses > series.trials:
                failed.append(str(error))
        except TemporaryError as error:
            failed.append(str(error))
            told.failed(contender, series, str(error))
        else:
            results.append(result)
            told.trial(contender, series, result)
    return SeriesResult(series, tuple(results), tuple(failed))


def _traces(lab: Lab, flow: Traffic) -> list[ArrivalTrace]:
    found = []
    for one in (flow.there, flow.back):
        records = one.arrivals(0)
        interfaces = lab.nodes[one.target.name].interfaces
        found.append(
            ArrivalTrace(
                one.direction, one.family, records["arrived_ns"].copy(), records["ifindex"].copy(), interfaces
            )
        )
    return found
