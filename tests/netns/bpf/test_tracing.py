"""Attachments of tracing programs: they run while the fd is open, and on nobody's account afterwards."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mapek.bpf import Link, ObjectSpec, load, object_path, syscall
from mapek.bpf.program import Program
from mapek.bpf.tracing import (
    Attachment,
    attach_btf_tracepoint,
    attach_btf_tracepoint_async,
    attach_kprobe,
    attach_kprobe_async,
    attach_raw_tracepoint,
    attach_raw_tracepoint_async,
    attach_tracepoint,
    attach_tracepoint_async,
    read_event,
    tracefs,
)
from mapek.errors import FeatureError, MapekError
from tests.support import machine

KPROBE, TRACEPOINT, RAW_TRACEPOINT = 2, 5, 17
ENABLE_STATS = 32
CALLS = 1000
GETPPID = {"x86_64": "__x64_sys_getppid", "aarch64": "__arm64_sys_getppid"}.get(platform.machine(), "")


@pytest.fixture
def stats() -> Iterator[None]:
    """The kernel counts runs of programs meanwhile."""
    fd = syscall.bpf(ENABLE_STATS, struct.pack("=I", 0), "enable", "stats")
    yield
    os.close(fd)


@contextmanager
def nothing(kind: int) -> Iterator[Program]:
    """A program that does nothing."""
    code = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0), 16)
    licence = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack(
        "=IIQQIIQII", kind, 2, ctypes.addressof(code), ctypes.addressof(licence), 0, 0, 0, 0, 0
    )
    program = Program(syscall.bpf(syscall.PROG_LOAD, attr + bytes(24), "load", "nothing"), "nothing")
    try:
        yield program
    finally:
        program.close()


def runs(program: Program) -> int:
    return int(struct.unpack_from("=Q", syscall.info(program.fd, 208), 200)[0])


def call() -> None:
    for _ in range(CALLS):
        os.getppid()


def check_life(program: Program, attach: Callable[[], Attachment]) -> None:
    """It runs once a call while it is attached, and not before or after."""
    call()
    assert runs(program) == 0
    attachment = attach()
    assert str(attachment.fd) in repr(attachment) or attachment.fd >= 0
    call()
    attachment.close()
    attachment.close()
    # others may call it too, but hardly as often
    seen = runs(program)
    assert CALLS <= seen < 2 * CALLS
    call()
    assert runs(program) == seen


@pytest.mark.kernel
def test_a_raw_tracepoint_is_left_when_its_link_closes(stats: None) -> None:
    with nothing(RAW_TRACEPOINT) as program:
        link = attach_raw_tracepoint(program, "sys_enter")
        assert isinstance(link, Link)
        assert link.program_id == program.id
        call()
        link.close()
        seen = runs(program)
        assert seen >= CALLS
        call()
        assert runs(program) == seen


def test_a_tracepoint_that_is_not_there() -> None:
    with nothing(RAW_TRACEPOINT) as program, pytest.raises(FeatureError, match="no such tracepoint"):
        attach_raw_tracepoint(program, "mapek_unheard_of")


def test_a_program_of_another_kind() -> None:
    with nothing(TRACEPOINT) as program, pytest.raises(MapekError) as caught:
        attach_raw_tracepoint(program, "sys_enter")
    assert "\n" not in str(caught.value)


@pytest.mark.needs("btf")
@pytest.mark.kernel
async def test_a_btf_tracepoint(stats: None) -> None:
    spec = ObjectSpec.read(object_path("syscall_latency"))
    with load(spec, programs=("tp_btf_enter",), skip_maps=("started_tasks",)) as loaded:
        program = loaded.programs["tp_btf_enter"]
        async with await attach_btf_tracepoint_async(program) as link:
            assert link.program_id == program.id
            call()
        seen = runs(program)
        assert seen >= CALLS
        with attach_btf_tracepoint(program):
            call()
        assert runs(program) >= seen + CALLS


def in_own_mounts(source: str) -> subprocess.CompletedProcess[str]:
    """Run Python with a mount namespace of its own."""
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-W", "error", "-c", source]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_tracefs_that_is_not_mounted_is_said() -> None:
    code = (
        "import subprocess\nfrom mapek.bpf.tracing import tracefs\nfrom mapek.errors import FeatureError\n"
        "while True:\n"
        "    try:\n        where = tracefs()\n"
        "    except FeatureError as error:\n        print(error)\n        break\n"
        "    kind = str(where).removesuffix('/tracing') if 'debug' in str(where) else str(where)\n"
        "    subprocess.run(['umount', '-l', kind], check=True)\n"
    )
    done = in_own_mounts(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("find tracefs: it is not mounted; mount -t tracefs tracefs /sys/kernel/tracing\n")


MOUNTED = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
import subprocess
where = Path({where!r})
where.mkdir()
subprocess.run(["mount", "-t", "tracefs", "tracefs", str(where)], check=True)
from tests.netns.bpf import test_tracing as here
here.in_mounted(where)
"""


