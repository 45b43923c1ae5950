"""Wires: real frames through real faults, judged by the flow's receivers and the wires' own counters."""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial
from typing import cast

import pytest

from mapek.bpf import ObjectSpec, attach_xdp, load, object_path
from mapek.errors import ConfigError, FeatureError, TemporaryError
from mapek.simulations.agent import Mapek
from mapek.simulations.bird import Bird, BirdTimers
from mapek.simulations.campaign import Listener, Series, Spell, run_campaign
from mapek.simulations.faults import DROP_AB, DROP_BOTH, Fault, gray
from mapek.simulations.lab import Lab
from mapek.simulations.report import fault_entry
from mapek.simulations.stalls import StallMeter
from mapek.simulations.topology import line, pair, triangle
from mapek.simulations.traffic import traffic
from mapek.simulations.wire import Direction

pytestmark = pytest.mark.netns
SPAN_S = 0.3


async def span(flow, seconds=SPAN_S):
    """Judge the next `seconds` of both directions."""
    start = time.monotonic_ns()
    await asyncio.sleep(seconds)
    end = time.monotonic_ns()
    await asyncio.sleep(0.03)
    return flow.windows(start, end)


@pytest.mark.parametrize("family", [4, 6])
async def test_a_healthy_wire_loses_nothing_and_counts_everything(family):
    async with Lab(pair(2)) as lab, StallMeter() as meter:
        await lab.static_routes()
        async with traffic(lab, family=family) as flow:
            await flow.settled(5)
            before, start = lab.wires["l0"].counts("ab"), time.monotonic_ns()
            there, back = await span(flow)
            after = lab.wires["l0"].counts("ab")
        assert (there.lost, back.lost, there.changes, back.changes) == (0, 0, 0, 0)
        assert there.sent >= 0.9 * SPAN_S * 1000
        assert after.flow_forwarded - before.flow_forwarded >= there.sent
        assert after.forwarded >= after.flow_forwarded
        assert lab.wires["l1"].counts("ab").flow_forwarded == 0
        assert meter.worst_ms(start, time.monotonic_ns()) >= 0


@pytest.mark.parametrize(
    ("direction", "dead"), [("ab", (True, False)), ("ba", (False, True)), ("both", (True, True))]
)
async def test_a_drop_is_of_its_direction_alone(direction, dead):
    async with Lab(pair(1)) as lab:
        await lab.static_routes()
        async with traffic(lab) as flow:
            await flow.settled(5)
            wire = lab.wires["l0"]
            begun = wire.fault(direction)
            assert 0 <= time.monotonic_ns() - begun < 1_000_000_000
            await asyncio.sleep(0.01)
            for window, silent in zip(await span(flow), dead, strict=True):
                assert window.lost == (window.sent if silent else 0)
                assert window.recovered is not silent
            assert [wire.counts(way).flow_dropped > 100 for way in ("ab", "ba")] == list(dead)
            wire.clear()
            await flow.settled(5)
            assert [window.lost for window in await span(flow)] == [0, 0]


async def test_random_loss_is_what_was_asked_for():
    async with Lab(pair(1)) as lab:
        await lab.static_routes()
        async with traffic(lab) as flow:
            await flow.settled(5)
            lab.wires["l0"].fault("ab", 0.3)
            there, back = await span(flow, 2.0)
        # Five standard deviations of a binomial with n = 2000, p = 0.3.
        assert there.lost_percent == pytest.approx(30, abs=5.2)
        assert back.lost == 0


async def test_carrier_is_lost_at_both_ends_and_comes_back():
    async with Lab(pair(2)) as lab:
        await lab.static_routes()

        async def carriers() -> list[int]:
            return [
                await node.namespace.route(lambda r: r.get_links(ifname="l0")[0].get_attr("IFLA_CARRIER"))
                for node in lab.nodes.values()
            ]

        assert await carriers() == [1, 1]
        await lab.wires["l0"].carrier(False)
        assert await carriers() == [0, 0]
        await lab.wires["l0"].carrier(True)
        assert await carriers() == [1, 1]
        async with traffic(lab) as flow:
            await flow.settled(5)


async def test_flapping_ends_fine():
    async with Lab(pair(1)) as lab:
        await lab.static_routes()
        async with traffic(lab) as flow:
            await flow.settled(5)
            async with lab.wires["l0"].flapping(0.05, 0.05) as start:
                await asyncio.sleep(0.6)
            end = time.monotonic_ns()
            await asyncio.sleep(0.03)
            there, _ = flow.windows(start, end)
            assert 25 < there.lost_percent < 75
            assert 35 < there.outage_ms < 300
            assert [window.lost for window in await span(flow)] == [0, 0]


