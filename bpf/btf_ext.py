"""Reads `.BTF.ext`: which source line each instruction comes from, and the CO-RE relocations.

Bounded like the other parsers; what is optional may be missing, what is there must be sound.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mapek.bpf.btf import MAGIC
from mapek.bpf.elf import ByteOrder, bad, text

MAX_RECORDS: Final = 1 << 17
MAX_CORE: Final = 1 << 15

CORE_KINDS: Final = (
    "field_byte_offset field_byte_size field_exists field_signed field_lshift_u64 field_rshift_u64 "
    "type_id_local type_id_target type_exists type_size enumval_exists enumval_value type_matches"
).split()
"""`enum bpf_core_relo_kind`, lower case without the prefix."""


@dataclass(frozen=True, slots=True)
class Line:
    """The source of the instruction at byte `offset` of its section: file, number (from 1) and the text."""

    offset: int
    file: str
    number: int
    text: str


@dataclass(frozen=True, slots=True)
class CoreRelocation:
    """A place that depends on the running kernel's types: `kind` of CORE_KINDS ("kind 99" for an unknown one),
    `type` in the object's own BTF, `access` the path of member indices ("0:1:2")."""

    offset: int
    type: int
    access: str
    kind: str


@dataclass(frozen=True, slots=True)
class Lines:
    """The source lines of one section, put into words only when asked for: few of them ever are."""

    rows: tuple[tuple[int, int, int, int], ...] = ()
    strings: bytes = b""

    def at(self, offset: int, begin: int = 0) -> Line | None:
        """The line of the instruction at byte `offset`: the last that starts there or before, not before `begin`."""
        place = bisect_right(self.rows, (offset, 1 << 32, 0, 0)) - 1
        if place < 0 or self.rows[place][0] < begin:
            return None
        start, file, line, column = self.rows[place]
        return Line(start, _cut(self.strings, file), column >> 10, _cut(self.strings, line).strip())


@dataclass(frozen=True, slots=True)
class BtfExt:
    """By section name."""

    lines: dict[str, Lines]
    relocations: dict[str, tuple[CoreRelocation, ...]]


def parse(data: memoryview, strings: memoryview, byteorder: ByteOrder, on: object = "object") -> BtfExt:
    """Parse a `.BTF.ext` section with the string table of `.BTF`. Raises ObjectError."""
    mark = "<" if byteorder == "little" else ">"
    if len(data) < 24:
        raise bad(on, f".BTF.ext is truncated at {len(data)} bytes")
    magic, version, _, header, _, _, line_off, line_len = struct.unpack_from(mark + "HBBIIIII", data)
    if magic != MAGIC or version != 1 or header < 24:
        raise bad(on, f".BTF.ext magic {magic:#x} version {version} header {header}")
    relo_off, relo_len = struct.unpack_from(mark + "II", data, 24) if 32 <= header <= len(data) else (0, 0)
    lines: dict[str, Lines] = {}
    texts = bytes(strings)
    for section, rows in _sections(data, header + line_off, line_len, strings, mark, MAX_RECORDS, on):
        # Line 0 is what a compiler says of code that comes from no line.
        lines[section] = Lines(tuple(sorted(row for row in rows if row[3] >> 10)), texts)
    relocations: dict[str, tuple[CoreRelocation, ...]] = {}
    # Most paths are those of others.
    paths: dict[int, str] = {}

    def path(access: int) -> str:
        paths[access] = _name(strings, access, on)
        return paths[access]

    for section, rows in _sections(data, header + relo_off, relo_len, strings, mark, MAX_CORE, on):
        relocations[section] = tuple(
            CoreRelocation(offset, kind_of, paths.get(access) or path(access), _kind(kind))
            for offset, kind_of, access, kind in rows
        )
    return BtfExt(lines, relocations)


def _name(strings: memoryview, offset: int, on: object) -> str:
    return text(strings, offset, on) if offset else ""


def _cut(strings: bytes, offset: int) -> str:
    """The text at `offset`, at most 200 bytes of it: a line of a source may be as long as it likes."""
    return strings[offset : offset + 200].split(b"\0")[0].decode("utf-8", "replace")


def _kind(number: int) -> str:
    return CORE_KINDS[number] if number < len(CORE_KINDS) else f"kind {number}"


def _sections(
    data: memoryview, start: int, length: int, strings: memoryview, mark: str, most: int, on: object
) -> Iterator[tuple[str, list[tuple[int, int, int, int]]]]:
    """The records of one sub-section, by the section that they are about."""
    if not length:
        return
    end = start + length
    if end > len(data) or length < 4:
        raise bad(on, ".BTF.ext is truncated or its header lies")
    (size,) = struct.unpack_from(mark + "I", data, start)
    if size < 16 or size % 4 or size > 1024:
        raise bad(on, f".BTF.ext has records of {size} bytes")
    at, total = start + 4, 0
    while at < end:
        if at + 8 > end:
            raise bad(on, ".BTF.ext is cut short")
        name, count = struct.unpack_from(mark + "II", data, at)
        at, total = at + 8, total + count
        # Of none libbpf says the same.
        if not count or at + count * size > end or total > most:
            raise bad(on, f".BTF.ext announces {count} records that are not there")
        # A newer clang may append fields; ours are the first four.
        form = struct.Struct(f"{mark}IIII{size - 16}x")
        yield _name(strings, name, on), list(form.iter_unpack(data[at : at + count * size]))
        at += count * size
