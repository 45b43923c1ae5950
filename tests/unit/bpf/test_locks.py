"""Locks of agents: one holder, named; gone with it, whatever it started; a file that was left is no obstacle."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mapek.bpf import locks
from mapek.bpf.locks import Lock
from mapek.errors import AttachError, DegradedError

HOLDER = """
import sys, subprocess
from pathlib import Path
from mapek.bpf import locks
locks.DIRECTORY = Path(sys.argv[1])
held = locks.Lock.take("x", "keep", "x")
# What it starts lives on when it is killed, and holds nothing.
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(locks, "DIRECTORY", tmp_path / "run")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return tmp_path / "run"


def test_one_holder_that_is_named(place: Path) -> None:
    held = Lock.take("x", "keep", "x")
    with pytest.raises(
        AttachError, match=rf"^keep x: the agent with pid {os.getpid()} has it; stop that one"
    ):
        Lock.take("x", "keep", "x")
    other = Lock.take("y", "keep", "y")
    held.release()
    held.release()
    Lock.take("x", "keep", "x").release()
    other.release()
    assert list(place.iterdir()) == []


def test_a_dead_holder_is_no_obstacle(place: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            with pytest.raises(AttachError, match=f"pid {holder.pid} has it"):
                Lock.take("x", "keep", "x")
            holder.kill()
            holder.wait()
            assert list(place.iterdir()) != []
            Lock.take("x", "keep", "x").release()
        finally:
            os.kill(child, 9)


def test_a_file_that_was_removed_meanwhile_is_not_held(place: Path) -> None:
    first = Lock.take("x", "keep", "x")
    first.path.unlink()
    second = Lock.take("x", "keep", "x")
    with pytest.raises(AttachError):
        Lock.take("x", "keep", "x")
    second.release()


def test_without_a_place(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place.write_text("")
    with pytest.raises(DegradedError, match="run"):
        Lock.take("x", "keep", "x")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    Lock.take("x", "keep", "x").release()
    place.unlink()
    place.symlink_to(tmp_path)
    assert locks.directory() == tmp_path / "mapek"
