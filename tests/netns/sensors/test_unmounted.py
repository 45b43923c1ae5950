"""Without a bpffs and tracefs (in a mount namespace of its own): one clear line, or a degradation that says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# Runs in namespaces of its own; prints what each step gave as JSON.
INSIDE = """
import asyncio, json, os, subprocess, sys
from ipaddress import ip_address

mounts = [line.split()[1] for line in open("/proc/mounts") if line.split()[2] in ("bpf", "tracefs", "debugfs")]
for place in sorted(mounts, reverse=True):
    subprocess.run(["umount", "-l", place], check=True)
assert not [line for line in open("/proc/mounts") if line.split()[2] in ("bpf", "tracefs", "debugfs")]
for command in ("ip link add near type veth peer name far", "ip link set near up", "ip link set far up",
                "ip addr add 10.0.0.1/24 dev near"):
    subprocess.run(command.split(), check=True)

from mapek.bpf import tracing
from mapek.clock import RealClock
from mapek.contracts import Surroundings
from mapek.errors import MapekError
from mapek.knowledge import Knowledge, Path, Peer, Topology
from mapek.sensors.link_watch import LinkWatch

def caught(work):
    try:
        work()
    except MapekError as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]

async def opened(pin):
    path = Path("b", "near", ip_address("10.0.0.2"), ip_address("10.0.0.1"))
    topology = Topology("a", [], [Peer("b", (), (), (path,), bytes(32))])
    clock = RealClock()
    around = Surroundings(lambda event: None, clock, Knowledge(topology), asyncio.ensure_future)
    watch = LinkWatch({"pin": pin, "interval_ms": 1000})
    try:
        await watch.open(around)
        status = watch.status()
        return ["opened", *status.degraded, *status.attached.values()]
    except MapekError as error:
        return [type(error).__name__, str(error)]
    finally:
        await watch.close()
        clock.close()

print(json.dumps({
    "pin=yes": asyncio.run(opened("yes")),
    "pin=auto": asyncio.run(opened("auto")),
    "tracefs": caught(tracing.tracefs),
    "format": caught(lambda: tracing.read_event("tcp", "tcp_send_reset", "format")),
}))
"""


@pytest.fixture(scope="module")
def told() -> dict[str, list[str]]:
    command = ["unshare", "--mount", "--net", "--propagation", "private", sys.executable, "-c", INSIDE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_a_pin_that_was_asked_for_is_refused(told: dict[str, list[str]]):
    kind, message = told["pin=yes"]
    assert kind == "DegradedError"
    assert "/sys/fs/bpf is no writable bpffs" in message
    assert "mount -t bpf bpf /sys/fs/bpf" in message
    assert "\n" not in message


@pytest.mark.kernel
def test_a_pin_that_was_not_asked_for_is_done_without(told: dict[str, list[str]]):
    kind, *said = told["pin=auto"]
    assert kind == "opened"
    assert "the reflector does not outlive this agent: /sys/fs/bpf is no writable bpffs" in said
    assert any(word.startswith("xdp native, egress") for word in said)


@pytest.mark.parametrize("what", ["tracefs", "format"])
def test_tracepoints_name_what_is_to_be_mounted(told: dict[str, list[str]], what: str):
    kind, message = told[what]
    assert kind == "FeatureError"
    assert "mount -t tracefs tracefs /sys/kernel/tracing" in message
    assert "\n" not in message


OURS = """
mount -t bpf bpf /sys/fs/bpf
chmod 0755 /sys/fs/bpf
[ -z "$1" ] || install -d -m 0700 -o "$1" /sys/fs/bpf/mapek
exec setpriv --reuid 65534 --regid 65534 --clear-groups "$2" -c "$3"
"""
ASKED = """
from mapek.bpf import host, pins
(found,) = [one for one in host.conditions() if one.name == "bpffs"]
print(found.answer.value, "|", pins.trouble(), "|", found.do)
"""


@pytest.mark.needs("bpffs")
@pytest.mark.parametrize(
    ("owner", "answer", "trouble", "do"),
    [
        ("", "no", "/sys/fs/bpf is no writable bpffs", "install -d -m 0700 -o 65534 /sys/fs/bpf/mapek"),
        ("65534", "yes", "", ""),
        ("1", "no", "/sys/fs/bpf/mapek belongs to user 1", "install -d"),
    ],
)
def test_a_folder_that_somebody_made_for_us_is_enough(owner: str, answer: str, trouble: str, do: str):
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", OURS, "sh", owner, sys.executable, ASKED],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [part.strip() for part in done.stdout.split("|")]
    assert found[:2] == [answer, trouble]
    assert found[2].startswith(do)
    assert (found[2] == "") == (do == "")
