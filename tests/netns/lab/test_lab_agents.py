"""Our own agents in the lab: healed by the flow's word, explained by theirs, gone with the lab."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from mapek.errors import PermanentError
from mapek.simulations.agent import Mapek
from mapek.simulations.campaign import Series, Spell, run_campaign
from mapek.simulations.clean import remains
from mapek.simulations.faults import DROP_AB, DROP_BOTH
from mapek.simulations.lab import Lab
from mapek.simulations.latencies import latencies
from mapek.simulations.topology import pair
from mapek.simulations.trial import TrialResult
from mapek.simulations.usage import descendants

pytestmark = pytest.mark.netns

LAB = """
import asyncio
from mapek.simulations.agent import Mapek
from mapek.simulations.lab import Lab
from mapek.simulations.topology import pair

async def main():
    async with Lab(pair(2)) as lab:
        mapek = Mapek("fast")
        await mapek.open(lab)
        print(*(agent.pid for agent in mapek.agents.values()), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def found_dead(trial: TrialResult) -> set[str]:
    """Who said that its path over the faulty wire is dead, before the fault was gone."""
    return {
        event.node
        for event in trial.events
        if event.kind == "symptom"
        and event.fields["kind"] == "path_dead"
        and not event.fields["cleared"]
        and str(event.fields["entity"]).endswith(f"/{trial.wire}")
        and trial.started_ns <= event.time_ns <= trial.ended_ns
    }


async def test_both_nodes_heal_on_their_own():
    series = (Series(DROP_BOTH, 2), Series(DROP_AB, 1), Series(DROP_BOTH, 1, family=6))
    # Three lost probes are 3 ms in the fast profile: on a busy test machine a node may have moved by itself.
    result = await run_campaign(Mapek("default"), series, [Spell(0.5)])
    assert result.healed
    for one in result.series:
        for trial in one.trials:
            # Both see it. Who acts is whose traffic took that wire: on a busy machine a node may have left it before.
            assert found_dead(trial) == {"a", "b"}
            carried = {node for node, wire in zip("ab", trial.carriers, strict=True) if wire == trial.wire}
            assert {stage.node for stage in trial.stages} == carried
            assert carried
            # Each part took time, and none of it more than the outage allows for the whole.
            for stage in trial.stages:
                assert min(stage.detect, stage.plan, stage.act, stage.verify) >= 0
                assert stage.detect > 0.5
    assert latencies(result)["verdict_to_acknowledged"]["p50"] is not None
    (spell,) = result.spells
    assert spell.result.suspicions is not None
    assert spell.result.usage.pss_mb > 5


async def test_an_agent_that_dies_is_noticed():
    async with Lab(pair(2)) as lab:
        mapek = Mapek("fast")
        await mapek.open(lab)
        try:
            os.kill(mapek.agents["a"].pid, signal.SIGKILL)
            with pytest.raises(PermanentError, match="run agent on a: it ended"):
                await mapek.at_rest(20)
            assert set(mapek.usage()) == {"b"}
        finally:
            await mapek.close()


async def test_what_agents_say_last_is_heard():
    async with Lab(pair(2)) as lab:
        mapek = Mapek("fast")
        await mapek.open(lab)
        pids = [pid for agent in mapek.agents.values() for pid in descendants(agent.pid)]
        await mapek.close()
        assert {agent.events[-1].kind for agent in mapek.agents.values()} == {"stopped"}
        assert all(agent.unreadable == 0 for agent in mapek.agents.values())
        assert not any(descendants(pid) for pid in pids)
        await mapek.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_agents_go_with_a_killed_lab(how):
    lab = subprocess.Popen([sys.executable, "-c", LAB], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert lab.stdout is not None
    pids = [int(word) for word in lab.stdout.readline().split()]
    assert len(pids) == 2, lab.communicate()
    tree = [pid for agent in pids for pid in descendants(agent)]
    lab.send_signal(how)
    lab.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while any(map(descendants, tree)) and time.monotonic() < deadline:
        os.sched_yield()
    assert not any(map(descendants, tree))
    assert [remain for remain in remains() if remain.owner.startswith(f"{lab.pid}:")] == []


async def test_cancelled_while_agents_start():
    async with Lab(pair(2)) as lab:
        mapek = Mapek("fast")
        task = asyncio.create_task(mapek.open(lab))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await mapek.close()
        assert not any(agent.running for agent in mapek.agents.values())
