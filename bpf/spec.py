"""`ObjectSpec`: what is in a BPF object file, read without privileges and without the kernel.

Parsing is apart from loading, so that tests, `doctor` and a plain user can look at an object, and so that a
hostile file is refused before libbpf's C parser sees it. Maps come from BTF definitions only
(`SEC(".maps")`), as libbpf 1.0 wants.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mapek.bpf import btf as btf_module
from mapek.bpf import elf as elf_module
from mapek.bpf.btf import Btf
from mapek.bpf.elf import ByteOrder, Elf, Section, bad
from mapek.bpf.names import MAP_TYPES, program_kind
from mapek.bpf.regular import read_regular, reason
from mapek.errors import ObjectError

MAX_PROGRAMS: Final = 1 << 10
MAX_MAPS: Final = 1 << 10

_BPF_F_MMAPABLE: Final = 1 << 10
_BPF_F_RDONLY_PROG: Final = 1 << 7
_ONCE: Final = (".BTF", ".BTF.ext", ".maps", "license", "maps", "version")


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """A program as it stands in the file. `type` and `attach` are the kernel's names, lower case ("xdp",
    "sched_cls")."""

    name: str
    section: str
    type: str
    attach: str
    instructions: int


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A map definition; `type` is the kernel's name, lower case ("percpu_array"); sizes in bytes."""

    name: str
    type: str
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class VariableSpec:
    """A global variable: its data section (".rodata"), byte offset and size in it, and whether it is a
    signed integer."""

    name: str
    section: str
    offset: int
    size: int
    signed: bool


@dataclass(frozen=True, slots=True)
class ObjectSpec:
    """A parsed object. `raw` are the very bytes that were parsed, and that `load` hands to libbpf."""

    path: str
    raw: bytes = field(repr=False)
    byteorder: ByteOrder
    license: str
    programs: dict[str, ProgramSpec]
    maps: dict[str, MapSpec]
    variables: dict[str, VariableSpec]
    btf: Btf = field(repr=False)
    elf: Elf = field(repr=False)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ObjectSpec:
        """Parse the object file at `path`. Raises ObjectError for anything that is not one, OSError never."""
        name = os.fspath(path)
        try:
            data = read_regular(path, elf_module.MAX_FILE)
        except (OSError, ValueError) as error:
            raise ObjectError("read", name, reason(error), "check the path") from error
        return cls.parse(data, name)

    @classmethod
    def parse(cls, data: bytes, path: str = "object") -> ObjectSpec:
        """Parse the bytes of an object file; `path` names it in errors. Raises ObjectError."""
        elf = elf_module.parse(data, path)
        _check_names(elf, path)
        section = elf.section(".BTF")
        if section is None:
            raise bad(path, "it has no BTF, so its maps are unknown (compile with -g)")
        btf = btf_module.parse(section.data, elf.byteorder, path)
        programs = _programs(elf, path)
        maps = _maps(btf, path)
        variables = {}
        data_sections = [one for one in elf.sections if one.size and _is_data(one)]
        if len(maps) + len(data_sections) > MAX_MAPS:
            raise bad(path, f"more than {MAX_MAPS} maps")
        for found in data_sections:
            flags = _BPF_F_MMAPABLE | (_BPF_F_RDONLY_PROG if found.name.startswith(".rodata") else 0)
            maps[found.name] = MapSpec(found.name, "array", 4, found.size, 1, flags)
            variables.update(_variables(elf, btf, found, path))
        return cls(path, data, elf.byteorder, _license(elf, path), programs, maps, variables, btf, elf)

    def check_byteorder(self) -> None:
        """Raises ObjectError when the object is of the other byte order than this machine."""
        if self.byteorder != sys.byteorder:
            other = "bpfel" if sys.byteorder == "little" else "bpfeb"
            do = f"use the object built for {other}"
            raise ObjectError(
                "load", self.path, f"it is {self.byteorder}-endian, this machine {sys.byteorder}", do
            )


def object_path(name: str) -> Path:
    """Where the built object of `bpf/programs/NAME.bpf.c` for this machine's byte order lies. Raises
    ObjectError."""
    if "/" in name or name.startswith("."):
        raise ObjectError(
            "find", f"program {name!r}", "not a program name", "give the name without path or suffix"
        )
    target = "bpfel" if sys.byteorder == "little" else "bpfeb"
    path = Path(__file__).resolve().parent / "programs" / f"{name}.{target}.o"
    if not path.is_file():
        raise ObjectError("find", f"program {name}", f"no file {path}", "build it with make bpf")
    return path


