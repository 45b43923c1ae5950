"""The agent as nobody, in the sandbox of its unit, on real links; and what it gives up where it is root."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mapek.bpf.capabilities import decode
from mapek.simulations.agent import AgentProcess, Mapek, configuration, key_name
from mapek.simulations.lab import Lab
from mapek.simulations.topology import pair
from tests.netns.agent.nodes import Agents, one_agent
from tests.support.machine import patience

ROOT = Path(__file__).parents[3]
UNIT = ROOT / "packaging/mapek.service"
SANDBOX = (sys.executable, str(ROOT / "tests/support/sandbox.py"))
CORE = ("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON")
KEY = {key_name("a", "b"): "ab" * 32}
LISTEN = "127.0.0.1:9464"


@asynccontextmanager
async def nobody(lab, node="a", capabilities=CORE, unit=False, extra="", environment=None):
    prefix = (*SANDBOX, ",".join(capabilities), *([str(UNIT)] if unit else []), "--")
    agent = AgentProcess(lab.nodes[node], prefix=prefix, environment=environment)
    toml = configuration(lab, lab.nodes[node], "fast", extra=extra, listen=LISTEN)
    await agent.open(toml, KEY, timeout=patience(30))
    try:
        yield agent
    finally:
        await agent.close()


MUTE = """
from mapek.bpf.inventory import programs
from mapek.contracts import Touchpoint


class Mute(Touchpoint):
    name = "mute"

    async def open(self, surroundings):
        programs()