@pytest.mark.kernel
def test_a_classic_tracepoint_wherever_tracefs_is(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[3])
    done = in_own_mounts(MOUNTED.format(root=root, where=str(tmp_path / "trace fs")))
    assert done.returncode == 0, done.stderr


def in_mounted(where: Path) -> None:
    """What the test above runs beside a freshly mounted tracefs."""
    import asyncio

    found = tracefs()
    assert found == where or found.samefile(where) or (found / "events").is_dir()
    assert "common_pid" in read_event("sched", "sched_switch", "format")
    for category, name in (("sched", "mapek_unheard_of"), ("..", "sched"), ("sched/sched_switch", "x")):
        with pytest.raises(FeatureError):
            read_event(category, name, "id")
    fd = syscall.bpf(ENABLE_STATS, struct.pack("=I", 0), "enable", "stats")
    with nothing(TRACEPOINT) as program:
        check_life(program, lambda: attach_tracepoint(program, "syscalls", "sys_enter_getppid"))

    async def asynchronously() -> None:
        with nothing(TRACEPOINT) as program:
            async with await attach_tracepoint_async(program, "syscalls", "sys_enter_getppid"):
                call()
            assert runs(program) >= CALLS

    asyncio.run(asynchronously())
    with nothing(KPROBE) as program, pytest.raises(MapekError) as caught:
        attach_tracepoint(program, "syscalls", "sys_enter_getppid")
    assert "\n" not in str(caught.value)
    os.close(fd)


@pytest.mark.needs("kprobes")
@pytest.mark.kernel
@pytest.mark.parametrize("returns", [False, True])
@pytest.mark.each_row
async def test_kprobes(stats: None, returns: bool) -> None:
    with nothing(KPROBE) as program:
        check_life(program, lambda: attach_kprobe(program, GETPPID, returns))
        seen = runs(program)
        async with await attach_kprobe_async(program, GETPPID, returns):
            call()
        assert runs(program) >= seen + CALLS


@pytest.mark.needs("kprobes")
def test_a_function_that_is_not_there() -> None:
    with nothing(KPROBE) as program, pytest.raises(FeatureError, match="no such function"):
        attach_kprobe(program, "mapek_unheard_of")


def test_a_kernel_without_kprobes_says_so() -> None:
    if machine.has("kprobes"):
        return
    with nothing(KPROBE) as program, pytest.raises(FeatureError, match="CONFIG_KPROBES"):
        attach_kprobe(program, GETPPID)


KILLED = """
import sys
sys.path.insert(0, {root!r})
from tests.netns.bpf.test_tracing import *
with nothing(RAW_TRACEPOINT) as program:
    attachment = attach_raw_tracepoint(program, "sys_enter")
    print(program.id, flush=True)
    sys.stdin.read()
"""


@pytest.mark.host
@pytest.mark.kernel
def test_nothing_stays_attached_after_a_kill() -> None:
    source = KILLED.format(root=str(Path(__file__).parents[3]))
    with subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        ident = int(process.stdout.readline())
        os.close(syscall.fd_by_id(syscall.PROG_GET_FD_BY_ID, ident))
        process.send_signal(signal.SIGKILL)
        process.wait()
    # The kernel frees it after a grace period.
    import time

    deadline = time.monotonic() + 10
    while True:
        try:
            os.close(syscall.fd_by_id(syscall.PROG_GET_FD_BY_ID, ident))
        except FileNotFoundError:
            break
        assert time.monotonic() < deadline, "the program is still there"
        time.sleep(0.01)


async def test_asynchronous_attachment_is_undone_when_cancelled(stats: None) -> None:
    import asyncio

    with nothing(RAW_TRACEPOINT) as program:
        task = asyncio.ensure_future(attach_raw_tracepoint_async(program, "sys_enter"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        deadline = asyncio.get_running_loop().time() + 10
        while True:
            seen = runs(program)
            call()
            if runs(program) == seen:
                break
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.005)
