"""Real-time priority, tried in processes of their own: with the privilege, without, and not wanted."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.unit.cli.test_commands import ROOT

CODE = """
import os, sys, threading
from mapek.cli import realtime
from mapek.errors import MapekError
try:
    print(realtime.enable({"auto": "auto", "true": True, "false": False}[sys.argv[1]]))
except MapekError as error:
    print(error)
print(os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK)
thread = threading.Thread(target=lambda: print(os.sched_getscheduler(threading.get_native_id())))
thread.start(); thread.join()
"""


def _enable(wanted: str, *before: str) -> list[str]:
    done = subprocess.run(
        [*before, sys.executable, "-c", CODE, wanted],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        timeout=30,
    )
    return done.stdout.splitlines()


DROPPED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


def test_not_wanted() -> None:
    assert _enable("false") == ["off", "0", "0"]


@pytest.mark.needs("root")
def test_permitted_and_not_inherited_by_threads() -> None:
    assert _enable("auto") == ["fifo", "1", "0"]


@pytest.mark.needs("root")
def test_not_permitted() -> None:
    assert _enable("auto", *DROPPED) == ["not permitted (CAP_SYS_NICE)", "0", "0"]
    said, scheduler, _ = _enable("true", *DROPPED)
    assert said == 'set SCHED_FIFO: CAP_SYS_NICE is missing; grant it or set [loop] realtime = "auto"'
    assert scheduler == "0"


@pytest.mark.parametrize(
    ("level", "limit", "needed"),
    [
        ("fifo", "65536", "CAP_IPC_LOCK"),
        ("off", "65536", ""),
        ("fifo, memory not locked (CAP_IPC_LOCK)", "65536", ""),
    ],
)
def test_what_stays_needed(level: str, limit: str, needed: str) -> None:
    code = "import sys; from mapek.cli import realtime; print(*realtime.still_needed(sys.argv[1]))"
    command = ["prlimit", f"--memlock={limit}:{limit}", sys.executable, "-c", code, level]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=30)
    assert done.stdout.strip() == needed
