"""`mapek release`: ends what agents of this network namespace left running on purpose, and nothing else.

An agent that stops leaves its reflector answering, pinned, so that a restart is no failure to its neighbours.
With `persist` it leaves what its sensors count, too. Who stops for good runs this. One that was killed leaves its
clsact filters, too, where the kernel has no tcx. An agent that still runs is told by its locks, and by its open
descriptor of the very link or program, in /proc of every process that we can see; one in a PID namespace that we
cannot see would go unnoticed by the latter.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mapek.bpf.bpffs import OURS
from mapek.cli.telling import tell
from mapek.errors import AttachError, MapekError, PrivilegeError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from mapek.bpf.clsact import ClsactFilter
    from mapek.bpf.xdp import Link

_OURS: Final = "dispatcher"
"""The kernel's name of the program that owns the hook, and `chain` that of its program array."""


@dataclass(frozen=True)
class Left:
    """Something that was left: a chain under a namespace's pins, or what is in the place of one; what a sensor kept;
    or a tc filter.

    `interface` is "" for what belongs to none. `path` is its pin, or its direction, handle and name. `keep` says why
    it must stay; empty for what may be removed.
    """

    interface: str
    path: str
    keep: str = ""
    kind: str = "chain"


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    command = commands.add_parser("release", help="end what agents left running in this network namespace")
    command.add_argument("--dry-run", action="store_true", help="only say what there is")
    command.add_argument("--json", action="store_true", help="as one JSON list")
    command.set_defaults(run=_release)


def _release(arguments: argparse.Namespace) -> int:
    from mapek.bpf import pins

    check_own(OURS)
    folder = pins.root()
    found = [*release(folder, dry_run=arguments.dry_run), *release_filters(dry_run=arguments.dry_run)]
    if arguments.json:
        print(json.dumps([asdict(one) for one in found]))
    else:
        verb = "would remove" if arguments.dry_run else "removed"
        for one in found:
            what = f"the {one.kind}{f' of {one.interface}' if one.interface else ''} ({one.path})"
            tell(f"kept {what}: {one.keep}" if one.keep else f"{verb} {what}")
        if not found:
            print("no agent left anything running in this network namespace")
    return 1 if any(one.keep for one in found) else 0


def release(folder: Path, *, dry_run: bool = False) -> list[Left]:
    """Detach and unpin every chain below `folder`, one a directory, and all that sensors kept; returns what there was.

    Blocks for an RCU grace period each. What is in use, or is not ours, is kept and says why in `keep`.
    Raises PrivilegeError where the pins may not be read, AttachError where the folder is not ours.
    """
    check_own(folder)
    try:
        places = sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise PrivilegeError("read", folder, "not permitted", "run as root") from error
    from mapek.bpf import pins

    agents = set(pins.agents(folder))
    # The chains first: what they run counts until then.
    found = [_one(place, dry_run) for place in places if place not in agents]
    found += [one for agent in sorted(agents) for one in _kept(agent, dry_run)]
    if not dry_run:
        with contextlib.suppress(OSError):
            folder.rmdir()
    return found


def _one(place: Path, dry_run: bool) -> Left:
    try:
        _check_names(place)
        link = _link(place)
        _check_chain(place)
        try:
            if link is not None:
                _check_idle(link)
            if dry_run:
                return Left(place.name, str(place))
            if link is not None:
                link.detach()
        finally:
            if link is not None:
                link.close()
        (place / "chain").unlink(missing_ok=True)
        place.rmdir()
    except MapekError as error:
        return Left(place.name, str(place), error.why)
    except OSError as error:
        return Left(place.name, str(place), error.strerror or str(error))
    return Left(place.name, str(place))


def _kept(agent: Path, dry_run: bool) -> list[Left]:
    """What the sensors of one agent kept."""
    from mapek.bpf import pins
    from mapek.bpf.keep import Kept
    from mapek.bpf.place import places

    found = []
    try:
        for place in places(agent):
            keep = ""
            try:
                Kept.end(place, dry_run=dry_run)
            except MapekError as error:
                keep = error.why
            except OSError as error:
                keep = error.strerror or str(error)
            found.append(Left(place.interface, str(place.path), keep, f"{place.sensor} state"))
        if not dry_run:
            pins.clear_half_made(agent)
    except (MapekError, OSError) as error:
        found.append(
            Left("", str(agent), error.why if isinstance(error, MapekError) else str(error), "state")
        )
    return found


def check_own(path: Path) -> None:
    """Raises AttachError for a symbolic link, which agents do not make, and for what is another user's."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found.st_mode):
        raise AttachError("release", path, "it is a symbolic link, which no agent makes", "look who did")
    if found.st_uid != os.geteuid():
        do = f"run as that user, or rm -r {path} when no agent of his runs"
        raise AttachError("release", path, f"it belongs to user {found.st_uid}", do)


def _check_names(place: Path) -> None:
    try:
        for path in (place, place / "link", place / "chain"):
            check_own(path)
        foreign = sorted({entry.name for entry in place.iterdir()} - {"link", "chain"})
    except NotADirectoryError:
        raise AttachError("release", place, "it is no directory of ours") from None
    if foreign:
        raise AttachError("release", place, f"{', '.join(foreign)} in it is not ours")


def _link(place: Path) -> Link | None:
    """The pinned link, None where there is none, AttachError if it is not the one that agents make."""
    from mapek.bpf.inventory import source_of
    from mapek.bpf.xdp import XdpLink, interface_name, open_link
    from mapek.bpf.xdp_netlink import describe_program, program_name, read_xdp

    try:
        link = open_link(place / "link")
    except FileNotFoundError:
        return None
    try:
        if not isinstance(link, XdpLink):
            raise AttachError("release", place, "its link is not of type xdp")
        if program_name(link.program_id) != _OURS or source_of(link.program_id) != _OURS:
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
    from mapek.bpf.holders import users

    if who := users([("link", link.id)]):
        raise AttachError("release", link.pinned, f"in use by {who}; stop it first")


def release_filters(*, dry_run: bool = False) -> list[Left]:
    """Remove every clsact filter that agents left in the calling thread's network namespace, and a qdisc that
    they made and nobody else uses; returns what there was. Blocks for milliseconds each.

    One is kept, and `keep` says why, while a process holds its program, or where that is not what its name says.
    Raises FeatureError or PrivilegeError where the kernel does not tell.
    """
    from mapek.bpf.clsact import find_clsact

    return [_filter(one, dry_run) for one in find_clsact()]


def _filter(one: ClsactFilter, dry_run: bool) -> Left:
    from mapek.bpf.holders import users
    from mapek.bpf.inventory import source_of
    from mapek.bpf.xdp_netlink import describe_program, program_name

    keep = interface = ""
    try:
        interface = socket.if_indextoname(one.ifindex)
        program = program_name(one.program_id)
        # The kernel cuts a program's name at 15 characters.
        if program != one.program[:15] or not source_of(one.program_id):
            about = describe_program(one.program_id)
            keep = f"{about} is not ours" if program else f"{about} is not there or may not be read"
        elif who := users([("prog", one.program_id)]):
            keep = f"in use by {who}; stop it first"
        elif not dry_run:
            one.detach()
    except MapekError as error:
        keep = error.why
    except OSError as error:
        keep = error.strerror or str(error)
    where = f"{one.direction}, handle {one.handle:#x}, {one.name}"
    return Left(interface, where, keep, "tc filter")
