"""psi under pressure that the test makes itself; the oracle is the kernel's own files."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from mapek.knowledge import check_frame
from mapek.sensors.psi import SCHEMA, Psi
from tests.netns.sensors.neighbour import Node, topology

pytestmark = pytest.mark.needs("psi")

FILL = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
input()
while True:
    for _ in range(48):
        os.write(fd, bytes(1 << 20))
    os.lseek(fd, 0, os.SEEK_SET)
"""
SELDOM = 0.1
"""The kernel weighs each CPU by whole jiffies since the last look: who looks again within one loses what stalled."""
SPIN = "print(flush=True)\nwhile True: pass"


def oracle(path: str | Path) -> dict[str, int]:
    """Share to microseconds, as the file has it now."""
    return {m[1]: int(m[2]) for m in re.finditer(r"(\w+) avg.* total=(\d+)", Path(path).read_text())}


def total(frame, resource, share, row=0):
    """One counter of a row."""
    labels = (("resource", resource), ("share", share))
    (column,) = [k for k, metric in enumerate(frame.schema.counters) if metric.labels == labels]
    return int(frame.counters[row, column])


@contextmanager
def hogs(count, cgroup=None):
    """Processes that spin on one CPU; in a cgroup if one is given."""
    with ExitStack() as life:
        for _ in range(count):
            one = subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE)
            life.callback(lambda p=one: (p.kill(), p.wait(), p.stdout.close()))
            one.stdout.readline()
            os.sched_setaffinity(one.pid, {0})
            if cgroup is not None:
                (cgroup / "cgroup.procs").write_text(str(one.pid))
        yield


