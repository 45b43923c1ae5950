"""An agent that is killed at each step of keeping and adopting: the next one has all that was counted before."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from mapek.bpf import read_xdp
from tests.netns.bpf.wires import udp
from tests.netns.sensors.keeping import Traffic, agent, remove_pins
from tests.netns.sensors.wires import on_tc

pytestmark = [pytest.mark.needs("bpffs", "tcx"), pytest.mark.timeout(400)]
UDP4 = "receive_packets,ipv4,udp,no"

KILL = """
import os, signal
from mapek.bpf import syscall
left = [{steps}]
def guard(call, matters=lambda *_: True):
    def guarded(*given, **named):
        if matters(*given):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return call(*given, **named)
    return guarded
# Changes of maps, pins, links made, updated and detached; and what is done to files.
syscall.bpf_at = guard(syscall.bpf_at, lambda command, *_: command in (2, 6, 28, 29, 34))
for name in ("mkdir", "rename", "unlink", "rmdir"):
    setattr(os, name, guard(getattr(os, name)))
"""
OGM = (
    b"\xff" * 6 + b"\x02\0\0\0\0\x09" + b"\x43\x05\0\x0f\x32\0" + b"\0\0\0\x05"
    + b"\x02\0\0\0\0\x09" * 2 + b"\0\xff\0\0"
).ljust(60, b"\0")  # fmt: skip
SENSORS: Mapping[str, tuple[Mapping[str, object], bytes, str, tuple[str, ...]]] = {
    "xdp_counter": ({}, udp(), "near", (UDP4,)),
    "batadv": (
        {"mode": "tc"}, OGM, "02:00:00:00:00:09/near", ("broadcasts_received_", "broadcasts_repeated_"),
    ),
}  # fmt: skip


def gone(near: int) -> bool:
    return read_xdp(near) is None and on_tc("near") == (0, 0)


@pytest.mark.parametrize("sensor", SENSORS)
@pytest.mark.parametrize("before", [False, True], ids=["first", "next"])
def test_at_each_step(quiet, tmp_path, sensor, before):
    """`before`: an agent had it, and traffic goes on all the time; else the first one that ever starts is killed."""
    extra, frame, entity, columns = SENSORS[sensor]
    options = {**extra, "interfaces": ["near"], "persist": True}

    def counted(one) -> int:
        row = one.rows().get(entity, {})
        return sum(row.get(name, 0) for name in columns)

    steps, killed = 0, 0
    while True:
        with Traffic(frame) as traffic:
            if before:
                with agent(sensor, options, tmp_path) as first:
                    first.ask()
                    traffic.start()
                    traffic.go_on()
                    first.kill()
            with agent(sensor, options, tmp_path, KILL.format(steps=steps)) as victim:
                survived = bool(victim.said)
                assert "error" not in victim.said
                victim.kill()
            killed += not survived
            with agent(sensor, options, tmp_path) as last:
                assert last.said.get("degraded") == [], f"after {steps} steps: {last.said}"
                if not before:
                    traffic.start()
                traffic.go_on()
                traffic.stop()
                assert counted(last) == traffic.sent, f"after {steps} steps"
                last.kill()
        remove_pins()
        assert gone(quiet.near), f"after {steps} steps"
        if survived:
            break
        steps += 1
    assert killed >= (3 if before else 6), "the steps were not seen"
