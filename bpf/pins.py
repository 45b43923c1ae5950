"""What outlives an agent: a private directory on the bpffs for each thing that is kept, how it is made and read.

    /sys/fs/bpf/mapek/NETNS/               NETNS: inode number of the network namespace
        INTERFACE/chain, link              the XDP chain of an interface (`mapek.bpf.dispatcher`)
        agent:STATE/                       STATE: 12 hex digits that stand for the agent's state directory
            SENSOR/, SENSOR:INTERFACE/     a place: what one sensor keeps, alone or of one interface
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
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mapek.bpf import syscall
from mapek.bpf.layout import Layout, parse
from mapek.bpf.maps import BPF_ANY, Map, create_map, open_map
from mapek.bpf.program import Program
from mapek.bpf.xdp import Link, open_link
from mapek.errors import AttachError, DegradedError, MapekError, PinError

BPFFS: Final = Path("/sys/fs/bpf")
_AGENT, _NEW, _MAP, _LINK, _PROGRAM, _LAYOUT = "agent:", "new:", "map:", "link:", "program:", "layout"
_LONGEST: Final = 1 << 16
_MAP_FREEZE: Final = 22
END: Final = "mapek release ends it, or set persist = false"


def root() -> Path:
    """Of all that agents keep in the calling thread's network namespace."""
    return BPFFS / "mapek" / str(os.stat("/proc/thread-self/ns/net").st_ino)


def chain_dir(interface: str) -> Path:
    """Where the XDP chain of an interface of the calling thread's namespace is pinned."""
    return root() / interface.replace(".", ":")


def trouble() -> str:
    """Why nothing can be pinned here; "" when it can."""
    try:
        mounts = Path("/proc/thread-self/mounts").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        mounts = ""
    # What was mounted last hides what was there.
    kinds = [kind for _, where, kind, *_ in map(str.split, mounts.splitlines()) if where == str(BPFFS)]
    if kinds[-1:] != ["bpf"] or not os.access(BPFFS, os.W_OK):
        return f"{BPFFS} is no writable bpffs"
    try:
        owner = (BPFFS / "mapek").lstat().st_uid
    except FileNotFoundError:
        return ""
    return "" if owner == os.geteuid() else f"{BPFFS / 'mapek'} belongs to user {owner}"


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


@dataclass(frozen=True, slots=True)
class Contents:
    """What a place holds, opened; whoever gets it closes it."""

    layout: Layout
    maps: Mapping[str, Map]

    def close(self) -> None:
        """Close the maps; they stay pinned."""
        for one in self.maps.values():
            one.close()