@pytest.fixture
def cgroup():
    """A cgroup v2 of the test's own, below the mount."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    mount = next((Path(one[1]) for one in mounts if one[2] == "cgroup2"), None)
    assert mount is not None, "needs(cgroup2) lied"
    made = mount / f"mapek-test-{os.getpid()}"
    made.mkdir()
    yield made
    if made.exists():
        made.rmdir()


@pytest.mark.kernel
async def test_the_totals_are_the_kernels():
    node, psi = Node(topology()), Psi({})
    try:
        await psi.open(node.surroundings)
        assert psi.status().up
        with hogs(3):
            first = psi.read()
            # `cpu some` of the whole system grows while more want to run than there are CPUs
            await node.until(
                lambda: total(psi.read(), "cpu", "some") > total(first, "cpu", "some") + 200_000, 20, SELDOM
            )
            for resource in ("cpu", "memory", "io"):
                before = oracle(f"/proc/pressure/{resource}")
                frame = psi.read()
                after = oracle(f"/proc/pressure/{resource}")
                for share, least in before.items():
                    assert least <= total(frame, resource, share) <= after[share], (resource, share)
        check_frame(frame)
        assert frame.valid.tolist() == [True]
        assert ((frame.gauges >= 0) & (frame.gauges <= 1)).all()
        assert set(frame.schema.counters) <= set(SCHEMA.counters)
        shares = {(dict(m.labels)["resource"], dict(m.labels)["share"]) for m in frame.schema.counters}
        assert shares == {
            (path.name, share) for path in Path("/proc/pressure").iterdir() for share in oracle(path)
        }
    finally:
        await node.close(psi)


async def test_the_averages_are_the_kernels():
    """Read between two readings of the file that agree, so that no update of the kernel lies between."""
    node, psi = Node(topology()), Psi({})

    def agree():
        before = Path("/proc/pressure/cpu").read_text()
        frame = psi.read()
        if re.sub("total=.*", "", before) != re.sub("total=.*", "", Path("/proc/pressure/cpu").read_text()):
            return False
        told = [float(x) / 100 for x in re.findall(r"avg\d+=([\d.]+)", before.splitlines()[0])]
        assert frame.gauges[0, :3] == pytest.approx(told)
        return any(told)

    try:
        await psi.open(node.surroundings)
        with hogs(3):
            await node.until(agree, 20, SELDOM)
    finally:
        await node.close(psi)


async def test_triggers_fire():
    """Windows of whole 2 s: also where root lacks CAP_SYS_RESOURCE. Two triggers, each tells of itself."""
    quiet, loud = "memory full 2000000 2000000", "cpu some 20000 2000000"
    node, psi = Node(topology()), Psi({"triggers": [quiet, loud]})
    try:
        await psi.open(node.surroundings)
        assert psi.status().degraded == ()
        with hogs(3):
            await node.heard("psi.pressure", 2, 20)
        first, second = (one for one in node.events if one.kind == "psi.pressure")
        assert str(first.entity) == "service /"
        assert {**first.fields, "total_us": 0} == {
            "resource": "cpu", "share": "some", "threshold_us": 20_000, "window_us": 2_000_000, "total_us": 0
        }  # fmt: skip
        assert second.fields["total_us"] - first.fields["total_us"] >= 20_000
        assert second.time_ns - first.time_ns >= 1_800_000_000, "the kernel tells once in a window"
        assert psi.status().counts["fired"] == 2
    finally:
        await node.close(psi)


async def test_after_close_nothing_fires():
    """While a second one, which stays open, hears of the same pressure."""
    node, other = Node(topology()), Node(topology())
    triggers = {"triggers": ["cpu some 20000 2000000"]}
    psi, witness = Psi(triggers), Psi(triggers)
    try:
        await psi.open(node.surroundings)
        await witness.open(other.surroundings)
        await psi.close()
        assert psi.read() is None
        with hogs(3):
            await other.heard("psi.pressure", 2, 20)
        assert node.events == []
    finally:
        await node.close(psi)
        await other.close(witness)


@pytest.mark.needs("cgroup2")
async def test_a_cgroup_gone_and_back(cgroup):
    name, held = cgroup.name, len(os.listdir("/proc/self/fd"))
    node = Node(topology())
    psi = Psi({"cgroups": [name], "triggers": [f"cpu some 20000 2000000 {name}"]})
    try:
        await psi.open(node.surroundings)
        assert psi.status().degraded == ()
        for round_ in (1, 2):
            with hogs(2, cgroup):
                event = await node.heard("psi.pressure", round_, 20)
                before = oracle(cgroup / "cpu.pressure")
                frame = psi.read()
                after = oracle(cgroup / "cpu.pressure")
            assert str(event.entity) == f"service {name}"
            assert frame.valid.tolist() == [True, True]
            assert before["some"] <= total(frame, "cpu", "some", 1) <= after["some"]
            if round_ == 1:
                await removed(cgroup)
                frame = psi.read()
                check_frame(frame)
                assert frame.valid.tolist() == [True, False]
                assert np.isnan(frame.gauges[1]).all()
                assert any(f"{name}: the cgroup is gone" in word for word in psi.status().degraded)
                cgroup.mkdir()
                assert psi.read().valid.tolist() == [True, True]
                await node.settled()
                assert psi.status().degraded == ()
                node.events[:] = [one for one in node.events if one.kind == "psi.pressure"][:1]
    finally:
        await node.close(psi)
    assert len(os.listdir("/proc/self/fd")) == held


async def removed(cgroup: Path) -> None:
    """Take a cgroup away; a process that was killed leaves it a little later."""
    async with asyncio.timeout(5):
        while True:
            try:
                return cgroup.rmdir()
            except OSError:
                await asyncio.sleep(0.01)


async def test_a_cgroup_that_never_was():
    node, psi = Node(topology()), Psi({"cgroups": ["no.such"], "triggers": ["io some 1 2000000 no.such"]})
    try:
        await psi.open(node.surroundings)
        assert psi.status().up
        assert len(psi.status().degraded) == 1
        assert psi.read().valid.tolist() == [True, False]
    finally:
        await node.close(psi)


@pytest.mark.needs("memcg_v1")
async def test_memory_pressure(tmp_path):
    """A child that writes through more than its memory cgroup may hold waits for reclaim."""
    limited = Path("/sys/fs/cgroup/memory") / f"mapek-test-{os.getpid()}"
    limited.mkdir()
    node, psi = Node(topology()), Psi({})
    child = None
    try:
        (limited / "memory.limit_in_bytes").write_text(str(12 << 20))
        child = subprocess.Popen([sys.executable, "-c", FILL, str(tmp_path / "large")], stdin=subprocess.PIPE)
        (limited / "cgroup.procs").write_text(str(child.pid))
        await psi.open(node.surroundings)
        first = total(psi.read(), "memory", "some")
        child.stdin.write(b"\n")
        child.stdin.flush()
        await node.until(lambda: total(psi.read(), "memory", "some") > first, 20, SELDOM)
        assert total(psi.read(), "memory", "some") <= oracle("/proc/pressure/memory")["some"]
    finally:
        await node.close(psi)
        if child is not None:
            child.kill()
            child.wait()
            child.stdin.close()
        await removed(limited)
