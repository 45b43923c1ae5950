"""One agent's life on a node: refusals in one line, what it leaves behind, and who is there already."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from mapek.bpf import ObjectSpec, attach_xdp, load, object_path, read_xdp
from mapek.simulations.agent import configuration, key_name
from mapek.simulations.lab import Lab
from mapek.simulations.topology import pair
from tests.netns.agent.nodes import one_agent

KEY = {key_name("a", "b"): "ab" * 32}


async def xdp(lab, link="l0"):
    """(mode, program id) on an interface of node a, or None."""
    index = next(i for i, name in lab.nodes["a"].interfaces.items() if name == link)
    found = await lab.nodes["a"].namespace.run(lambda: read_xdp(index))
    return found and (found.mode, found.program_id)


async def start_badly(lab, extra="", prefix=(), toml=None):
    """(exit status, its words) of an agent that should not come up."""
    node = lab.nodes["a"]
    folder = node.namespace.files
    (folder / "mapek-keys").mkdir(mode=0o700, exist_ok=True)
    for name, key in KEY.items():
        (folder / "mapek-keys" / name).touch(mode=0o600)
        (folder / "mapek-keys" / name).write_text(key)
    (folder / "mapek").mkdir(mode=0o700, exist_ok=True)
    (folder / "mapek.toml").write_text(toml or configuration(lab, node, "fast", extra=extra))
    process = await node.namespace.start(
        [*prefix, sys.executable, "-m", "mapek", "run", "-c", "/run/mapek.toml"]
    )
    out, words = await asyncio.wait_for(process.communicate(), 20)
    lines = [line for line in words.decode().splitlines() if line]
    # how long something took on a machine that others use too is no part of the refusal
    return process.returncode, [line for line in lines if "blocked the event loop" not in line], out.decode()


def pins(lab):
    root = Path(f"/proc/{lab.nodes['a'].namespace.pid}/root/sys/fs/bpf")
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.name in ("link", "chain"))


@pytest.mark.parametrize(("pin", "stays"), [("auto", True), ("no", False)])
async def test_what_a_killed_agent_leaves(pin, stays):
    async with Lab(pair(2)) as lab:
        async with one_agent(lab, extra=f'[sensors.link_watch]\npin = "{pin}"\n') as agent:
            before = await xdp(lab)
            assert before is not None
            assert before[0] == "native"
            os.kill(agent.pid, signal.SIGKILL)
            while agent.running:  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            while (await xdp(lab) is not None) != stays:  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0.01)
        assert bool(pins(lab)) == stays


async def test_a_successor_takes_over_without_a_gap():
    async with Lab(pair(2)) as lab:
        async with one_agent(lab):
            held = pins(lab)
            await asyncio.sleep(0.5)  # a loop that has run, not one that was refused
        assert pins(lab) == held
        left = await xdp(lab)
        assert left is not None
        async with one_agent(lab) as agent:
            assert await xdp(lab) is not None
            assert pins(lab) == held
            assert agent.running


async def test_a_foreign_program():
    async with Lab(pair(2)) as lab:
        namespace = lab.nodes["a"].namespace
        index = next(i for i, name in lab.nodes["a"].interfaces.items() if name == "l1")
        with load(ObjectSpec.read(object_path("empty"))) as loaded:
            link = await namespace.run(lambda: attach_xdp(loaded.programs["empty"], index))
            try:
                theirs = await xdp(lab, "l1")
                only_xdp = '[sensors.link_watch]\nmode = "native"\n'
                toml = configuration(lab, lab.nodes["a"], "fast", extra=only_xdp)
                status, words, _ = await start_badly(lab, toml=toml)
                assert status == 1
                (line,) = words
                assert "l1" in line
                assert f"id {theirs[1]}" in line
                assert await xdp(lab, "l1") == theirs
                assert await xdp(lab, "l0") is None
                assert pins(lab) == []
            finally:
                link.close()


async def test_no_such_interface():
    async with Lab(pair(2)) as lab:
        toml = configuration(lab, lab.nodes["a"], "fast").replace('interface = "l1"', 'interface = "l7"')
        status, words, _ = await start_badly(lab, toml=toml)
        assert status == 1
        (line,) = words
        assert "l7: there is no such interface; check the name" in line
        assert await xdp(lab) is None


async def test_no_privilege():
    """Nothing of its works without CAP_NET_ADMIN; what goes on without others is in test_degradation."""
    missing = "CAP_NET_ADMIN"
    async with Lab(pair(2)) as lab:
        drop = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
        status, words, _ = await start_badly(lab, prefix=drop)
        assert status == 1
        assert words
        assert all(missing in line or "journal" in line for line in words if "missing" in line)
        assert any(missing in line for line in words)
        assert not any("Traceback" in line for line in words)
        assert await xdp(lab) is None


async def test_only_objects_that_the_rules_of_the_configuration_allow_are_loaded():
    async with Lab(pair(2)) as lab:
        (lab.nodes["a"].namespace.files / "rules.toml").write_text(f'keys = ["{"ab" * 32}"]\n')
        status, words, _ = await start_badly(lab, '[bpf]\nrules = "/run/rules.toml"\n')
        assert status == 1
        assert {line.split(":")[0] for line in words} == {"mapek"}
        refused = [line for line in words if "it has no signature" in line and ".o.sig" in line]
        assert len(refused) == 2, words  # link_watch and xdp_counter
        assert await xdp(lab) is None


async def test_two_agents_with_one_state_dir():
    async with Lab(pair(2)) as lab, one_agent(lab) as first:
        before = await xdp(lab)
        status, words, _ = await start_badly(lab)
        assert status != 0
        assert len(words) == 1, words
        assert first.running
        assert await xdp(lab) == before


async def test_an_agent_without_its_neighbour_is_ready_and_says_so():
    async with Lab(pair(2)) as lab, one_agent(lab) as agent:
        async with asyncio.timeout(8):
            while not any(event.kind == "symptom" for event in agent.events):  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0.01)
        kinds = {event.fields.get("kind") for event in agent.events if event.kind == "symptom"}
        assert kinds <= {"peer_never_seen"}
