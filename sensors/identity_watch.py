"""Keeps a registry as the file of identities says: read again when inotify says that it was written or replaced.

A file that cannot be read or meant leaves the identities of the last good one in place, and is said: a slip of the pen
must not open or close the mesh. Folders are watched and not the file, since editors and tools write another one and
rename it; and where a symbolic link is on the way, the folder that it lies in, since others swap a link.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

from mapek.bpf.worker import in_thread
from mapek.clock import Clock, wall_ns
from mapek.config.options import plain
from mapek.errors import ConfigError, MapekError
from mapek.sensors.identities import Identities
from mapek.sensors.identity_file import read_file

SOURCE: Final = "file"
LINKS: Final = 40
"""Symbolic links that the kernel follows, too."""

_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE, _MOVE_SELF = 0x8, 0x40, 0x80, 0x100, 0x200, 0x800
_IS_FOLDER: Final = 0x4000_0000
_MASK: Final = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _MOVE_SELF
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.inotify_init1.argtypes, _libc.inotify_init1.restype = (ctypes.c_int,), ctypes.c_int
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_libc.inotify_add_watch.restype = ctypes.c_int

_Stamp = tuple[int, ...]


class IdentityFile:
    """The file at `path` and a registry. `trouble` is why the last reading failed, "" when it did not.

    `loads` counts the readings that did not fail.
    """

    def __init__(self, path: Path, registry: Identities) -> None:
        self.path, self.trouble, self.loads = path, "", 0
        self._registry = registry
        self._clock: Clock | None = None
        self._fd = -1
        self._folders: dict[int, Path] = {}
        self._complete = False
        """Are all folders watched, and not one above?"""
        self._stamp: _Stamp = ()
        self._again = asyncio.Lock()

    async def open(self, clock: Clock, spawn: Callable[[Awaitable[None]], None]) -> None:
        """Read it, and watch it from now on. Raises ConfigError when it cannot be read the first time."""
        self._clock = clock
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if self._fd >= 0:
                self._watch()
            if not self._folders:
                why = os.strerror(ctypes.get_errno())
                do = "check the path, and fs.inotify limits"
                raise ConfigError("watch", plain(self.path.parent), why, do)
            await self._load()
        except BaseException:
            self.close()
            raise
        asyncio.get_running_loop().add_reader(self._fd, self._hear, spawn)

    async def reload(self) -> None:
        """Read it now. What cannot be read is said in `trouble`, and changes nothing."""
        async with self._again:
            try:
                self._watch()
                await self._load()
            except MapekError as cause:
                self.trouble = str(cause)

    def close(self) -> None:
        """Watch it no more; what it said stays registered. Twice is fine."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
        self._fd = -1
        self._folders.clear()

    async def _load(self) -> None:
        assert self._clock is not None
        now_ns = self._clock.now_ns()
        # Before it is read: what changes meanwhile is another state.
        self._stamp = _stamp(self.path)
        entries = await in_thread(lambda: read_file(self.path, now_ns, wall_ns()))
        await self._registry.replace(entries, SOURCE)
        self.trouble, self.loads = "", self.loads + 1

    def _watch(self) -> None:
        """Watch the folders that count now; for one that is missing the nearest above it."""
        self._complete = True
        for folder in _ways(self.path):
            if not self._add(folder):
                self._complete = False
                any(self._add(above) for above in folder.parents)

    def _add(self, folder: Path) -> bool:
        ident = _libc.inotify_add_watch(self._fd, os.fsencode(folder), _MASK)
        if ident >= 0:
            self._folders[ident] = folder
        return bool(ident >= 0)

    def _hear(self, spawn: Callable[[Awaitable[None]], None]) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        heard = [event for event in _events(data) if self._may_count(*event)]
        # An event without a name: a watched folder went or moved, or the queue was full and nobody knows what was lost.
        surely = not self._complete or any(name in (b"", os.fsencode(self.path.name)) for _, _, name in heard)
        if heard and (surely or _stamp(self.path) != self._stamp):
            spawn(self.reload())

    def _may_count(self, ident: int, mask: int, name: bytes) -> bool:
        """What was just created is empty, and the end of its writing comes; but a link is there at once."""
        folder = self._folders.get(ident)
        made_empty = mask & _CREATE and not mask & _IS_FOLDER
        return not (made_empty and folder is not None and not (folder / os.fsdecode(name)).is_symlink())


def _ways(path: Path) -> list[Path]:
    """Folders in which a change may let `path` lead elsewhere: of the file, and of each symbolic link on the way."""
    found, links = [], 0
    at, rest = Path("/"), list(reversed((Path.cwd() / path).parts))
    while rest:
        part = rest.pop()
        try:
            target = os.readlink(at / part)
        except OSError:
            at = at / part
            continue
        found.append(at)
        links += 1
        if links > LINKS:
            break
        rest += reversed(Path(target).parts)
    return list(dict.fromkeys([*found, at.parent]))


def _stamp(path: Path) -> _Stamp:
    """What tells one state of the file that `path` leads to from another; () if it leads nowhere."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _events(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(watch, mask, file name) of inotify's events; each has a header of 16 bytes, its last word the name's length."""
    at = 0
    while at + 16 <= len(data):
        ident, mask, _, size = struct.unpack_from("=iIII", data, at)
        yield ident, mask, data[at + 16 : at + 16 + size].rstrip(b"\0")
        at += 16 + size
