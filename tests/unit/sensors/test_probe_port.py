"""One loop, one port of probes: whoever was told one cannot be left behind with it."""

from __future__ import annotations

import pytest

from mapek.errors import ConfigError
from mapek.knowledge import Topology
from mapek.sensors.link_watch import LinkWatch
from mapek.sensors.probe_port import ProbePort
from mapek.testing.around import Around


def test_it_is_that_of_the_rfc_until_another_is_said():
    port = ProbePort()
    assert port.ask("mesh_filter") == 862
    port.say(862)
    with pytest.raises(
        ConfigError, match=r"link_watch: port: is 4000, and mesh_filter was .* spares 862; name link_"
    ):
        port.say(4000)
    assert port.ask("mesh_filter") == 862


def test_what_was_said_is_asked_for():
    port = ProbePort()
    port.say(4000)
    assert port.ask("mesh_filter") == 4000
    port.say(4000)


async def test_link_watch_says_it_before_anything_can_fail():
    around = Around(Topology("a", [], []))
    surroundings = around.surroundings()
    surroundings.shared(ProbePort).ask("mesh_filter")
    try:
        with pytest.raises(ConfigError, match="mesh_filter"):
            await LinkWatch({"port": 4000}).open(surroundings)
    finally:
        await around.end()
