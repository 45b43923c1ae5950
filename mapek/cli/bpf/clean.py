"""`mapek bpf clean`: removes what agents that are dead left in the kernel, and nothing else.

`mapek release` ends what is pinned and the tc filters of one network namespace; this does the same, and XDP that was
attached by netlink, and with `--all` all of it in every network namespace that can be reached. Programs and maps need
no removing of their own: they end with the last link, filter, pin or process that holds them. What a living process
holds, what is another user's and what only has our names stays, and is said with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mapek.bpf.bpffs import OURS
from mapek.bpf.holders import users
from mapek.cli.bpf import spaces
from mapek.cli.release import Left, check_own, release, release_filters
from mapek.cli.telling import tell
from mapek.errors import AttachError, MapekError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from mapek.bpf.inventory import Loaded

PATIENCE_S: Final = 30.0
"""For another one of us that cleans the same namespace."""


@dataclass(frozen=True, slots=True)
class Found:
    """Something that was left, and the inode number of its network namespace."""

    namespace: int
    left: Left


def add(parts: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    command = parts.add_parser("clean", help="remove what dead agents left attached and pinned, nothing else")
    command.add_argument("--all", action="store_true", help="in every network namespace that can be reached")
    command.add_argument("--dry-run", action="store_true", help="only say what there is")
    command.add_argument("--json", action="store_true", help="as one JSON list")
    command.set_defaults(run=_clean)


def _clean(arguments: argparse.Namespace) -> int:
    reached = spaces.reachable() if arguments.all else [spaces.own()]
    found = [one for space in reached for one in clean(space, dry_run=arguments.dry_run)]
    if arguments.all:
        found += unreachable({one.inode for one in reached}, arguments.dry_run)
    if arguments.json:
        print(json.dumps([{"namespace": one.namespace, **asdict(one.left)} for one in found]))
    else:
        verb = "would remove" if arguments.dry_run else "removed"
        for one in found:
            tell(_line(one, verb, arguments.all))
        if not found:
            where = "any network namespace that can be reached" if arguments.all else "this network namespace"
            print(f"no dead agent left anything in {where}")
    return 1 if any(one.left.keep for one in found) else 0


def _line(one: Found, verb: str, everywhere: bool) -> str:
    left = one.left
    where = f"namespace {one.namespace}: " if everywhere else ""
    what = f"the {left.kind}{f' of {left.interface}' if left.interface else ''} ({left.path})"
    return f"{where}kept {what}: {left.keep}" if left.keep else f"{where}{verb} {what}"


def clean(space: spaces.Space, *, dry_run: bool = False) -> list[Found]:
    """Remove what was left in one namespace; returns what there was, and in `keep` why something stays.

    Raises PrivilegeError where the kernel does not tell. Blocks for an RCU grace period for each, and while another
    one cleans there.
    """

    def work() -> list[Left]:
        with _alone(space.file):
            found = [*_pins(OURS, space.inode, dry_run)]
            for pid in space.pids:
                found += _pins_of(pid, space.inode, dry_run)
            return [*found, *release_filters(dry_run=dry_run), *release_xdp(dry_run=dry_run)]

    try:
        left = spaces.within(space, work)
    except OSError as error:
        why = f"its network namespace cannot be entered: {error.strerror or error}"
        left = [Left("", str(space.file), why, "namespace")]
    return [Found(space.inode, one) for one in left]


def _pins_of(pid: int, inode: int, dry_run: bool) -> list[Left]:
    """What is pinned on the bpffs that a process in another mount namespace sees."""
    seen = f"/proc/{pid}/root{OURS}"
    try:
        with spaces.folder_of(pid) as root:
            if root is None:
                return []
            found = _pins(root, inode, dry_run)
            return [
                Left(one.interface, one.path.replace(str(root), seen), one.keep, one.kind) for one in found
            ]
    except OSError as error:
        if not os.path.exists(f"/proc/{pid}"):
            return []
        return [Left("", seen, error.strerror or str(error), "folder")]


def _pins(root: Path, inode: int, dry_run: bool) -> list[Left]:
    try:
        if root == OURS:
            check_own(root)
        return release(root / str(inode), dry_run=dry_run)
    except AttachError as error:
        return [Left("", str(error.on), error.why, "folder")]


def unreachable(reached: set[int], dry_run: bool) -> list[Found]:
    """What is pinned of namespaces that nobody is in any more; their interfaces went with them."""
    try:
        check_own(OURS)
        names = sorted(one.name for one in OURS.iterdir() if one.name.isdecimal())
    except (OSError, MapekError):
        return []  # said of our own namespace already
    found = []
    for inode in (int(name) for name in names if int(name) not in reached):
        for left in _pins(OURS, inode, dry_run):
            keep = "its network namespace cannot be reached" if "of this network" in left.keep else left.keep
            found.append(Found(inode, Left(left.interface, left.path, keep, left.kind)))
    return found


def release_xdp(*, dry_run: bool = False) -> list[Left]:
    """Take XDP programs of ours off that were attached by netlink and that nobody holds; returns what there was."""
    from mapek.bpf.inventory import programs

    return [
        _by_netlink(one, at.place, dry_run)
        for one in programs()
        if one.object
        for at in one.attached
        if at.kind == "xdp by netlink"
    ]


def _by_netlink(one: Loaded, place: str, dry_run: bool) -> Left:
    from mapek.bpf import syscall
    from mapek.bpf.program import Program
    from mapek.bpf.xdp_netlink import NetlinkXdp

    interface, _, mode = place.rpartition(" ")
    keep = ""
    try:
        if who := users([("prog", one.id)]):
            keep = f"in use by {who}; stop it first"
        elif one.pins:
            keep = f"somebody pinned it: {', '.join(one.pins)}"
        elif not dry_run:
            fd = syscall.fd_by_id(syscall.PROG_GET_FD_BY_ID, one.id)
            with contextlib.closing(Program(fd)) as program:
                NetlinkXdp(socket.if_nametoindex(interface), program, mode).detach()
    except MapekError as error:
        keep = error.why
    except OSError as error:
        keep = error.strerror or str(error)
    return Left(interface, f"{mode}, program {one.name} (id {one.id})", keep, "xdp program")


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Only one of us at a time in a namespace: each would take the other for an agent that lives."""
    with open(file, "rb") as held:
        _wait(lambda: fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB))
        yield


def _wait(take: Callable[[], None]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return take()
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                why = f"another one has not ended for {PATIENCE_S:.0f} s"
                raise AttachError("clean", "network namespace", why, "look for a mapek bpf clean") from error
            time.sleep(0.05)
