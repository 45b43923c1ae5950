"""syscall_latency on real calls: every variant against what a process knows to have called."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapek.bpf import ArrayMap
from mapek.clock import RealClock
from mapek.contracts import Surroundings
from mapek.errors import AttachError, FeatureError
from mapek.knowledge import Knowledge
from mapek.model import Event, Frame
from mapek.sensors import syscall_latency
from mapek.sensors.cgroups import find_cgroups
from mapek.sensors.syscall_latency import SyscallLatency
from mapek.sensors.syscall_latency_histogram import bounds_ns, quantile
from mapek.sensors.syscall_latency_kernel import (
    ALL,
    CGROUP,
    ERRORS,
    FIRST_BUCKET,
    PROCESS,
    PROCESS_SET,
    SUM_NS,
    VARIANTS,
    Filter,
    Running,
    own_process,
    start,
)
from mapek.sensors.variants import missing
from mapek.testing.inputs import some_topology
from mapek.testing.touchpoints import check_touchpoint
from tests.netns.sensors.syscall_load import CALLS, SLOW_MS, SLOW_READS, load
from tests.support import machine

NAMES = tuple(CALLS)
NOBODY = 1 << 21
NEEDS = {"tp_btf": "btf", "task_storage": "btf", "kprobe": "kprobes"}
HERE = [
    pytest.param(one.name, marks=[pytest.mark.needs(NEEDS[one.name])] if one.name in NEEDS else [])
    for one in VARIANTS
    if one.name != "task_storage" or machine.kernel() >= (5, 13)
]


def calls(running: Running) -> dict[str, int]:
    return dict(zip(NAMES, running.read()[:, FIRST_BUCKET:].sum(axis=1).tolist(), strict=True))


def check(running: Running, wanted: dict[str, int], others: int = 0) -> int:
    """Assert that all was counted; returns how many reads were not.

    Only kprobe may miss some: without CONFIG_PREEMPTION there are as many instances of a return probe as CPUs, and
    who waits in a read of the whole machine holds one. Each process tells of its loss in its next call.
    """
    found, lost = calls(running), running.lost()
    short = wanted["read"] - found["read"]
    if running.choice.variant.name != "kprobe":
        assert set(lost.values()) == {0}
        assert short == 0
    assert 0 <= short <= lost["missed"] + 1 + others
    assert found == {**wanted, "read": found["read"]}
    return short


def none() -> dict[str, int]:
    return dict.fromkeys(NAMES, 0)


@contextmanager
def started(whose: Filter, variant: str, cgroup_fd: int = -1) -> Iterator[Running]:
    running = start(NAMES, whose, variant, cgroup_fd)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def cgroup() -> Iterator[Path]:
    path = Path(find_cgroups()) / f"mapek-test-{os.getpid()}"
    path.mkdir()
    try:
        yield path
    finally:
        for directory in (*path.iterdir(), path):
            if directory.is_dir():
                directory.rmdir()


@pytest.mark.kernel
def test_all_variants_see_the_same_calls() -> None:
    variants = [one.name for one in VARIANTS if not missing(one)]
    assert ("kprobe" in variants) == machine.has("kprobes")
    assert ("tp_btf" in variants) == machine.has("btf")
    with load() as one, ExitStack() as life:
        running = {name: life.enter_context(started(Filter(PROCESS, (one.pid,)), name)) for name in variants}
        for _ in range(3):
            one.run()
        # The read in which it was found is not counted; the two between the runs are.
        wanted = {name: 3 * count for name, count in CALLS.items()}
        wanted["read"] += 2
        short = {name: check(found, wanted) for name, found in running.items()}
        values = {name: found.read() for name, found in running.items()}
    slow = NAMES.index("read")
    reference = values[variants[0]]
    for variant, one_of_them in values.items():
        if short[variant]:
            continue
        assert one_of_them[slow, ERRORS] == 3 * SLOW_READS
        assert one_of_them[:, ERRORS].sum() == 3 * SLOW_READS
        for row, name in enumerate(NAMES):
            buckets = one_of_them[row, FIRST_BUCKET:]
            low = sum(bounds_ns(k)[0] * int(n) for k, n in enumerate(buckets))
            high = sum(bounds_ns(k)[1] * int(n) for k, n in enumerate(buckets) if n)
            assert low <= one_of_them[row, SUM_NS] < high
            # Each variant's programs run inside what the next one measures: medians are a bucket apart at most.
            mine, theirs = quantile(buckets, 0.5), quantile(reference[row, FIRST_BUCKET:], 0.5)
            assert mine[0] <= 2 * theirs[1], name
            assert theirs[0] <= 2 * mine[1], name
        # What blocks is longer than all that by orders of magnitude, and so lies in the same buckets.
        blocked = one_of_them[slow, FIRST_BUCKET:]
        np.testing.assert_array_equal(blocked[18:], reference[slow, FIRST_BUCKET:][18:])
        assert quantile(blocked, 0.5)[1] > SLOW_MS * 1e6


@pytest.mark.kernel
@pytest.mark.parametrize("variant", HERE)
def test_only_the_chosen_process_is_watched(variant: str) -> None:
    with load() as one, load() as other, started(Filter(PROCESS, (one.pid,)), variant) as running:
        other.run()
        assert calls(running) == none()
        one.run()
        check(running, CALLS)


@pytest.mark.parametrize("variant", HERE)
def test_a_set_of_processes_can_shrink(variant: str) -> None:
    with ExitStack() as life:
        one, two, other = (life.enter_context(load()) for _ in range(3))
        running = life.enter_context(started(Filter(PROCESS_SET, (one.pid, two.pid)), variant))
        for each in (one, two, other):
            each.run()
        check(running, {name: 2 * count for name, count in CALLS.items()}, others=1)
        running.forget(one.pid)
        for each in (one, two, other):
            each.run()
        # and the reads in which the two waited between their runs, of which the one's began when it was watched
        wanted = {name: 3 * count + 2 * (name == "read") for name, count in CALLS.items()}
        check(running, wanted, others=1)


@pytest.mark.kernel
@pytest.mark.needs("cgroup2")
@pytest.mark.parametrize("variant", HERE)
def test_a_cgroup_is_watched_with_all_below(variant: str, cgroup: Path) -> None:
    below = cgroup / "below"
    below.mkdir()
    fd = os.open(cgroup, os.O_RDONLY)
    try:
        with load() as inside, load() as outside, started(Filter(CGROUP), variant, fd) as running:
            (below / "cgroup.procs").write_text(str(inside.pid))
            outside.run()
            assert calls(running) == none()
            inside.run()
            check(running, CALLS)
    finally:
        os.close(fd)


@pytest.mark.parametrize("variant", HERE)
def test_all_means_all(variant: str) -> None:
    with load() as one, started(Filter(ALL), variant) as running:
        one.run()
        found = calls(running)
    assert all(found[name] >= count for name, count in CALLS.items() if name != "read")
    assert variant == "kprobe" or found["read"] >= CALLS["read"]


@pytest.mark.kernel
@pytest.mark.parametrize("variant", [one for one in HERE if one.values[0] != "task_storage"])
def test_a_killed_process_leaves_no_start_behind(variant: str) -> None:
    def begun(running: Running) -> int:
        slots = running.loaded.map("started_slots", ArrayMap)
        return int(np.count_nonzero(slots.items(value_dtype=np.uint64)[1][:, 0]))

    with ExitStack() as life:
        many = [life.enter_context(load()) for _ in range(3)]
        with started(Filter(PROCESS_SET, tuple(one.pid for one in many)), variant) as running:
            for one in many:
                one.run()
            assert begun(running) == len(many)
            for one in many:
                one.process.send_signal(signal.SIGKILL)
                one.process.wait()
            if variant == "kprobe":  # it may miss the return of a read: see check
                return
            assert begun(running) == 0
            # A call that a signal ends returns too.
            check(running, {name: len(many) * (count + (name == "read")) for name, count in CALLS.items()})


def elf32(calls_of: int, times: int) -> bytes:
    """A 32-bit program that makes one system call some times and ends."""
    code = b"\xbe" + struct.pack("<I", times)  # mov esi, times
    loop = b"\xb8" + struct.pack("<I", calls_of) + b"\xbb\xff\xff\xff\xff" + b"\xcd\x80" + b"\x4e"
    code += loop + b"\x75" + struct.pack("<b", -len(loop) - 2)  # jnz loop
    code += b"\xb8\x01\x00\x00\x00\x31\xdb\xcd\x80"  # exit(0)
    at = 0x08048000
    head = b"\x7fELF\x01\x01\x01" + bytes(9)
    head += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, at + 84, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    size = 84 + len(code)
    return head + struct.pack("<IIIIIIII", 1, 0, at, at, size, size, 5, 0x1000) + code


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a program of another machine")
@pytest.mark.parametrize("variant", HERE)
def test_calls_of_32_bit_programs_are_not_mistaken(variant: str, tmp_path: Path) -> None:
    """Their number 4 is write, but that of stat in 64 bits."""
    program = tmp_path / "program"
    program.write_bytes(elf32(4, 1000))
    program.chmod(0o755)
    if machine.kernel() and subprocess.run(["sh", "-c", str(program)], check=False).returncode == 126:
        pytest.xfail("the kernel runs no 32-bit programs")
    with started_with(("stat",), Filter(ALL), variant) as running:
        before = int(running.read()[0, FIRST_BUCKET:].sum())
        assert subprocess.run([program], check=False).returncode == 0
        # others of the machine may call stat meanwhile, but hardly so often
        assert int(running.read()[0, FIRST_BUCKET:].sum()) - before < 500


@contextmanager
def started_with(names: tuple[str, ...], whose: Filter, variant: str) -> Iterator[Running]:
    running = start(names, whose, variant)
    try:
        yield running
    finally:
        running.close()


def test_own_process_is_found_in_any_pid_namespace() -> None:
    assert own_process() == os.getpid()
    script = (
        "import os, sys\nfrom mapek.sensors.syscall_latency_kernel import own_process\n"
        "print(os.getpid(), own_process(), flush=True)\nsys.stdin.read()"
    )
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        inside, outside = map(int, process.stdout.readline().split())
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.communicate("")
    assert inside == 1
    assert outside == int(child)


@pytest.mark.kernel
def test_without_btf_the_calls_are_seen_all_the_same() -> None:
    script = (
        "import os\nfrom mapek.sensors.syscall_latency_kernel import *\n"
        "running = start(('getppid',), Filter(PROCESS, (own_process(),)))\n"
        "for _ in range(100):\n    os.getppid()\n"
        "print(running.choice.variant.name, running.read()[0, FIRST_BUCKET:].sum(), running.degraded)\n"
        "running.close()\n"
    )
    hidden = 'mount -t tmpfs none /sys/kernel/btf 2>/dev/null; exec "$0" -c "$1"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", hidden, sys.executable, script]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout.startswith("raw_tp 100 ('raw_tp, not tp_btf: this kernel has no btf"), done.stderr


def test_a_variant_that_is_not_here_is_refused() -> None:
    if machine.has("kprobes"):
        return
    with pytest.raises(FeatureError, match=r"no kprobe \(kernel 4.17 with CONFIG_KPROBES\)"):
        start(NAMES, Filter(ALL), "kprobe")


# -- the sensor --------------------------------------------------------------------------------------------


class Around:
    def __init__(self) -> None:
        self.clock = RealClock()
        self.events: list[Event] = []
        self.surroundings = Surroundings(
            self.events.append, self.clock, Knowledge(some_topology()), lambda work: None
        )


def columns(frame: Frame, name: str) -> dict[str, int]:
    return {
        dict(metric.labels)["syscall"]: int(frame.counters[0, place])
        for place, metric in enumerate(frame.schema.counters)
        if metric.name == name
    }


@pytest.mark.parametrize("variant", HERE)
async def test_conformance(variant: str) -> None:
    await check_touchpoint(lambda: SyscallLatency({"variant": variant}))


async def test_the_sensor_reads_what_was_called() -> None:
    around = Around()
    with load() as one:
        sensor = SyscallLatency({"processes": [str(one.pid)], "syscalls": list(NAMES)})
        try:
            await sensor.open(around.surroundings)
            await asyncio.to_thread(one.run)
            frame = sensor.read()
            assert frame is not None
            quiet = sensor.read()
            assert quiet is not None
            status = sensor.status()
        finally:
            await sensor.close()
            around.clock.close()
    assert frame.entities[0].name == str(one.pid)
    assert columns(frame, "calls") == CALLS
    assert columns(frame, "errors") == {**none(), "read": SLOW_READS}
    assert columns(frame, "spent")["read"] >= SLOW_READS * SLOW_MS * 1_000_000
    assert [int(histogram.sum()) for histogram in frame.histograms] == list(CALLS.values())
    place = [metric.labels for metric in frame.schema.gauges].index((("syscall", "read"),))
    assert SLOW_MS / 1000 < frame.gauges[0, place] < 16 * SLOW_MS / 1000
    assert np.isnan(quiet.gauges).all()
    assert status.up
    assert status.counts == {"collisions": 0, "missed": 0, "recursions": 0}


async def test_by_default_the_agent_watches_itself() -> None:
    around = Around()
    sensor = SyscallLatency({"syscalls": ["getppid"]})
    with load() as other:
        try:
            await sensor.open(around.surroundings)
            await asyncio.to_thread(other.run)
            for _ in range(1000):
                os.getppid()
            thread = threading.Thread(target=lambda: [os.getppid() for _ in range(500)])
            thread.start()
            thread.join()
            frame = sensor.read()
        finally:
            await sensor.close()
            around.clock.close()
    assert frame is not None
    assert columns(frame, "calls") == {"getppid": 1500}
    assert frame.entities[0].name == "mapek"


async def test_a_process_that_ends_is_let_go() -> None:
    around = Around()
    with load() as one, load() as two:
        sensor = SyscallLatency({"processes": [str(one.pid), str(two.pid)], "syscalls": list(NAMES)})
        try:
            await sensor.open(around.surroundings)
            one.process.kill()
            one.process.wait()
            deadline = asyncio.get_running_loop().time() + 10
            while not any(str(one.pid) in line for line in sensor.status().degraded):
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0)
            await asyncio.to_thread(two.run)
            frame = sensor.read()
            assert frame is not None
            assert columns(frame, "calls")["write"] == CALLS["write"]
        finally:
            await sensor.close()
            around.clock.close()


@pytest.mark.kernel
async def test_a_process_that_ends_while_it_is_attached_is_not_watched(monkeypatch) -> None:
    """Its id may be another's by the time the map is filled."""
    around = Around()
    with load() as one, load() as two:
        sensor = SyscallLatency({"processes": [str(one.pid), str(two.pid)], "syscalls": list(NAMES)})

        def slowly(*known: Any, **more: Any) -> Running:
            one.process.kill()
            one.process.wait()
            deadline = time.monotonic() + machine.patience(10)
            while one.pid in sensor._pidfds:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            return start(*known, **more)

        monkeypatch.setattr(syscall_latency, "start", slowly)
        try:
            await sensor.open(around.surroundings)
            assert sensor._running.loaded.maps["processes"].keys() == [struct.pack("=I", two.pid)]
            assert any(str(one.pid) in line for line in sensor.status().degraded)
        finally:
            await sensor.close()
            around.clock.close()


