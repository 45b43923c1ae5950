"""Objects of which one part is many where a real one has few: quick to write, and for a careless reader long to read.

`SHAPES` has them by name, each made of a size: at full size what the parser takes at most, at a small one a seed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from mapek.bpf.elf import SHF_EXECINSTR, SHT_PROGBITS, SHT_REL, SHT_SYMTAB, STT_FUNC, STT_OBJECT
from tests.support.bytecode import EXIT, Row, call, raw, when

INT, PTR, ARRAY, STRUCT, TYPEDEF, VAR, DATASEC = 1, 2, 3, 4, 8, 14, 15
STRTAB: Final = 3
Record = tuple[int, int, int, int]
U32: Final = 1
"""The type of that id, which each object has."""


class Making:
    """An object in the making, little-endian; what is added gets the next number."""

    def __init__(self) -> None:
        self._sections: list[tuple[str, int, int, int, int, bytes]] = [("", 0, 0, 0, 0, b"")]
        self._symbols = [bytes(24)]
        self._names = bytearray(1)
        self._types: list[bytes] = []
        self._strings = bytearray(1)
        self._lines, self._core = bytearray(struct.pack("<I", 16)), bytearray(struct.pack("<I", 16))
        self.type("u32", INT, 4, tail=struct.pack("<I", 32))
        self.licence = b"GPL\0"

    def section(
        self, name: str, data: bytes, kind: int = SHT_PROGBITS, flags: int = 0, info: int = 0, entry: int = 0
    ) -> int:
        """The same bytes are there once, however many sections have them."""
        self._sections.append((name, kind, flags, info, entry, data))
        return len(self._sections) - 1

    def code(self, name: str, *rows: Row) -> int:
        return self.section(name, raw(*rows), flags=SHF_EXECINSTR)

    def symbol(self, name: str, kind: int, section: int, value: int, size: int) -> int:
        at = len(self._names)
        self._names += name.encode() + b"\0"
        self._symbols.append(struct.pack("<IBBHQQ", at, 1 << 4 | kind, 0, section, value, size))
        return len(self._symbols) - 1

    def program(self, name: str, section: str, *rows: Row) -> int:
        index = self.code(section, *rows)
        self.symbol(name, STT_FUNC, index, 0, 8 * len(rows))
        return index

    def string(self, text: str) -> int:
        self._strings += text.encode() + b"\0"
        return len(self._strings) - len(text) - 1

    def type(self, name: str, kind: int, size: int, count: int = 0, tail: bytes = b"") -> int:
        at = self.string(name) if name else 0
        self._types.append(struct.pack("<III", at, kind << 24 | count, size) + tail)
        return len(self._types)

    def lines(self, section: str, rows: list[Record], times: int = 1) -> None:
        self._lines += self._records(section, rows) * times

    def core(self, section: str, rows: list[Record]) -> None:
        self._core += self._records(section, rows)

    def _records(self, section: str, rows: list[Record]) -> bytes:
        head = struct.pack("<II", self.string(section), len(rows))
        return head + b"".join(struct.pack("<IIII", *row) for row in rows)

    def _btf_ext(self) -> bytes:
        many = len(self._lines), len(self._lines), len(self._core)
        return struct.pack("<HBBIIIIIII", 0xEB9F, 1, 0, 32, 0, 0, 0, *many) + self._lines + self._core

    def object(self) -> bytes:
        self.section("license", self.licence)
        self.section(".BTF.ext", self._btf_ext())
        types = b"".join(self._types)
        head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(self._strings))
        self.section(".BTF", head + types + self._strings)
        symbols = self.section("symbols", b"".join(self._symbols), SHT_SYMTAB, entry=24)
        names = self.section("names", b"", STRTAB)
        places, offsets, body = {}, [], bytearray(64)
        for name, *_ in self._sections:
            offsets.append(len(self._names))
            self._names += name.encode() + b"\0"
        rows = []
        for index, (_, kind, flags, info, entry, data) in enumerate(self._sections):
            content = bytes(self._names) if index == names else data
            if id(data) not in places or index == names:
                places[id(data)] = len(body)
                body += content + bytes(-len(content) % 8)
            link = names if index == symbols else 0
            rows.append(
                struct.pack(
                    "<IIQQQQIIQQ",
                    *(offsets[index], kind, flags, 0, places[id(data)], len(content), link, info, 8, entry),
                )
            )
        count = len(rows)
        body[:64] = struct.pack(
            "<4sBBB9xHHIQQQIHHHHHH",
            *(b"\x7fELF", 2, 1, 1, 1, 247, 1, 0, 0, len(body), 0, 64, 0, 0, 64, count, names),
        )
        return bytes(body) + b"".join(rows)


def helpers(one: Making, size: int) -> None:
    """A program that calls another helper with each instruction, of which no line of the source is known."""
    one.program("main", "xdp", *(call(1000 + n) for n in range(size - 1)), EXIT)
    line = one.string("x.c")
    one.lines("xdp", [(8 * n, line, line, 0) for n in range(size)])


def branches(one: Making, size: int) -> None:
    """A program that may leave its way with each instruction, two lines of the source and a relocation for each."""
    rows = [when(1, n, min(0x7FFF, size - 2 - n)) for n in range(size - 1)]
    index = one.program("branches", "xdp", *rows, EXIT)
    line = one.string("x.c")
    one.lines("xdp", [(4 * n, line, line, n << 10) for n in range(2 * size)])
    one.section(
        ".rel", b"".join(struct.pack("<QQ", 8 * n, 10) for n in range(size)), SHT_REL, info=index, entry=16
    )


def relocated(one: Making, size: int) -> None:
    """Functions of one section, and eight places in each that depend on the kernel's types."""
    text = one.code(".text", *[*[call(5)] * 7, EXIT] * size)
    for n in range(size):
        one.symbol(f"r{n}", STT_FUNC, text, 64 * n, 64)
    record = one.type("task_struct", STRUCT, 4, 1, struct.pack("<III", one.string("pid"), U32, 0))
    path = one.string("0:0")
    one.core(".text", [(8 * n, record, path, 0) for n in range(8 * size)])