@dataclass(frozen=True, slots=True)
class Place:
    """One directory of pins. Its methods block for microseconds, `remove` for RCU grace periods.

    Args:
        agent: the directory of the agent that keeps it.
        sensor: whose it is. interface: of which interface, "" for none.
    """

    agent: Path
    sensor: str
    interface: str = ""

    @property
    def name(self) -> str:
        """Its directory's."""
        return f"{self.sensor}:{self.interface.replace('.', ':')}" if self.interface else self.sensor

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.agent / self.name

    def exists(self) -> bool:
        """Is there anything?"""
        return seen(self.path)

    def open(self) -> Contents | None:
        """What is there, or None; removes what was half made.

        Raises PinError for what is not ours, or not what it should be.
        """
        for path in (BPFFS / "mapek", self.agent.parent, self.agent, self.path):
            check(path)
        _clear(self.agent / f"{_NEW}{self.name}")
        if not self.exists():
            return None
        for half in self.path.glob(f"{_NEW}*"):
            _check_pin(half)
            half.unlink()
        try:
            layout = parse(self._read_layout(), self.path)
            maps: dict[str, Map] = {}
            try:
                for name in layout.maps:
                    maps[name] = self._open_map(name, layout)
            except BaseException:
                Contents(layout, maps).close()
                raise
        except FileNotFoundError as error:
            missing = Path(error.filename or "").name
            raise PinError("adopt", self.path, f"it has no {missing}", END) from error
        return Contents(layout, maps)

    def make(self, layout: Layout, maps: Mapping[str, Map]) -> None:
        """Pin `maps` and their layout, all or nothing. Raises PinError, MapekError or OSError as pinning does."""
        ensure(self.agent)
        new = self.agent / f"{_NEW}{self.name}"
        _clear(new)
        new.mkdir(mode=0o700)
        try:
            for name, one in maps.items():
                one.pin(new / f"{_MAP}{name}")
            _pin_layout(layout, new / _LAYOUT)
            new.rename(self.path)
        except BaseException:
            with contextlib.suppress(OSError, MapekError):
                _clear(new)
            raise

    def renew(self, layout: Layout, maps: Mapping[str, Map]) -> None:
        """Another layout in the place of the one that is there, and the maps that are new with it.

        Whoever is killed before the last step leaves the old layout, with pins that it does not name.
        """
        known = {one.name for one in self.path.iterdir()}
        for name, one in maps.items():
            pin = self.path / f"{_MAP}{name}"
            if pin.name in known and not _same(pin, one):
                pin.unlink()
                known.discard(pin.name)
            if pin.name not in known:
                one.pin(pin)
        new = self.path / f"{_NEW}{_LAYOUT}"
        new.unlink(missing_ok=True)
        _pin_layout(layout, new)
        new.rename(self.path / _LAYOUT)
        for name in known:
            if name.startswith(_MAP) and name.removeprefix(_MAP) not in layout.maps:
                (self.path / name).unlink(missing_ok=True)

    def link(self, name: str) -> Link | None:
        """The link kept under that name. Raises PinError when something else is pinned there."""
        path = self.link_path(name)
        try:
            _check_pin(path)
            return open_link(path)
        except FileNotFoundError:
            return None
        except AttachError as error:
            raise PinError("adopt", path, error.why, END) from error

    def links(self) -> dict[str, Link]:
        """All links kept here, by name. Raises as `link`."""
        found: dict[str, Link] = {}
        try:
            for path in sorted(self.path.glob(f"{_LINK}*")):
                name = path.name.removeprefix(_LINK)
                if (link := self.link(name)) is not None:
                    found[name] = link
        except BaseException:
            for link in found.values():
                link.close()
            raise
        return found

    def link_path(self, name: str) -> Path:
        """Where a link of that name is pinned."""
        return self.path / f"{_LINK}{name.replace('.', ':')}"

    def keep(self, name: str, link: Link) -> None:
        """Let `link` outlive us, in the place of what was kept under that name."""
        self._put(link.fd, self.link_path(name))
        link.pinned = os.fspath(self.link_path(name))

    def keep_program(self, name: str, program: Program) -> None:
        """The same for a program, so that the next agent can ask it."""
        self._put(program.fd, self.path / f"{_PROGRAM}{name}")

    def program(self, name: str) -> Program:
        """The program kept under that name. Raises PinError where there is none."""
        path = self.path / f"{_PROGRAM}{name}"
        try:
            _check_pin(path)
            fd = syscall.get_pinned(path)
        except FileNotFoundError as error:
            raise PinError("adopt", self.path, f"it has no {path.name}", END) from error
        if (kind := syscall.kind(fd)) != "prog":
            os.close(fd)
            raise PinError("adopt", path, f"it is a {kind}", END)
        return Program(fd, name)

    def _put(self, fd: int, path: Path) -> None:
        """At once in the place of what was there: at no time are both or none to be found."""
        new = path.with_name(f"{_NEW}{path.name}")
        new.unlink(missing_ok=True)
        syscall.pin(fd, new)
        new.rename(path)

    def remove(self, *, detach: bool = True) -> None:
        """Detach the links that are kept here and remove the place; nothing there is fine.

        Without `detach` those links stay that somebody holds.

        Raises PinError for what is not ours, before anything is touched.
        """
        self.check()
        if not self.exists():
            return
        for link in self.links().values() if detach else ():
            link.detach()
        # Out of sight at once: nobody adopts a place without its counters.
        gone = self.agent / f"{_NEW}{self.name}"
        _clear(gone)
        self.path.rename(gone)
        _clear(gone)
        for folder in (self.agent, self.agent.parent):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def check(self) -> None:
        """Raises PinError when there is something that is not ours."""
        for path in (self.agent, self.path):
            check(path)
        if self.exists():
            for path in self.path.iterdir():
                _check_pin(path)

    def _read_layout(self) -> bytes:
        path = self.path / _LAYOUT
        _check_pin(path)
        try:
            with open_map(path) as one:
                if one.type != "array" or one.key_size != 4 or one.value_size > _LONGEST:
                    raise PinError("adopt", self.path, f"its layout is a map of type {one.type}", END)
                return (one.lookup(bytes(4)) or b"").rstrip(b"\0")
        except PinError:
            raise
        except MapekError as error:
            raise PinError("adopt", self.path, f"its layout: {error.why}", END) from error

    def _open_map(self, name: str, layout: Layout) -> Map:
        path = self.path / f"{_MAP}{name}"
        _check_pin(path)
        try:
            found = open_map(path)
        except MapekError as error:
            raise PinError("adopt", path, error.why, END) from error
        wrong = layout.contradiction(name, found.type, found.key_size, found.value_size, found.max_entries)
        if wrong:
            found.close()
            raise PinError("adopt", path, f"it is not what the layout says: {wrong}", END)
        return found


