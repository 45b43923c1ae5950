"""The kernel's stop watch on real programs: it counts each run, off again whatever happens, on where it was."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapek.bpf import Dispatcher, ObjectSpec, Program, attach_xdp, load, object_path
from mapek.bpf.inventory import programs
from mapek.bpf.run_stats import Watched, always_on, run_time_stats, runs_of
from mapek.bpf.stop_watch import stop_watch
from mapek.cli.bpf.loaded_cost import inside
from mapek.errors import PrivilegeError
from tests.netns.bpf.wires import Wire, udp
from tests.support.bytecode import EXIT, load_xdp, mov

pytestmark = [pytest.mark.netns, pytest.mark.kernel]

SYSCTL = Path("/proc/sys/kernel/bpf_stats_enabled")
HOLDS_IT = (
    "import time; from mapek.bpf.run_stats import run_time_stats\n"
    "with run_time_stats():\n    print('on', flush=True); time.sleep(60)"
)


@pytest.fixture
def empty_xdp() -> Iterator[Program]:
    program = load_xdp("passes", mov(0, 2), EXIT)
    yield program
    program.close()


def is_on(program: Program) -> bool:
    """Whether runs are counted now."""
    before = runs_of(program).count
    program.test_run(bytes(64))
    return runs_of(program).count > before


def until_off(program: Program, patience_s: float = 20.0) -> None:
    """Others on this machine may have it on for a while; nobody for ever."""
    end = time.monotonic() + patience_s
    while is_on(program):
        assert time.monotonic() < end, "bpf_stats stays on"
        time.sleep(0.05)


@pytest.mark.host
def test_only_while_it_is_asked_to(empty_xdp: Program) -> None:
    until_off(empty_xdp)
    before = runs_of(empty_xdp)
    with run_time_stats():
        empty_xdp.test_run(bytes(64), repeat=50)
    done = runs_of(empty_xdp) - before
    assert done.count == 50
    assert done.spent_ns > 0
    until_off(empty_xdp)


def test_every_packet_is_a_run(wire: Wire, empty_xdp: Program) -> None:
    link = attach_xdp(empty_xdp, wire.near)
    try:
        with Watched([empty_xdp.id]) as watched, run_time_stats():
            before = watched.runs()[empty_xdp.id]
            wire.send(udp(), 2500)
            done = watched.runs()[empty_xdp.id] - before
    finally:
        link.detach()
    assert done.count == 2500
    assert done.mean_ns is not None
    assert done.mean_ns > 0


async def test_a_member_is_timed_within_its_dispatcher(wire: Wire) -> None:
    spec = ObjectSpec.read(object_path("xdp_counter"))
    async with Dispatcher.attach(wire.near) as head, await head.load("xdp_counter", spec) as member:
        await head.set("xdp_counter", member.programs["xdp_counter"])
        ours = [one for one in programs() if any(holder.pid == os.getpid() for holder in one.holders)]
        idents = {one.name: one.id for one in ours}
        above = idents["dispatcher"]
        assert inside(ours) == {idents["xdp_counter"]: above}
        with Watched(idents.values()) as watched, run_time_stats():
            before = watched.runs()
            wire.send(udp(), 100)
            done = {name: watched.runs()[ident] - before[ident] for name, ident in idents.items()}
        assert {name: runs.count for name, runs in done.items()} == {"dispatcher": 100, "xdp_counter": 0}


def test_killed_it_leaves_nothing_on(empty_xdp: Program) -> None:
    until_off(empty_xdp)
    with subprocess.Popen([sys.executable, "-c", HOLDS_IT], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "on\n"
            assert is_on(empty_xdp)
        finally:
            holder.send_signal(signal.SIGKILL)
        holder.wait()
    until_off(empty_xdp)


@pytest.mark.host
def test_it_stays_on_where_somebody_has_it_on(empty_xdp: Program) -> None:
    before = SYSCTL.read_text()
    SYSCTL.write_text("1")
    try:
        assert always_on()
        with run_time_stats():
            assert is_on(empty_xdp)
        assert always_on()
        assert is_on(empty_xdp)
    finally:
        SYSCTL.write_text(before)


@pytest.mark.host
def test_what_a_program_holds_is_what_bpftool_says() -> None:
    with load(ObjectSpec.read(object_path("xdp_counter"))) as loaded:
        program = loaded.programs["xdp_counter"]
        with Watched([program.id, 0xFFFFFFF0]) as watched:
            (size,) = watched.sizes().values()
        by_map = {
            map_.id: int(line.split()[1])
            for map_ in loaded.maps.values()
            for line in Path(f"/proc/self/fdinfo/{map_.fd}").read_text().splitlines()
            if line.startswith("memlock:")
        }
        assert size.maps == sum(by_map[ident] for ident in program.map_ids())
        assert size.maps > 0
        assert size.program >= 4096


def test_the_stop_watch_tells_what_it_costs(empty_xdp: Program) -> None:
    found = stop_watch()
    assert found.empty_ns > 0
    assert found.adds_ns is None or found.adds_ns > 0
    until_off(empty_xdp)


@pytest.mark.host
def test_without_privilege_it_is_one_line() -> None:
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException):
            os.setuid(65534)
            try:
                with run_time_stats():
                    pass
            except PrivilegeError as error:
                code = 0 if str(error).startswith("time programs: CAP_SYS_ADMIN missing") else 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