async def test_processes_that_are_not_there_are_said() -> None:
    around = Around()
    sensor = SyscallLatency({"processes": [str(NOBODY)]})
    try:
        with pytest.raises(AttachError, match="none of them is there"):
            await sensor.open(around.surroundings)
    finally:
        await sensor.close()
        around.clock.close()


@pytest.mark.needs("cgroup2")
async def test_a_cgroup_made_anew_is_found_again(cgroup: Path) -> None:
    around = Around()
    service = cgroup / "service"
    service.mkdir()
    sensor = SyscallLatency(
        {"cgroup": str(service.relative_to(find_cgroups())), "syscalls": list(NAMES), "variant": "auto"}
    )
    try:
        await sensor.open(around.surroundings)
        service.rmdir()
        assert sensor.read() is not None
        assert any("service" in line for line in sensor.status().degraded)
        service.mkdir()
        with load() as one:
            (service / "cgroup.procs").write_text(str(one.pid))
            assert sensor.read() is not None
            assert sensor.status().degraded == ()
            await asyncio.to_thread(one.run)
            frame = sensor.read()
            assert frame is not None
            assert columns(frame, "calls")["write"] == CALLS["write"]
    finally:
        await sensor.close()
        around.clock.close()


@pytest.mark.needs("cgroup2")
async def test_a_cgroup_that_is_not_there_is_said() -> None:
    around = Around()
    sensor = SyscallLatency({"cgroup": "mapek-nobody/at-all"})
    try:
        with pytest.raises(AttachError, match="No such file"):
            await sensor.open(around.surroundings)
        assert not sensor.status().up
    finally:
        await sensor.close()
        around.clock.close()
