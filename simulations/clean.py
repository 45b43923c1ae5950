"""Find and remove what a lab left behind: processes that carry a lab's mark and whose lab is dead.

Namespaces, interfaces, pins and BPF programs of a lab are held by such processes alone, so ending them is
enough. Everything else on the machine, a lab that still lives included, is left untouched.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from mapek.simulations.process import MARK, start_time


@dataclass(frozen=True)
class Remain:
    """A process that outlived its lab."""

    pid: int
    command: str
    owner: str


def _alive(owner: str) -> bool:
    pid, _, started = owner.partition(":")
    try:
        return start_time(int(pid)) == int(started)
    except (OSError, ValueError):
        return False


def remains() -> list[Remain]:
    """All processes whose mark names a dead lab."""
    found = []
    prefix = f"{MARK}=".encode()
    here = os.stat("/proc/self/ns/net")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            # Strangers' environments are none of our business: a lab's process says so or lives elsewhere.
            if "mapek.simulations" not in command and os.path.samestat(os.stat(entry / "ns/net"), here):
                continue
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        owner = next(
            (v[len(prefix) :].decode(errors="replace") for v in variables if v.startswith(prefix)), None
        )
        if owner is not None and not _alive(owner):
            found.append(Remain(int(entry.name), command, owner))
    return found


def clean(timeout: float = 5.0) -> list[Remain]:
    """End all remains and return what was ended; blocks up to `timeout` seconds.

    Holders get a moment to empty their namespaces first.
    """
    ended: dict[int, Remain] = {}
    asked: dict[int, float] = {}
    deadline = time.monotonic() + timeout
    while found := remains():
        for remain in found:
            ended[remain.pid] = remain
            first = asked.setdefault(remain.pid, time.monotonic())
            try:
                os.kill(remain.pid, signal.SIGTERM if time.monotonic() - first < 1.0 else signal.SIGKILL)
            except ProcessLookupError:
                continue
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return sorted(ended.values(), key=lambda remain: remain.pid)