def data(one: Making, size: int) -> None:
    """Sections of data with a type each, amid thirty times as many symbols and fifty times as many types."""
    content = bytes(8)
    for n in range(size):
        one.symbol(f"v{n}", STT_OBJECT, one.section(f".data.{n}", content), 0, 4)
        variable = one.type(f"v{n}", VAR, U32, tail=struct.pack("<I", 1))
        one.type(f".data.{n}", DATASEC, 8, 1, struct.pack("<III", variable, 0, 4))
    for n in range(30 * size):
        one.symbol(f"s{n}", 0, 1, n, 0)
    for _ in range(50 * size):
        one.type("", PTR, U32)


def programs(one: Making, size: int) -> None:
    """A section for each program, and all of them call the same function with a hundred helpers that none may call."""
    text = one.code(".text", *(call(5000 + n) for n in range(100)), EXIT)
    function = one.symbol("helped", STT_FUNC, text, 0, 808)
    same = struct.pack("<QQ", 0, function << 32 | 10)
    for n in range(size):
        index = one.program(f"p{n}", f"kprobe/{n}", (0x85, 0, 1, 0, -1), EXIT)
        one.section(".rel", same, SHT_REL, info=index, entry=16)


def maps(one: Making, size: int) -> None:
    """Maps of one definition with sixty times as many members, each of which is behind thirty names."""
    array = one.type("", ARRAY, 0, tail=struct.pack("<III", U32, U32, 1))
    for _ in range(30):
        array = one.type("", TYPEDEF, array)
    member = struct.pack("<III", one.string("key"), one.type("", PTR, array), 0)
    definition = one.type("", STRUCT, 8, 60 * size, member * (60 * size))
    found = []
    for n in range(size):
        named = definition
        for _ in range(30):
            named = one.type("", TYPEDEF, named)
        found.append(one.type(f"m{n}", VAR, named, tail=struct.pack("<I", 1)))
    one.type(".maps", DATASEC, 8, size, b"".join(struct.pack("<III", variable, 0, 8) for variable in found))
    one.section(".maps", bytes(8))


def chain(one: Making, size: int) -> None:
    """Functions that call the next one twice."""
    twice: list[Row] = [(0x85, 0, 1, 0, 2), (0x85, 0, 1, 0, 1), EXIT]
    text = one.code(".text", *twice * (size - 1), EXIT)
    first = one.symbol("c0", STT_FUNC, text, 0, 24)
    for n in range(1, size):
        one.symbol(f"c{n}", STT_FUNC, text, 24 * n, 24 if n < size - 1 else 8)
    index = one.program("main", "xdp", (0x85, 0, 1, 0, -1), EXIT)
    one.section(".rel", struct.pack("<QQ", 0, first << 32 | 10), SHT_REL, info=index, entry=16)


def licence(one: Making, size: int) -> None:
    """Licences of one letter."""
    one.licence = b"a\0" * size
    one.program("main", "xdp", EXIT)


def over_each_other(one: Making, size: int) -> None:
    """Relocations of many sections, all at one place of the file."""
    same = struct.pack("<QQ", 0, 1 << 32 | 10) * (8 * size)
    for n in range(size):
        index = one.program(f"p{n}", f"kprobe/{n}", EXIT)
        one.section(".rel", same, SHT_REL, info=index, entry=16)


def no_records(one: Making, size: int) -> None:
    """Sections without a line."""
    one.program("main", "xdp", EXIT)
    one.lines("", [], times=size)


def everything(one: Making, size: int) -> None:
    """Nearly as much of each as is read at all."""
    branches(one, 8 * size)
    relocated(one, size)
    data(one, size // 8)
    maps(one, size // 8)


SHAPES: Final[dict[str, tuple[Callable[[Making, int], None], int, int]]] = {
    "helpers": (helpers, 1 << 16, 60),
    "branches": (branches, 1 << 16, 60),
    "relocated": (relocated, 1 << 12, 10),
    "data": (data, 1000, 8),
    "programs": (programs, 1000, 2),
    "maps": (maps, 1000, 8),
    "chain": (chain, 4095, 9),
    "licence": (licence, 4 << 20, 20),
    "over each other": (over_each_other, 1000, 8),
    "no records": (no_records, 1 << 20, 8),
    "everything": (everything, 4090, 16),
}
"""What makes each, its full size, and that of a seed."""


def shape(name: str, *, full: bool) -> bytes:
    """An object of that shape."""
    make, most, few = SHAPES[name]
    one = Making()
    make(one, most if full else few)
    return one.object()
