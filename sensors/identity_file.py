"""The TOML file of identities: read with bounds, and read again when inotify says that it was written or replaced.

A file that cannot be read or meant leaves the identities of the last good one in place, and is said: a slip of the pen
must not open or close the mesh. Expiries are wall-clock times, turned into CLOCK_MONOTONIC when the file is read.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import tomllib
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final

from mapek.bpf.worker import in_thread
from mapek.clock import Clock, wall_ns
from mapek.config.options import Table, error, open_at_once, plain, take, take_strings
from mapek.errors import ConfigError, MapekError
from mapek.sensors.identities import ALLOW, DENY, FIRST_OWN, MAX_BURST, MAX_RATE, Entry, Identities, Verdict

MAX_BYTES: Final = 4 << 20
MAX_IDENTITIES: Final = 10_000
SOURCE: Final = "file"

_IN_CLOSE_WRITE, _IN_MOVED_TO, _IN_DELETE, _IN_MOVED_FROM = 0x8, 0x80, 0x200, 0x40
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.inotify_init1.argtypes, _libc.inotify_init1.restype = (ctypes.c_int,), ctypes.c_int
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_libc.inotify_add_watch.restype = ctypes.c_int


def read_file(path: Path, now_ns: int, wall_now_ns: int) -> list[Entry]:
    """The entries of the file at `path`; `now_ns` is CLOCK_MONOTONIC at the wall time `wall_now_ns`.

    Raises ConfigError for a file that is missing, too large, no TOML, or says what cannot be meant. Blocks.
    """
    try:
        with open(path, "rb", opener=open_at_once) as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as cause:
        raise ConfigError("read", plain(path), cause.strerror or str(cause), "check the path") from cause
    return parse_file(data, plain(path), now_ns, wall_now_ns)


def parse_file(data: bytes, name: str, now_ns: int, wall_now_ns: int) -> list[Entry]:
    """The same of its bytes."""
    if len(data) > MAX_BYTES:
        raise ConfigError("read", name, f"it is larger than {MAX_BYTES >> 20} MiB", "split it between nodes")
    try:
        values = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as cause:
        raise ConfigError("read", name, f"it is no TOML: {plain(cause)}", "correct it") from cause
    top = Table(values, name)
    rows = take(top, "identity", list, [], maximum=MAX_IDENTITIES)
    top.leftover()
    found = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise error(top, "identity", "is not an array of tables", "begin each with [[identity]]")
        found.append(_entry(Table(row, name, f"[[identity]] {number}"), now_ns - wall_now_ns))
    return found


def _entry(table: Table, wall_offset_ns: int) -> Entry:
    spiffe_id = take(table, "spiffe_id", str, required=True)
    number = take(table, "number", int, 0, minimum=0, maximum=FIRST_OWN - 1)
    prefixes = tuple(_prefix(table, one) for one in take_strings(table, "prefixes"))
    macs = tuple(_mac(table, one) for one in take_strings(table, "macs"))
    expires_ns = None
    if "expires" in table:
        expires = table["expires"]
        if not isinstance(expires, datetime) or expires.tzinfo is None:
            raise error(table, "expires", "is no time with a zone", "write it as 2027-01-31T00:00:00Z")
        expires_ns = max(0, int(expires.timestamp() * 1e9) + wall_offset_ns)
    verdict = _verdict(table)
    table.leftover()
    try:
        return Entry(spiffe_id, prefixes, macs, expires_ns, number, verdict)
    except ConfigError as cause:
        raise error(table, "spiffe_id", f"{cause.on}: {cause.why}", cause.do) from cause


def _verdict(table: Table) -> Verdict | None:
    kind = take(table, "verdict", str, "", choices=("", "allow", "deny", "limit"))
    if kind == "limit":
        rate = take(table, "rate", int, required=True, minimum=1, maximum=MAX_RATE)
        return Verdict(
            "limit", rate, take(table, "burst", int, max(1, rate // 10), minimum=1, maximum=MAX_BURST)
        )
    if kind == "allow":
        return ALLOW
    return DENY if kind == "deny" else None


def _prefix(table: Table, text: str) -> IPv4Network | IPv6Network:
    try:
        if "%" in text:
            raise ValueError("a prefix has no interface")
        return ip_network(text)
    except ValueError as cause:
        do = "write it as 10.1.0.0/16 or fd00::/64, without host bits"
        raise error(table, "prefixes", f'"{plain(text)}" is no prefix', do) from cause


def _mac(table: Table, text: str) -> bytes:
    parts = text.split(":")
    if len(parts) != 6 or not all(len(one) == 2 and one.isascii() for one in parts):
        raise error(table, "macs", f'"{plain(text)}" is no MAC address', "write it as 02:00:00:00:00:01")
    try:
        return bytes.fromhex("".join(parts))
    except ValueError as cause:
        raise error(table, "macs", f'"{plain(text)}" is no MAC address', "write hexadecimal") from cause


class IdentityFile:
    """Keeps a registry as a file says. `trouble` is why the last reading failed, "" when it did not."""

    def __init__(self, path: Path, registry: Identities) -> None:
        self.path, self.trouble, self.loads = path, "", 0
        self._registry = registry
        self._clock: Clock | None = None
        self._fd = -1
        self._again = asyncio.Lock()

    async def open(self, clock: Clock, spawn: Callable[[Awaitable[None]], None]) -> None:
        """Read it, and watch it from now on. Raises ConfigError when it cannot be read the first time."""
        self._clock = clock
        # The folder, not the file: editors and tools write another file and rename it.
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        folder = os.fsencode(self.path.parent)
        mask = _IN_CLOSE_WRITE | _IN_MOVED_TO | _IN_DELETE | _IN_MOVED_FROM
        if self._fd < 0 or _libc.inotify_add_watch(self._fd, folder, mask) < 0:
            why = os.strerror(ctypes.get_errno())
            self.close()
            raise ConfigError("watch", plain(self.path.parent), why, "check the path, and fs.inotify limits")
        try:
            await self._load()
        except BaseException:
            self.close()
            raise
        asyncio.get_running_loop().add_reader(self._fd, self._hear, spawn)

    async def reload(self) -> None:
        """Read it now. What cannot be read is said in `trouble`, and changes nothing."""
        async with self._again:
            try:
                await self._load()
            except MapekError as cause:
                self.trouble = str(cause)

    def close(self) -> None:
        """Watch it no more; what it said stays registered. Twice is fine."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
        self._fd = -1

    async def _load(self) -> None:
        assert self._clock is not None
        now_ns = self._clock.now_ns()
        entries = await in_thread(lambda: read_file(self.path, now_ns, wall_ns()))
        self._registry.replace(entries, SOURCE)
        self.trouble, self.loads = "", self.loads + 1

    def _hear(self, spawn: Callable[[Awaitable[None]], None]) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        if os.fsencode(self.path.name) in _names(data):
            spawn(self.reload())


def _names(data: bytes) -> Iterator[bytes]:
    """The file names in inotify's events; each has a header of 16 bytes, its last word the name's length."""
    at = 0
    while at + 16 <= len(data):
        (size,) = struct.unpack_from("=I", data, at + 12)
        yield data[at + 16 : at + 16 + size].rstrip(b"\0")
        at += 16 + size