"""


def threads(pid):
    """(uids, permitted capabilities, no_new_privs) of each thread."""
    found = []
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        lines = dict(line.split(":\t") for line in status.read_text().splitlines() if ":\t" in line)
        found.append((lines["Uid"].split(), decode(int(lines["CapPrm"], 16)), lines["NoNewPrivs"]))
    return found


async def settled(agent, allowed):
    """All threads hold no more than `allowed`: those that were at work when it let go end by themselves."""
    async with asyncio.timeout(patience(5)):
        while any(held - allowed for _, held, _ in threads(agent.pid)):  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.02)


async def health(lab, node="a"):
    def ask():
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", 9464, timeout=10)
        connection.request("GET", "/health")
        return json.load(connection.getresponse())

    return await lab.nodes[node].namespace.run(ask)


@pytest.mark.needs("systemd_analyze", "libseccomp")
async def test_as_nobody_in_the_sandbox_of_the_unit_it_heals():
    async with Lab(pair(2)) as lab:
        quick = "[policies.link_failover]\nhold_down_s = 0.3\n"
        async with nobody(lab, unit=True, extra=quick) as a, one_agent(lab, "b", extra=quick) as b:
            both = Agents(lab, Mapek("fast"))
            both.mapek.agents.update(a=a, b=b)
            async with asyncio.timeout(patience(10)):
                while {await both.way("a"), await both.way("b")} != {"l0"}:  # noqa: ASYNC110 - no event tells of it
                    await asyncio.sleep(0.02)
            await both.mapek.at_rest(patience(10))
            document = await health(lab)
            assert document["status"] == "ok", document
            assert set(document["privileges"]["held"]) == set(CORE)
            await settled(a, set(CORE))
            assert {tuple(uids) for uids, _, _ in threads(a.pid)} == {("65534",) * 4}
            assert {flag for _, _, flag in threads(a.pid)} == {"1"}
            # The reflector is pinned where the unit lets it be.
            inside = Path(f"/proc/{a.pid}/root/sys/fs/bpf/mapek")
            assert [one.name for one in inside.rglob("link")] == ["link", "link"]
            assert os.statvfs(f"/proc/{a.pid}/root/usr").f_flag & os.ST_RDONLY
            lab.wires["l0"].fault()
            await both.until(lambda: both.said("a", "incident", state="recovered"))
            event = both.said("a", "incident", state="recovered")[0].fields
            assert event["kind"] == "path_dead"
            assert event["acted_ns"] <= event["recovered_ns"]
            assert await both.way("a") == "l1"
            journal = lab.nodes["a"].namespace.files / "mapek/journal.sqlite"
            assert journal.stat().st_uid == 65534
            assert journal.stat().st_mode & 0o077 == 0
        assert [word for word in a.words() if "blocked the event loop" not in word] == []


@pytest.mark.parametrize("missing", CORE)
async def test_without_one_of_them_it_says_which_and_lives(missing):
    extra = '[sensors.psi]\n[sensors.link_watch]\npin = "no"\n'
    held = tuple(name for name in CORE if name != missing)
    async with Lab(pair(2)) as lab:
        agent = AgentProcess(lab.nodes["a"], prefix=(*SANDBOX, ",".join(held), "--"))
        toml = configuration(lab, lab.nodes["a"], "fast", extra=extra, listen=LISTEN)
        await agent.open(toml.replace("[loop]", "[loop]\nwait = true"), KEY, timeout=patience(30))
        try:
            document = await health(lab)
            assert document["sensors"]["psi"]["up"]
            (words,) = document["sensors"]["link_watch"]["degraded"]
            assert f"{missing} missing" in words
            # Only the netlink touchpoint needs one of them alone.
            assert document["sensors"]["netlink"]["up"] == (missing != "CAP_NET_ADMIN")
            ticks = len(agent.events)
            await asyncio.sleep(1.5)
            assert agent.running
            assert len(agent.events) >= ticks
            assert (await health(lab))["status"] == "degraded"
        finally:
            await agent.close()


async def test_root_keeps_what_the_sensors_need_and_nothing_else():
    async with Lab(pair(2)) as lab, one_agent(lab) as agent:
        limited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] != resource.RLIM_INFINITY
        allowed = {*CORE, *(["CAP_IPC_LOCK"] if limited else [])}
        await settled(agent, allowed)
        assert set(CORE) <= set().union(*(held for _, held, _ in threads(agent.pid)))
        assert {flag for _, _, flag in threads(agent.pid)} == {"1"}


async def test_a_plugin_that_names_no_capability_is_told_why_it_has_none(tmp_path):
    (tmp_path / "mute.py").write_text(MUTE)
    extra = f'[plugins]\ndirectory = "{tmp_path}"\n[sensors.mute]\n'
    async with Lab(pair(2)) as lab, one_agent(lab, extra=extra) as agent:
        said = agent.words()
    assert any("CAP_SYS_ADMIN missing" in word for word in said), said
    assert any("so that CAP_SYS_ADMIN went before it was opened; let its" in word for word in said), said


async def test_a_key_file_of_another_user_is_refused_in_one_line():
    async with Lab(pair(2)) as lab:
        folder = lab.nodes["a"].namespace.files
        (folder / "theirs").touch(mode=0o600)
        (folder / "theirs").write_text("ab" * 32)
        os.chown(folder / "theirs", 12345, 12345)
        toml = configuration(lab, lab.nodes["a"], "fast").replace("/run/mapek-keys/a-b.key", "/run/theirs")
        agent = AgentProcess(lab.nodes["a"], prefix=(*SANDBOX, ",".join(CORE), "--"))
        with pytest.raises(Exception, match=r'key_file: cannot open "/run/theirs": Permission denied;'):
            await agent.open(toml, KEY, timeout=patience(30))


async def test_a_port_of_root_is_refused_in_one_line():
    async with Lab(pair(2)) as lab:
        agent = AgentProcess(lab.nodes["a"], prefix=(*SANDBOX, ",".join(CORE), "--"))
        toml = configuration(lab, lab.nodes["a"], "fast", listen="127.0.0.1:80")
        with pytest.raises(Exception, match=r"127.0.0.1:80: ports below 1024 need CAP_NET_BIND_SERVICE"):
            await agent.open(toml, KEY, timeout=patience(30))