async def test_native_xdp_on_the_nodes_changes_nothing():
    with load(ObjectSpec.read(object_path("empty"))) as empty:
        async with Lab(pair(1)) as lab:
            await lab.static_routes()
            links = [
                await node.namespace.run(partial(attach_xdp, empty.programs["empty"], index, mode="native"))
                for node in lab.nodes.values()
                for index in node.interfaces
            ]
            async with traffic(lab) as flow:
                await flow.settled(5)
                assert [window.lost for window in await span(flow)] == [0, 0]
            for link in links:
                await asyncio.to_thread(link.close)


@pytest.mark.parametrize(
    ("topology", "wires"), [(line(3), {"l0", "l1"}), (triangle(), {"l2"}), (line(2, links=3), {"l0"})]
)
@pytest.mark.parametrize("family", [4, 6])
async def test_topologies_carry_from_first_to_last(topology, wires, family):
    async with Lab(topology) as lab:
        await lab.static_routes()
        last = topology.nodes[-1].name
        async with traffic(lab, "a", last, family=family) as flow:
            await flow.settled(5)
            assert [window.lost for window in await span(flow, 0.1)] == [0, 0]
        used = {name for name, wire in lab.wires.items() if wire.counts("ab").flow_forwarded}
        assert used == wires
        assert lab.nodes["a"].interfaces.keys() == {
            2 + i for i in range(len(topology.links_of(topology.nodes[0])))
        }


async def test_the_wire_that_carries_is_found():
    async with Lab(pair(2)) as lab:
        async with traffic(lab) as flow:
            with pytest.raises(TemporaryError, match="no wire does"):
                await flow.carrier_of("both")
            await lab.static_routes()
            await flow.settled(5)
            assert (await flow.carrier_of("ab")).spec.name == "l0"
        async with traffic(lab, "b", "a") as flow:
            await flow.settled(5)
            lab.wires["l0"].fault("ba")
            await asyncio.sleep(0.05)
            there, _ = await span(flow, 0.1)
            assert there.lost == there.sent, "ab of this flow is ba of the wire"
            assert (await flow.carrier_of("ab")).spec.name == "l0"


async def test_wrong_faults_are_refused():
    async with Lab(pair(1)) as lab:
        wire = lab.wires["l0"]
        for direction, loss in (("up", 1.0), ("ab", 1.1), ("ab", -0.1), ("ab", float("nan"))):
            with pytest.raises(ConfigError, match="set fault wire l0"):
                wire.fault(cast(Direction, direction), loss)
        with pytest.raises(ConfigError, match="1 ms"):
            async with wire.flapping(0.0, 1.0):
                pass


class Heard(Listener):
    """Counts what it is told."""

    def __init__(self):
        self.trials, self.spells, self.failures = [], [], []

    def trial(self, contender, series, result):
        self.trials.append(result)

    def failed(self, contender, series, why):
        self.failures.append(why)

    def spell(self, contender, spell, result):
        self.spells.append(result)


@pytest.mark.needs("bird")
async def test_bird_heals_and_the_lab_sees_it():
    heard = Heard()
    series = (
        Series(DROP_BOTH, 2),
        Series(DROP_AB, 1),
        Series(gray(30, hold_s=0.5), 1),
        Series(DROP_BOTH, 1, family=6, hogs=True),
    )
    result = await run_campaign(
        Bird(BirdTimers(10, 3)), series, [Spell(0.5)], listener=heard, seed=random.randrange(99)
    )
    assert result.name == "BIRD BFD 10 ms x3"
    assert heard.failures == []
    drops = [trial for trial in heard.trials if trial.fault.startswith("drop")]
    assert len(drops) == 4
    for trial in drops:
        assert trial.rescued
        # At least two and a half of three intervals; an upper bound would test the machine.
        assert trial.outage_ms > 15
        assert trial.changes >= 1
    assert fault_entry(result.series[0])["recovered"] == 2
    (spell,) = heard.spells
    assert spell.suspicions is None
    assert 1 < spell.usage.rss_mb < 20
    assert len(result.traces) == 4


class Nothing:
    """A contender that does nothing: the lab must say so."""

    name, reaction_s = "nothing", 0.01

    async def open(self, lab):
        await lab.static_routes()

    async def close(self):
        pass

    async def at_rest(self, timeout):
        pass

    def usage(self):
        return {}


async def test_what_nobody_heals_is_not_healed():
    result = await run_campaign(
        Nothing(), [Series(Fault("drop_both", "loss"), 1), Series(gray(50, hold_s=0.3), 1)]
    )
    silent, half = result.series
    assert not result.healed
    assert fault_entry(silent)["recovered"] == 0
    assert silent.trials[0].outage_ms > 1900
    assert fault_entry(half)["recovered"] == 0
    assert 30 < half.trials[0].lost_percent < 70
    assert half.trials[0].changes == 0


async def test_an_agent_that_cannot_start_says_why():
    async with Lab(pair(1)) as lab:
        mapek = Mapek("fast", extra="[nonsense]")
        with pytest.raises(Exception, match=r"start agent on a: .*nonsense") as caught:
            await mapek.open(lab)
        assert not isinstance(caught.value, FeatureError)
        await mapek.close()
