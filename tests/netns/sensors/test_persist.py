"""What is kept: an agent that is killed or stops, the next one, a newer object, and whoever is in the way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mapek.bpf import pins, read_xdp
from mapek.bpf.place import Place
from tests.netns.bpf.wires import udp
from tests.netns.sensors.keeping import Agent, Traffic, agent

pytestmark = [pytest.mark.kernel, pytest.mark.needs("bpffs")]
UDP4 = "receive_packets,ipv4,udp,no"
OPTIONS = {"interfaces": ["near"], "persist": True}


def place(sensor: str = "xdp_counter", interface: str = "near") -> Place:
    (folder,) = pins.agents(pins.root())
    return Place(folder, sensor, interface)


def map_ids(one: Place) -> dict[str, int]:
    found = one.open()
    assert found is not None
    ids = {name: map_.id for name, map_ in found.maps.items()}
    found.close()
    return ids


@pytest.mark.parametrize("ending", [Agent.kill, Agent.stop])
def test_nothing_is_missed_between_two_agents(quiet, tmp_path, ending):
    with Traffic(udp()) as traffic, agent("xdp_counter", OPTIONS, tmp_path) as first:
        assert first.said["degraded"] == []
        link = read_xdp(quiet.near)
        traffic.start()
        traffic.go_on()
        first.ask()
        ids = map_ids(place())
        ending(first)
        traffic.go_on()
        # The chain's program and link are those of the first agent, and count.
        assert read_xdp(quiet.near) == link
        for last in (Agent.kill, Agent.stop):
            with agent("xdp_counter", OPTIONS, tmp_path) as next_one:
                traffic.go_on()
                assert next_one.said["degraded"] == []
                assert map_ids(place()) == ids
                last(next_one)
                traffic.go_on()
        with agent("xdp_counter", OPTIONS, tmp_path) as third:
            traffic.go_on()
            traffic.stop()
            assert third.rows()["near"][UDP4] == traffic.sent


def release(*arguments: str) -> tuple[int, list[dict[str, str]]]:
    done = subprocess.run(
        [sys.executable, "-m", "mapek", "release", "--json", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


@pytest.mark.host
def test_release_names_it_and_removes_only_what_is_ours(quiet, tmp_path):
    with agent("xdp_counter", OPTIONS, tmp_path) as running:
        running.ask()
        code, found = release()
        assert code == 1
        assert [(one["interface"], one["kind"]) for one in found] == [
            ("near", "chain"), ("near", "xdp_counter state"),
        ]  # fmt: skip
        assert all(f"pid {running.process.pid}" in one["keep"] for one in found)
        for lock in Path("/run/mapek").glob(f"{pins.root().name}-*.lock"):
            lock.unlink()  # as for an agent in a container, which has a /run of its own
        _, found = release()
        assert all(f"in use by python (pid {running.process.pid})" in one["keep"] for one in found), found
        running.stop()
    kept = place()
    (kept.path / "foreign").mkdir()
    code, found = release("--dry-run")
    assert (code, [one["keep"] for one in found]) == (1, ["", "it is not of our making"])
    assert read_xdp(quiet.near) is not None
    (kept.path / "foreign").rmdir()
    assert release("--dry-run")[0] == 0
    assert kept.exists()
    assert release()[0] == 0
    assert read_xdp(quiet.near) is None
    assert not pins.root().exists()
    assert release() == (0, [])


def test_a_start_that_was_refused_leaves_nothing(quiet, tmp_path):
    """Nothing was read: no loop ran with it."""
    agent_made = (
        "import mapek.sensors.keeper as k; k.Keeper.serve = lambda self: None"  # the loop that never came
    )
    with agent("xdp_counter", OPTIONS, tmp_path, agent_made) as running:
        running.stop()
    assert read_xdp(quiet.near) is None
    assert not pins.root().exists()


@pytest.mark.host
def test_without_persist_nothing_is_kept_and_what_was_goes(quiet, tmp_path):
    with agent("xdp_counter", OPTIONS, tmp_path) as running:
        running.ask()
        running.kill()
    with agent("xdp_counter", {**OPTIONS, "persist": False}, tmp_path) as running:
        running.ask()
        assert list(pins.agents(pins.root())) == []
        running.stop()
    assert read_xdp(quiet.near) is None


@pytest.mark.host
def test_the_second_agent_says_who_has_it_and_touches_nothing(quiet, tmp_path):
    with Traffic(udp()) as traffic, agent("xdp_counter", OPTIONS, tmp_path / "a") as first:
        traffic.start()
        link = read_xdp(quiet.near)
        for state, options in (
            ("a", OPTIONS), ("b", OPTIONS), ("b", {**OPTIONS, "persist": False}),
        ):  # fmt: skip
            with agent("xdp_counter", options, tmp_path / state) as second:
                assert f"the agent with pid {first.process.pid} has it" in str(second.said["error"])
                assert "\n" not in str(second.said["error"])
                second.stop()
        assert read_xdp(quiet.near) == link
        traffic.go_on()
        traffic.stop()
        assert first.rows()["near"][UDP4] == traffic.sent
        assert [one.name for one in pins.agents(pins.root())] == [place().agent.name]


@pytest.mark.host
def test_two_that_start_at_once(quiet, tmp_path):
    """One of them has it, whichever; the lock of the dead is no obstacle."""
    for _ in range(3):
        both = [Agent("xdp_counter", OPTIONS, tmp_path / str(k), wait=False) for k in range(2)]
        try:
            said = [one.heard() for one in both]
            assert sum("error" in one for one in said) == 1, said
        finally:
            for one in both:
                one.kill()
