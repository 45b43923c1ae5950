"""One place on the bpffs: what a sensor keeps there, how it is made, adopted, renewed and removed.

Where places lie and what is in them tells `mapek.bpf.pins`. Methods block for microseconds, unless they say more.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mapek.bpf import syscall
from mapek.bpf.bpffs import OURS
from mapek.bpf.layout import Layout, parse
from mapek.bpf.maps import BPF_ANY, Map, create_map, open_map
from mapek.bpf.pins import END, LAYOUT, LINK, MAP, NEW, PROGRAM, check, check_pin, clear, ensure, seen
from mapek.bpf.program import Program
from mapek.bpf.xdp import Link, open_link
from mapek.errors import AttachError, DegradedError, MapekError, PinError

_LONGEST: Final = 1 << 16
_MAP_FREEZE: Final = 22


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
        for path in (OURS, self.agent.parent, self.agent, self.path):
            check(path)
        clear(self.agent / f"{NEW}{self.name}")
        if not self.exists():
            return None
        for half in self.path.glob(f"{NEW}*"):
            check_pin(half)
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
        new = self.agent / f"{NEW}{self.name}"
        clear(new)
        new.mkdir(mode=0o700)
        try:
            for name, one in maps.items():
                one.pin(new / f"{MAP}{name}")
            _pin_layout(layout, new / LAYOUT)
            new.rename(self.path)
        except BaseException:
            with contextlib.suppress(OSError, MapekError):
                clear(new)
            raise

    def renew(self, layout: Layout, maps: Mapping[str, Map]) -> None:
        """Another layout in the place of the one that is there, and the maps that are new with it.

        Whoever is killed before the last step leaves the old layout, with pins that it does not name.
        """
        known = {one.name for one in self.path.iterdir()}
        for name, one in maps.items():
            pin = self.path / f"{MAP}{name}"
            if pin.name in known and not _same(pin, one):
                pin.unlink()
                known.discard(pin.name)
            if pin.name not in known:
                one.pin(pin)
        new = self.path / f"{NEW}{LAYOUT}"
        new.unlink(missing_ok=True)
        _pin_layout(layout, new)
        new.rename(self.path / LAYOUT)
        for name in known:
            if name.startswith(MAP) and name.removeprefix(MAP) not in layout.maps:
                (self.path / name).unlink(missing_ok=True)

    def link(self, name: str) -> Link | None:
        """The link kept under that name. Raises PinError when something else is pinned there."""
        path = self.link_path(name)
        try:
            check_pin(path)
            return open_link(path)
        except FileNotFoundError:
            return None
        except AttachError as error:
            raise PinError("adopt", path, error.why, END) from error

    def links(self) -> dict[str, Link]:
        """All links kept here, by name. Raises as `link`."""
        found: dict[str, Link] = {}
        try:
            for path in sorted(self.path.glob(f"{LINK}*")):
                name = path.name.removeprefix(LINK)
                if (link := self.link(name)) is not None:
                    found[name] = link
        except BaseException:
            for link in found.values():
                link.close()
            raise
        return found

    def link_path(self, name: str) -> Path:
        """Where a link of that name is pinned."""
        return self.path / f"{LINK}{name.replace('.', ':')}"

    def keep(self, name: str, link: Link) -> None:
        """Let `link` outlive us, in the place of what was kept under that name."""
        self._put(link.fd, self.link_path(name))
        link.pinned = os.fspath(self.link_path(name))

    def keep_program(self, name: str, program: Program) -> None:
        """The same for a program, so that the next agent can ask it."""
        self._put(program.fd, self.path / f"{PROGRAM}{name}")

    def program(self, name: str) -> Program:
        """The program kept under that name. Raises PinError where there is none."""
        path = self.path / f"{PROGRAM}{name}"
        try:
            check_pin(path)
            fd = syscall.get_pinned(path)
        except FileNotFoundError as error:
            raise PinError("adopt", self.path, f"it has no {path.name}", END) from error
        if (kind := syscall.kind(fd)) != "prog":
            os.close(fd)
            raise PinError("adopt", path, f"it is a {kind}", END)
        return Program(fd, name)

    def _put(self, fd: int, path: Path) -> None:
        """At once in the place of what was there: at no time are both or none to be found."""
        new = path.with_name(f"{NEW}{path.name}")
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
        gone = self.agent / f"{NEW}{self.name}"
        clear(gone)
        self.path.rename(gone)
        clear(gone)
        for folder in (self.agent, self.agent.parent):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def held(self) -> list[tuple[str, int]]:
        """What is pinned here: ("map" | "link" | "prog", id). Raises as `check`."""
        self.check()
        found = []
        for path in self.path.iterdir() if self.exists() else ():
            fd = syscall.get_pinned(path)
            try:
                # Of all three kinds the id is the second word.
                found.append((syscall.kind(fd), struct.unpack_from("=I", syscall.info(fd, 16), 4)[0]))
            finally:
                os.close(fd)
        return found

    def check(self) -> None:
        """Raises PinError when there is something that is not ours."""
        for path in (self.agent, self.path):
            check(path)
        if self.exists():
            for path in self.path.iterdir():
                check_pin(path)

    def _read_layout(self) -> bytes:
        path = self.path / LAYOUT
        check_pin(path)
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
        path = self.path / f"{MAP}{name}"
        check_pin(path)
        try:
            found = open_map(path)
        except MapekError as error:
            raise PinError("adopt", path, error.why, END) from error
        wrong = layout.contradiction(name, found.type, found.key_size, found.value_size, found.max_entries)
        if wrong:
            found.close()
            raise PinError("adopt", path, f"it is not what the layout says: {wrong}", END)
        return found


def places(agent: Path) -> list[Place]:
    """What an agent keeps; raises PinError when the directory is not ours."""
    check(agent)
    if not agent.is_dir():
        return []
    found = []
    for one in sorted(agent.iterdir()):
        if not one.name.startswith(NEW):
            sensor, _, interface = one.name.partition(":")
            found.append(Place(agent, sensor, interface))
    return found


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