def agents(folder: Path) -> Iterator[Path]:
    """The directories of agents below the root of a namespace, whether an agent runs or not."""
    yield from sorted(one for one in folder.glob(f"{_AGENT}*"))


def agent_dir(state: str) -> Path:
    """That of the agent whose state directory is known by `state`."""
    return root() / f"{_AGENT}{state}"


def places(agent: Path) -> list[Place]:
    """What an agent keeps; raises PinError when the directory is not ours."""
    check(agent)
    if not agent.is_dir():
        return []
    found = []
    for one in sorted(agent.iterdir()):
        if not one.name.startswith(_NEW):
            sensor, _, interface = one.name.partition(":")
            found.append(Place(agent, sensor, interface))
    return found


def clear_half_made(agent: Path) -> None:
    """Remove what somebody was killed while making, and the directory if nothing is in it. Raises PinError for what
    is not ours."""
    for one in sorted(agent.glob(f"{_NEW}*")):
        _clear(one)
    with contextlib.suppress(OSError):
        agent.rmdir()


def _check_pin(path: Path) -> None:
    """Raises PinError for a pin of another user's, or a name that we never give; FileNotFoundError."""
    found = path.lstat()
    name = path.name.removeprefix(_NEW)
    known = name == _LAYOUT or name.startswith((_MAP, _LINK, _PROGRAM))
    if not known or not stat.S_ISREG(found.st_mode):
        raise PinError("use", path, "it is not of our making", "remove it")
    if found.st_uid != os.geteuid():
        why = f"it belongs to user {found.st_uid}, not to {os.geteuid()} as we do"
        raise PinError("use", path, why, "remove it")


def _clear(path: Path) -> None:
    """Remove a directory that is no place (any more), with its pins."""
    check(path)
    if not os.path.lexists(path):
        return
    for one in path.iterdir():
        _check_pin(one)
        one.unlink()
    path.rmdir()


def _same(path: Path, one: Map) -> bool:
    try:
        with open_map(path) as found:
            return bool(found.id == one.id)
    except MapekError:
        return False


def _pin_layout(layout: Layout, path: Path) -> None:
    text = layout.text()
    if len(text) > _LONGEST:
        raise DegradedError("pin to", path, "its layout is too long", "report it")
    with create_map("array", 4, len(text) + 7 & ~7, 1) as one:
        one.update(bytes(4), text.ljust(len(text) + 7 & ~7, b"\0"), BPF_ANY)
        # Nobody changes it any more, whoever may write to maps. Kernel 5.2.
        syscall.bpf(_MAP_FREEZE, struct.pack("=I", one.fd), "freeze", path)
        one.pin(path)