def _check_names(elf: Elf, on: str) -> None:
    """Of two sections of one name libbpf takes the last, or both; whoever judges one of them judges nothing."""
    seen = set()
    for one in elf.sections:
        if one.name in _ONCE or _is_data(one) or one.flags & elf_module.SHF_EXECINSTR:
            if one.name in seen:
                raise bad(on, f"it has two sections {one.name!r}")
            seen.add(one.name)


def _is_data(section: Section) -> bool:
    """Does libbpf make a map of it? Of .data.NAME and .rodata.NAME too; only .bss has no such sisters."""
    if section.type == elf_module.SHT_NOBITS:
        return section.name == ".bss"
    return section.type == elf_module.SHT_PROGBITS and (section.name + ".").startswith((".data.", ".rodata."))


def _license(elf: Elf, on: str) -> str:
    section = elf.section("license")
    if section is None:
        raise bad(on, "it has no license section")
    return bytes(section.data[:128]).split(b"\0")[0].decode("utf-8", "replace")


def _programs(elf: Elf, on: str) -> dict[str, ProgramSpec]:
    found: dict[str, ProgramSpec] = {}
    for symbol in elf.symbols:
        if symbol.kind != elf_module.STT_FUNC or not 0 < symbol.section < len(elf.sections):
            continue
        section = elf.sections[symbol.section]
        if section.name == ".text" or not section.flags & elf_module.SHF_EXECINSTR:
            continue
        if (
            symbol.value + symbol.size > len(section.data)
            or symbol.size % 8
            or symbol.value % 8
            or not symbol.size
        ):
            raise bad(on, f"program {symbol.name!r} does not lie in its section")
        if not symbol.name or symbol.name in found:
            raise bad(on, f"two programs are called {symbol.name!r}")
        if len(found) == MAX_PROGRAMS:
            raise bad(on, f"more than {MAX_PROGRAMS} programs")
        kind, attach = program_kind(section.name)
        found[symbol.name] = ProgramSpec(symbol.name, section.name, kind, attach, symbol.size // 8)
    return found


def _maps(btf: Btf, on: str) -> dict[str, MapSpec]:
    entries = btf.variables(".maps")
    if len(entries) > MAX_MAPS:
        raise bad(on, f"more than {MAX_MAPS} maps")
    found: dict[str, MapSpec] = {}
    # Many maps may be of one definition.
    known: dict[int, dict[str, int]] = {}
    for entry in entries:
        variable = btf.get(entry.type)
        definition = btf.resolve(variable.size_or_type)
        if variable.kind != btf_module.VAR or definition.kind != btf_module.STRUCT:
            raise bad(on, f"map {variable.name!r} is not defined by a struct")
        if id(definition) not in known:
            known[id(definition)] = _numbers(btf, definition)
        numbers = known[id(definition)]
        number = numbers.get("type", 0)
        kind = MAP_TYPES[number] if number < len(MAP_TYPES) else f"type {number}"
        sizes = (numbers.get(n, 0) for n in ("key_size", "value_size", "max_entries", "map_flags"))
        found[variable.name] = MapSpec(variable.name, kind, *sizes)
    return found


def _numbers(btf: Btf, definition: btf_module.Type) -> dict[str, int]:
    """What a map's definition says, as pointers to arrays of that length and to the types of key and value."""
    found: dict[str, int] = {}
    for member in definition.members:
        target = btf.resolve(member.type)
        if target.kind != btf_module.PTR:
            continue
        if member.name in ("key", "value"):
            found[f"{member.name}_size"] = btf.size(target.size_or_type)
        elif (inner := btf.resolve(target.size_or_type)).kind == btf_module.ARRAY:
            found[member.name] = inner.array[1]
    return found


def _variables(elf: Elf, btf: Btf, section: Section, on: str) -> dict[str, VariableSpec]:
    # Offsets are the symbols': before it is loaded, a datasec's own offsets are all zero.
    inside = elf.by_section.get(section.index, ())
    symbols = {one.name: one for one in inside if one.kind == elf_module.STT_OBJECT}
    found = {}
    for entry in btf.variables(section.name):
        variable = btf.get(entry.type)
        symbol = symbols.get(variable.name)
        if symbol is None:
            continue
        size = btf.size(variable.size_or_type)
        if size != symbol.size or symbol.value + size > section.size:
            raise bad(on, f"variable {variable.name!r} does not lie in {section.name}")
        signed = btf.resolve(variable.size_or_type).signed
        found[variable.name] = VariableSpec(variable.name, section.name, symbol.value, size, signed)
    return found
