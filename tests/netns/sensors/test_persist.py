"""What is kept: an agent that is killed or stops, the next one, a newer object, and whoever is in the way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mapek.bpf import pins, read_xdp
from tests.netns.bpf.wires import udp
from tests.netns.sensors.keeping import Agent, Traffic, agent, remove_pins
from tests.netns.sensors.wires import Wire, run

pytestmark = [pytest.mark.kernel, pytest.mark.needs("bpffs")]
UDP4 = "receive_packets,ipv4,udp,no"
OPTIONS = {"interfaces": ["near"], "persist": True}


@pytest.fixture
def quiet(wire: Wire) -> Iterator[Wire]:
    for name in ("near", "far"):
        run(f"sysctl -qw net.ipv6.conf.{name}.disable_ipv6=1")
    try:
        yield wire
    finally:
        remove_pins()


def place(sensor: str = "xdp_counter", interface: str = "near") -> pins.Place:
    (folder,) = pins.agents(pins.root())
    return pins.Place(folder, sensor, interface)


def map_ids(one: pins.Place) -> dict[str, int]:
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
