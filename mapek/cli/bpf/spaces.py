"""The network namespaces of this machine that we can reach, and where agents in them pin what outlives them.

A namespace is reached through a process in it, or where `ip netns` keeps it. Agents of one that has a mount namespace
of its own pin on a bpffs that only its processes see; it is gone into step by step without following symbolic links,
because whoever rules there could lead us anywhere by one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from mapek.bpf.apart import apart
from mapek.bpf.bpffs import OURS
from mapek.errors import PrivilegeError

T = TypeVar("T")
KEPT: Final = Path("/run/netns")


@dataclass(frozen=True, slots=True)
class Space:
    """A network namespace: its inode number, a file that stands for it, and a process in it for each bpffs."""

    inode: int
    file: Path
    pids: tuple[int, ...] = ()


def own() -> Space:
    """The calling thread's."""
    file = Path("/proc/thread-self/ns/net")
    return Space(file.stat().st_ino, file)


def reachable() -> list[Space]:
    """All that can be reached, the calling thread's first, then by inode number."""
    here = os.stat("/proc/thread-self/ns/net")
    mine = os.stat("/proc/thread-self/ns/mnt").st_ino
    files: dict[int, Path] = {}
    pids: dict[int, dict[int, int]] = {}
    for path, pid in _files():
        with contextlib.suppress(OSError):
            found = path.stat()
            # A name in /run/netns may be any file.
            if found.st_dev != here.st_dev:
                continue
            files.setdefault(found.st_ino, path)
            if pid and (mount := os.stat(f"/proc/{pid}/ns/mnt").st_ino) != mine:
                pids.setdefault(found.st_ino, {}).setdefault(mount, pid)
    files[here.st_ino] = own().file
    spaces = [Space(ino, file, tuple(pids.get(ino, {}).values())) for ino, file in sorted(files.items())]
    return sorted(spaces, key=lambda one: one.inode != here.st_ino)


def _files() -> Iterator[tuple[Path, int]]:
    with contextlib.suppress(OSError):
        for path in sorted(KEPT.iterdir()):
            yield path, 0
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            yield process / "ns/net", int(process.name)


def within(space: Space, work: Callable[[], T]) -> T:
    """`work()` in a thread that has moved into the namespace. Raises PrivilegeError where that is not allowed,
    OSError where the namespace is gone, and what `work` raises."""
    from mapek.simulations import libc

    def run() -> T:
        try:
            with open(space.file, "rb") as file:
                libc.setns(file.fileno(), libc.CLONE_NEWNET)
        except PermissionError as error:
            raise PrivilegeError(
                "enter network namespace", space.inode, "CAP_SYS_ADMIN missing", "run as root"
            ) from error
        return work()

    return apart("mapek-space", run)


@contextmanager
def folder_of(pid: int) -> Iterator[Path | None]:
    """The root of agents' pins as the process sees it, as long as the context lasts; None where there is none.

    Raises OSError where a symbolic link or another file is on the way.
    """
    fd = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY)
    try:
        for part in OURS.parts[1:]:
            try:
                step = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            except FileNotFoundError:
                yield None
                return
            os.close(fd)
            fd = step
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
