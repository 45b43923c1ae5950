"""Programs written by hand, an instruction a tuple, for tests of what reads code."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping
from dataclasses import replace

from mapek.bpf import MapSpec, ObjectSpec, Program, ProgramSpec, object_path, syscall
from mapek.bpf.anatomy import Anatomy, Function, Reference
from mapek.bpf.instructions import Instruction, decode

EMPTY = ObjectSpec.read(object_path("empty"))

Row = tuple[int, int, int, int, int]
"""opcode, destination, source, offset, immediate"""

EXIT: Row = (0x95, 0, 0, 0, 0)


def mov(register: int, value: int) -> Row:
    """register = value"""
    return 0xB7, register, 0, 0, value


def copy(to: int, from_: int) -> Row:
    """to = from_"""
    return 0xBF, to, from_, 0, 0


def load(to: int, from_: int, offset: int, code: int = 0x61) -> Row:
    """to = *(u32 *)(from_ + offset)"""
    return code, to, from_, offset, 0


def store(to: int, offset: int, from_: int, code: int = 0x63) -> Row:
    """*(u32 *)(to + offset) = from_"""
    return code, to, from_, offset, 0


def call(number: int) -> Row:
    """A helper."""
    return 0x85, 0, 0, 0, number


def when(register: int, value: int, offset: int, code: int = 0x15) -> Row:
    """if register == value goto +offset"""
    return code, register, 0, offset, value


def wide(register: int, value: int = 0, source: int = 0) -> tuple[Row, Row]:
    """register = 64-bit value; two slots."""
    return (0x18, register, source, 0, value & 0x7FFFFFFF), (0, 0, 0, 0, value >> 32)


def load_xdp(name: str, *rows: Row) -> Program:
    """Into the kernel, without an object; the caller closes it."""
    code = ctypes.create_string_buffer(raw(*rows))
    licence = ctypes.create_string_buffer(b"GPL")
    attr = bytearray(128)
    struct.pack_into("=IIQQ", attr, 0, 6, len(rows), ctypes.addressof(code), ctypes.addressof(licence))
    struct.pack_into("=16s", attr, 48, name.encode())
    return Program(syscall.bpf(syscall.PROG_LOAD, attr, "load", name), name)


def raw(*rows: Row) -> bytes:
    """As a little-endian machine has them."""
    return b"".join(struct.pack("<BBhi", c, d | s << 4, o, i) for c, d, s, o, i in rows)


def assemble(*rows: Row) -> tuple[Instruction, ...]:
    """Instructions of the rows."""
    return decode(raw(*rows), "little")


def anatomy(
    *rows: Row,
    type_: str = "xdp",
    references: Mapping[int, Reference] | None = None,
    section: str = "",
    maps: Mapping[str, MapSpec] | None = None,
    **others: tuple[Row, ...],
) -> Anatomy:
    """An object with the one program `main` and the functions `others`."""
    program = ProgramSpec("main", section or type_, type_, "", len(rows))
    spec = replace(EMPTY, programs={"main": program}, maps=dict(maps or {}))
    functions = {"main": Function("main", program.section, 0, assemble(*rows), references or {})}
    functions |= {name: Function(name, ".text", 0, assemble(*code), {}) for name, code in others.items()}
    return Anatomy(spec, functions)
