"""Reads 64-bit ELF relocatable objects for BPF, either byte order, without trusting one byte of them.

Pure Python and bounded: it copes with hostile files by checking every offset against the file before use,
and knows only what a BPF object needs (sections and symbols). It raises nothing but ObjectError.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from mapek.errors import ObjectError

MAX_FILE: Final = 32 << 20
MAX_SECTIONS: Final = 4096
# Ten times what large objects have, and little enough that the largest that is read is judged within a second.
MAX_SYMBOLS: Final = 1 << 15
MAX_RELOCATIONS: Final = 1 << 16
MAX_NAME: Final = 512

ET_REL: Final = 1
EM_BPF: Final = 247
SHT_PROGBITS: Final = 1
SHT_SYMTAB: Final = 2
SHT_NOBITS: Final = 8
SHT_REL: Final = 9
SHF_EXECINSTR: Final = 4
STT_OBJECT: Final = 1
STT_FUNC: Final = 2
STT_SECTION: Final = 3
STB_LOCAL: Final = 0

ByteOrder = Literal["little", "big"]


@dataclass(frozen=True, slots=True)
class Section:
    """One section; `data` is empty for SHT_NOBITS, `size` is what the header says."""

    index: int
    name: str
    type: int
    flags: int
    size: int
    link: int
    info: int
    entsize: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Symbol:
    """One symbol; `section` is the index of the section it is defined in."""

    name: str
    kind: int
    bind: int
    section: int
    value: int
    size: int


@dataclass(frozen=True, slots=True)
class Relocation:
    """One SHT_REL entry: the byte `offset` in the section it is for, its type and its symbol."""

    offset: int
    type: int
    symbol: Symbol


@dataclass(frozen=True)
class Elf:
    """The parsed object: its byte order, sections by index, symbols by index."""

    byteorder: ByteOrder
    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]

    @functools.cached_property
    def by_section(self) -> Mapping[int, list[Symbol]]:
        """Symbols by the section that they are defined in, in order of the table."""
        found: dict[int, list[Symbol]] = {}
        for one in self.symbols:
            found.setdefault(one.section, []).append(one)
        return found

    @functools.cached_property
    def _tables(self) -> Mapping[int, list[Section]]:
        found: dict[int, list[Section]] = {}
        for one in self.sections:
            if one.type == SHT_REL:
                found.setdefault(one.info, []).append(one)
        return found

    @functools.cached_property
    def _names(self) -> Mapping[str, Section]:
        return {one.name: one for one in reversed(self.sections)}

    def relocations(self, section: Section, on: object = "object") -> Iterator[Relocation]:
        """What is to be filled into `section`. Raises ObjectError for a symbol that is not there."""
        mark = "<" if self.byteorder == "little" else ">"
        for table in self._tables.get(section.index, ()):
            if table.entsize != 16 or len(table.data) % 16:
                raise bad(on, f"{len(table.data)} bytes of relocations in entries of {table.entsize}")
            for offset, info in struct.iter_unpack(mark + "QQ", table.data):
                if info >> 32 >= len(self.symbols):
                    raise bad(on, f"a relocation for symbol {info >> 32} of {len(self.symbols)}")
                yield Relocation(offset, info & 0xFFFFFFFF, self.symbols[info >> 32])

    def section(self, name: str) -> Section | None:
        """The first section of that name, or None."""
        return self._names.get(name)


def bad(on: object, why: str) -> ObjectError:
    """The one error of the parsers, with the hint that helps in nearly all cases."""
    return ObjectError("parse", on, why, "rebuild it with make bpf, or fetch it again")


def text(data: memoryview, offset: int, on: object) -> str:
    """The NUL-terminated string at `offset` of a string table; raises ObjectError past its end or above 511
    bytes."""
    if not 0 <= offset < len(data):
        raise bad(on, f"a name lies at {offset}, past its string table")
    raw = bytes(data[offset : offset + MAX_NAME])
    end = raw.find(b"\0")
    if end < 0:
        raise bad(on, f"the name at {offset} does not end")
    return raw[:end].decode("utf-8", "replace")


def parse(data: bytes, on: object = "object") -> Elf:
    """Parse a whole file held in `data`; `on` names it in errors. Raises ObjectError."""
    if len(data) > MAX_FILE:
        raise bad(on, f"{len(data)} bytes is more than any BPF object")
    if len(data) < 64 or data[:4] != b"\x7fELF":
        raise bad(
            on,
            "not an ELF file" if data[:4] != b"\x7fELF"[: len(data)] else f"truncated at {len(data)} bytes",
        )
    if data[4] != 2:
        raise bad(on, "not a 64-bit ELF file")
    if data[5] not in (1, 2):
        raise bad(on, f"unknown byte order {data[5]}")
    order: ByteOrder = "little" if data[5] == 1 else "big"
    mark = "<" if order == "little" else ">"
    kind, machine = struct.unpack_from(mark + "HH", data, 16)
    if machine != EM_BPF:
        raise bad(on, f"built for machine {machine}, not for BPF ({EM_BPF})")
    if kind != ET_REL:
        raise bad(on, f"ELF type {kind} is not a relocatable object")
    (table,) = struct.unpack_from(mark + "Q", data, 40)
    entsize, count, names_index = struct.unpack_from(mark + "HHH", data, 58)
    if entsize != 64 or not 0 < count <= MAX_SECTIONS:
        raise bad(on, f"{count} section headers of {entsize} bytes")
    if table + count * 64 > len(data):
        raise bad(on, f"truncated: section headers end at {table + count * 64} of {len(data)} bytes")
    if names_index >= count:
        raise bad(on, f"section names are in section {names_index} of {count}")
    view = memoryview(data)
    heads = [struct.unpack_from(mark + "IIQQQQIIQQ", data, table + i * 64) for i in range(count)]

    def body(i: int) -> memoryview:
        _, kind, _, _, offset, size, *_ = heads[i]
        if kind in (0, SHT_NOBITS):
            return view[:0]
        if offset + size > len(data):
            raise bad(on, f"truncated: section {i} ends at {offset + size} of {len(data)} bytes")
        return view[offset : offset + size]

    strings = body(names_index)
    sections = tuple(
        Section(i, text(strings, h[0], on) if h[1] else "", h[1], h[2], h[5], h[6], h[7], h[9], body(i))
        for i, h in enumerate(heads)
    )
    # Sections may lie over each other in the file, so its size is no limit.
    filled = [s for s in sections if s.type == SHT_REL and s.info < count]
    if sum(s.size // 16 for s in filled if sections[s.info].flags & SHF_EXECINSTR) > MAX_RELOCATIONS:
        raise bad(on, f"more than {MAX_RELOCATIONS} relocations")
    return Elf(order, sections, _symbols(sections, mark, on))


def _symbols(sections: tuple[Section, ...], mark: str, on: object) -> tuple[Symbol, ...]:
    tables = [s for s in sections if s.type == SHT_SYMTAB]
    if len(tables) != 1:
        raise bad(on, f"{len(tables)} symbol tables")
    table = tables[0]
    if table.entsize != 24 or table.size % 24 or table.size // 24 > MAX_SYMBOLS:
        raise bad(on, f"a symbol table of {table.size} bytes in entries of {table.entsize}")
    if not 0 < table.link < len(sections):
        raise bad(on, f"symbol names are in section {table.link} of {len(sections)}")
    strings = sections[table.link].data
    found = []
    for name, kind, _, where, value, size in struct.iter_unpack(mark + "IBBHQQ", table.data):
        found.append(
            Symbol(text(strings, name, on) if name else "", kind & 15, kind >> 4, where, value, size)
        )
    return tuple(found)
