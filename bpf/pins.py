"""What outlives an agent: where on the bpffs it lies, and whose it has to be.

    /sys/fs/bpf/mapek/NETNS/               NETNS: inode number of the network namespace
        INTERFACE/chain, link              the XDP chain of an interface (`mapek.bpf.dispatcher`)
        agent:STATE/                       STATE: 12 hex digits that stand for the agent's state directory
            SENSOR/, SENSOR:INTERFACE/     a place (`mapek.bpf.place`): what one sensor keeps, alone or of one interface
                layout                     a frozen array map whose one value is the text of `mapek.bpf.layout`
                map:NAME                   a map whose entries go on
                link:NAME                  a link that stays attached ("ingress", "sys_enter")
                program:NAME               a program that is asked how it did
            new:SENSOR:INTERFACE/          a place that is being made; whoever comes next removes it

A bpffs takes no dot in a name, and an interface no colon, so the one stands for the other: eth0.5 is eth0:5. Every
directory is 0700 and every name in it one of these; what is another user's, a symbolic link or of another kind is
refused and left alone. A place comes into being by one rename, complete, before anything is attached, so that whoever
is killed half-way leaves a place to adopt or a `new:` to remove. Programs need no pin of their own: links and the
chain keep them. Whoever works on a place holds its lock (`mapek.bpf.locks`).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mapek.bpf.bpffs import BPFFS, OURS, mounted
from mapek.errors import PinError

_AGENT, NEW, MAP, LINK, PROGRAM, LAYOUT = "agent:", "new:", "map:", "link:", "program:", "layout"
END: Final = "mapek release ends it, or set persist = false"


def root() -> Path:
    """Of all that agents keep in the calling thread's network namespace."""
    return OURS / str(os.stat("/proc/thread-self/ns/net").st_ino)


def chain_dir(interface: str) -> Path:
    """Where the XDP chain of an interface of the calling thread's namespace is pinned."""
    return root() / interface.replace(".", ":")


def trouble() -> str:
    """Why nothing can be pinned here; "" when it can."""
    no = f"{BPFFS} is no writable bpffs"
    if (mount := mounted(BPFFS)) is None or mount[0] != "bpf" or "ro" in mount[1]:
        return no
    try:
        owner = OURS.lstat().st_uid
    except FileNotFoundError:
        return "" if os.access(BPFFS, os.W_OK, effective_ids=True) else no
    except PermissionError:
        return no
    return "" if owner == os.geteuid() else f"{OURS} belongs to user {owner}"


def seen(path: Path) -> bool:
    """Is something there? What we may not look at is none of ours, and counts as not there."""
    return os.path.lexists(path)


def ensure(path: Path) -> None:
    """Make a directory of ours below the bpffs and those above it, each for us alone.

    Raises PinError where one is there that is not ours, OSError.
    """
    # Under a foreign directory ours would be anybody's.
    missing = [path]
    while missing[-1].parent not in (BPFFS, missing[-1]) and BPFFS in missing[-1].parents:
        missing.append(missing[-1].parent)
    for one in reversed(missing):
        with contextlib.suppress(FileExistsError):
            one.mkdir(mode=0o700)
        check(one)


def check(path: Path) -> None:
    """Raises PinError when `path` is there and is no directory of ours; closes one of ours that others may enter."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode):
        raise PinError("use", path, "it is no directory", f"remove it: rm {path}")
    if found.st_uid != os.geteuid():
        why = f"it belongs to user {found.st_uid}, not to {os.geteuid()} as we do"
        raise PinError("use", path, why, "stop what made it and remove it, or run as that user")
    if stat.S_IMODE(found.st_mode) & 0o077:
        path.chmod(0o700)


def agents(folder: Path) -> Iterator[Path]:
    """The directories of agents below the root of a namespace, whether an agent runs or not."""
    yield from sorted(one for one in folder.glob(f"{_AGENT}*"))


def agent_dir(state: str) -> Path:
    """That of the agent whose state directory is known by `state`."""
    return root() / f"{_AGENT}{state}"


def clear_half_made(agent: Path) -> None:
    """Remove what somebody was killed while making, and the directory if nothing is in it. Raises PinError for what
    is not ours."""
    for one in sorted(agent.glob(f"{NEW}*")):
        clear(one)
    with contextlib.suppress(OSError):
        agent.rmdir()


def check_pin(path: Path) -> None:
    """Raises PinError for a pin of another user's, or a name that we never give; FileNotFoundError."""
    found = path.lstat()
    name = path.name.removeprefix(NEW)
    known = name == LAYOUT or name.startswith((MAP, LINK, PROGRAM))
    if not known or not stat.S_ISREG(found.st_mode):
        raise PinError("use", path, "it is not of our making", "remove it")
    if found.st_uid != os.geteuid():
        why = f"it belongs to user {found.st_uid}, not to {os.geteuid()} as we do"
        raise PinError("use", path, why, "remove it")


def clear(path: Path) -> None:
    """Remove a directory that is no place (any more), with its pins."""
    check(path)
    if not os.path.lexists(path):
        return
    for one in path.iterdir():
        check_pin(one)
        one.unlink()
    path.rmdir()
