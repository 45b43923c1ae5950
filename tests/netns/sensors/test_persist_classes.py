"""tc_classifier's classes from one agent to the next: the same slots, or none."""

from __future__ import annotations

import pytest

from mapek.bpf import pins
from tests.netns.bpf.wires import udp
from tests.netns.sensors.keeping import Agent, Traffic, agent
from tests.netns.sensors.wires import on_tc

pytestmark = [pytest.mark.needs("bpffs", "tcx")]
CLASSES = {"tcp": "protocol=tcp", "udp": "protocol=udp", "icmp": "protocol=icmp"}
OPTIONS = {"interfaces": ["near"], "persist": True, "classes": CLASSES}


def udp_packets(one: Agent) -> int:
    return one.rows()["near"]["packets_packets,udp,ingress"]


def test_counts_go_on_in_both_directions(quiet, tmp_path):
    with Traffic(udp()) as traffic:
        with agent("tc_classifier", OPTIONS, tmp_path) as first:
            assert first.said["degraded"] == []
            traffic.start()
            traffic.go_on()
            first.ask()
            first.kill()
        traffic.go_on()
        assert on_tc("near") == (1, 1)
        for ending in (Agent.kill, Agent.stop):
            with agent("tc_classifier", OPTIONS, tmp_path) as next_one:
                assert next_one.said["degraded"] == []
                traffic.go_on()
                ending(next_one)
        # The same classes in another order would be counted in each other's slots.
        turned = {**OPTIONS, "classes": dict(reversed(CLASSES.items()))}
        with agent("tc_classifier", turned, tmp_path) as refused:
            assert "classes is icmp udp tcp, was tcp udp icmp" in str(refused.said["error"])
            refused.stop()
        with agent("tc_classifier", OPTIONS, tmp_path) as last:
            traffic.go_on()
            traffic.stop()
            assert udp_packets(last) == traffic.sent
            # Other classes than configured: the next agent begins anew, and it is said.
            said = last.ask("classify", quic="protocol=udp")["degraded"]
            assert "its classes are not those of the configuration" in str(said)
            assert on_tc("near") == (1, 1)
            last.stop()
    assert on_tc("near") == (0, 0)
    assert not pins.root().exists()
