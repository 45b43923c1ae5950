"""`mapek release`: ends what agents of this network namespace left running on purpose, and nothing else.

An agent that stops leaves its reflector answering, pinned, so that a restart is no failure to its neighbours.
Who stops for good runs this. An agent that still runs is told by its open descriptor of the very link, in
/proc of every process that we can see; one in a PID namespace that we cannot see would go unnoticed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mapek.errors import AttachError, MapekError, PrivilegeError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from mapek.bpf.xdp import Link

PINS: Final = Path("/sys/fs/bpf/mapek")
_OURS: Final = "dispatcher"
"""The kernel's name of the program that owns the hook, and `chain` that of its program array."""


@dataclass(frozen=True)
class Pinned:
    """A chain found under a namespace's pins, or what is in the place of one.

    `keep` says why it must stay; empty for what may be removed.
    """

    interface: str
    path: str
    keep: str = ""


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    command = commands.add_parser("release", help="end what agents left running in this network namespace")
    command.add_argument("--dry-run", action="store_true", help="only say what there is")
    command.add_argument("--json", action="store_true", help="as one JSON list")
    command.set_defaults(run=_release)


def _release(arguments: argparse.Namespace) -> int:
    folder = PINS / str(os.stat("/proc/thread-self/ns/net").st_ino)
    found = release(folder, dry_run=arguments.dry_run)
    if arguments.json:
        print(json.dumps([asdict(one) for one in found]))
    else:
        verb = "would remove" if arguments.dry_run else "removed"
        for one in found:
            word = (
                f"kept {one.path}: {one.keep}"
                if one.keep
                else f"{verb} the chain of {one.interface} ({one.path})"
            )
            print(word)
        if not found:
            print("no agent left anything running in this network namespace")
    return 1 if any(one.keep for one in found) else 0


def release(folder: Path, *, dry_run: bool = False) -> list[Pinned]:
    """Detach and unpin every chain below `folder`, one a directory; returns what there was.

    Blocks for an RCU grace period each. What is in use, or is not ours, is kept and says why in `keep`.
    Raises PrivilegeError where the pins may not be read.
    """
    try:
        places = sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise PrivilegeError("read", folder, "not permitted", "run as root") from error
    found = [_one(place, dry_run) for place in places]
    if not dry_run:
        with contextlib.suppress(OSError):
            folder.rmdir()
    return found


def _one(place: Path, dry_run: bool) -> Pinned:
    try:
        _check_names(place)
        link = _link(place)
        _check_chain(place)
        try:
            if link is not None:
                _check_idle(link)
            if dry_run:
                return Pinned(place.name, str(place))
            if link is not None:
                link.detach()
        finally:
            if link is not None:
                link.close()
        (place / "chain").unlink(missing_ok=True)
        place.rmdir()
    except MapekError as error:
        return Pinned(place.name, str(place), error.why)
    except OSError as error:
        return Pinned(place.name, str(place), error.strerror or str(error))
    return Pinned(place.name, str(place))


def _check_names(place: Path) -> None:
    try:
        foreign = sorted({entry.name for entry in place.iterdir()} - {"link", "chain"})
    except NotADirectoryError:
        raise AttachError("release", place, "it is no directory of ours") from None
    if foreign:
        raise AttachError("release", place, f"{', '.join(foreign)} in it is not ours")


def _link(place: Path) -> Link | None:
    """The pinned link, None where there is none, AttachError if it is not the one that agents make."""
    from mapek.bpf.xdp import XdpLink, interface_name, open_link
    from mapek.bpf.xdp_netlink import describe_program, program_name, read_xdp

    try:
        link = open_link(place / "link")
    except FileNotFoundError:
        return None
    try:
        if not isinstance(link, XdpLink):
            raise AttachError("release", place, "its link is not of type xdp")
        if program_name(link.program_id) != _OURS:
            raise AttachError(
                "release", place, f"its link runs {describe_program(link.program_id)}, not ours"
            )
        if link.ifindex:
            # An inode number may come back: the interface tells whether the link is of this namespace.
            state = read_xdp(link.ifindex)
            if state is None or state.program_id != link.program_id:
                why = f"{interface_name(link.ifindex)} of this network namespace does not run its program"
                raise AttachError("release", place, why)
    except BaseException:
        link.close()
        raise
    return link


def _check_chain(place: Path) -> None:
    from mapek.bpf.maps import ProgArrayMap, open_map

    try:
        chain = open_map(place / "chain")
    except FileNotFoundError:
        return
    with chain:
        if not isinstance(chain, ProgArrayMap) or chain.name != "chain":
            raise AttachError(
                "release", place, f"its chain is a map '{chain.name}' of type {chain.type}, not ours"
            )


def _check_idle(link: Link) -> None:
    users = [f"{_command(pid)} (pid {pid})" for pid in _users(link.id)]
    if users:
        raise AttachError("release", link.pinned, f"in use by {', '.join(users)}; stop it first")


def _users(link_id: int) -> Iterator[int]:
    """Other processes that hold a descriptor of the link, as far as /proc shows them."""
    wanted = f"{link_id}"
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            handles = [one for one in (process / "fd").iterdir() if "bpf" in os.readlink(one)]
        except OSError:
            continue
        for handle in handles:
            try:
                lines = (process / "fdinfo" / handle.name).read_text().splitlines()
            except OSError:
                continue
            if any(line.split() == ["link_id:", wanted] for line in lines):
                yield int(process.name)
                break


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "a process"
