"""Reads BPF Type Format: enough of it to know the maps, the global variables and the sizes of shared structs.

Bounded like the ELF parser: type ids, string offsets and recursion are checked, so a hostile file costs an
ObjectError. Unknown kinds end the parse with an error, because their length cannot be known.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from mapek.bpf.elf import ByteOrder, bad, text

MAGIC: Final = 0xEB9F
MAX_TYPES: Final = 1 << 16
MAX_MEMBERS: Final = 1 << 16
"""Of all types together."""

(
    INT,
    PTR,
    ARRAY,
    STRUCT,
    UNION,
    ENUM,
    FWD,
    TYPEDEF,
    VOLATILE,
    CONST,
    RESTRICT,
    FUNC,
    FUNC_PROTO,
    VAR,
    DATASEC,
) = range(1, 16)
FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(16, 20)
_MODIFIERS: Final = frozenset((TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG))
_WITH_MEMBERS: Final = frozenset((STRUCT, UNION, ENUM, ENUM64, DATASEC))
_KIND_NAMES: Final = (
    "void int ptr array struct union enum fwd typedef volatile const restrict func func_proto var datasec "
    "float decl_tag type_tag enum64"
).split()


@dataclass(frozen=True, slots=True)
class Member:
    """A struct member (`offset` in bits), a datasec variable (`offset` and `size` in bytes) or an enum
    value."""

    name: str
    type: int
    offset: int
    size: int = 0


@dataclass(frozen=True, slots=True)
class Type:
    """One type record; `size_or_type` is the kernel's union of both."""

    kind: int
    name: str
    size_or_type: int
    members: tuple[Member, ...] = ()
    array: tuple[int, int] = (0, 0)  # element type, count
    signed: bool = False


@dataclass(frozen=True)
class Btf:
    """All types, by id; id 0 is void."""

    types: tuple[Type, ...]
    on: str = "object"
    counts: dict[str, int] = field(default_factory=dict)
    _resolved: dict[int, Type] = field(default_factory=dict, init=False, repr=False, compare=False)
    _sizes: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    @functools.cached_property
    def _sections(self) -> Mapping[str, Type]:
        return {one.name: one for one in reversed(self.types) if one.kind == DATASEC}

    def variables(self, section: str) -> tuple[Member, ...]:
        """What the first DATASEC of that name has; () where there is none."""
        found = self._sections.get(section)
        return found.members if found else ()

    def get(self, ident: int) -> Type:
        """The type of that id; raises ObjectError when there is none."""
        if not 0 <= ident < len(self.types):
            raise bad(self.on, f"BTF type {ident} of {len(self.types)}")
        return self.types[ident]

    def resolve(self, ident: int) -> Type:
        """The type behind typedefs and qualifiers."""
        if (known := self._resolved.get(ident)) is not None:
            return known
        at = ident
        for _ in range(32):
            found = self.get(at)
            if found.kind not in _MODIFIERS:
                self._resolved[ident] = found
                return found
            at = found.size_or_type
        raise bad(self.on, f"BTF type {at} is a loop")

    def size(self, ident: int, depth: int = 0) -> int:
        """Size in bytes of a type; raises ObjectError for a type without one."""
        if (known := self._sizes.get(ident)) is not None:
            return known
        if depth > 16:
            raise bad(self.on, f"BTF type {ident} nests too deep")
        found = self.resolve(ident)
        if found.kind in (INT, STRUCT, UNION, ENUM, ENUM64, FLOAT, DATASEC):
            size = found.size_or_type
        elif found.kind == PTR:
            size = 8
        elif found.kind == ARRAY:
            size = found.array[1] * self.size(found.array[0], depth + 1)
        else:
            raise bad(self.on, f"a BTF {_KIND_NAMES[found.kind]} has no size")
        self._sizes[ident] = size
        return size

    def struct_size(self, name: str) -> int | None:
        """Size in bytes of the struct `name`, or None: lets tests hold C and Python structs together."""
        return next((t.size_or_type for t in self.types if t.kind == STRUCT and t.name == name), None)

    def struct_offsets(self, name: str) -> dict[str, int] | None:
        """Byte offset of each member of the struct `name`, or None."""
        found = next((t for t in self.types if t.kind == STRUCT and t.name == name), None)
        return None if found is None else {m.name: (m.offset & 0xFFFFFF) // 8 for m in found.members}


def parse(data: memoryview, byteorder: ByteOrder, on: str = "object") -> Btf:
    """Parse a `.BTF` section. Raises ObjectError."""
    mark = "<" if byteorder == "little" else ">"
    if len(data) < 24:
        raise bad(on, f"BTF is truncated at {len(data)} bytes")
    magic, version, _, header, type_off, type_len, str_off, str_len = struct.unpack_from(
        mark + "HBBIIIII", data
    )
    if magic != MAGIC or version != 1:
        raise bad(on, f"BTF magic {magic:#x} version {version}")
    if (
        header < 24
        or max(header + type_off + type_len, header + str_off + str_len) > len(data)
        or type_off % 4
    ):
        raise bad(on, "BTF is truncated or its header lies")
    records = data[header + type_off : header + type_off + type_len]
    strings = data[header + str_off : header + str_off + str_len]
    types = [Type(0, "", 0)]
    at = 0

    def take(form: str) -> tuple[int, ...]:
        nonlocal at
        size = struct.calcsize(mark + form)
        if at + size > len(records):
            raise bad(on, f"BTF type {len(types)} is truncated")
        values = struct.unpack_from(mark + form, records, at)
        at += size
        return values

    names = {0: ""}

    def name(offset: int) -> str:
        if offset not in names:
            names[offset] = text(strings, offset, on)
        return names[offset]

    counts: dict[str, int] = {}
    all_members = 0
    while at < len(records):
        if len(types) > MAX_TYPES:
            raise bad(on, "more BTF types than any object has")
        name_off, word, size_or_type = take("III")
        kind, count = word >> 24 & 0x1F, word & 0xFFFF
        members: list[Member] = []
        all_members += count if kind in _WITH_MEMBERS else 0
        if all_members > MAX_MEMBERS:
            raise bad(on, "more BTF members than any object has")
        array, signed = (0, 0), False
        if kind == INT:
            signed = bool(take("I")[0] >> 24 & 1)
        elif kind == ARRAY:
            element, _, length = take("III")
            array = (element, length)
        elif kind in (STRUCT, UNION):
            for _ in range(count):
                n, t, o = take("III")
                members.append(Member(name(n), t, o))
        elif kind == DATASEC:
            for _ in range(count):
                t, o, s = take("III")
                members.append(Member("", t, o, s))
        elif kind == ENUM:
            for _ in range(count):
                n, v = take("II")
                members.append(Member(name(n), 0, v))
        elif kind == ENUM64:
            for _ in range(count):
                n, low, high = take("III")
                members.append(Member(name(n), 0, high << 32 | low))
        elif kind == FUNC_PROTO:
            take("II" * count)
        elif kind in (VAR, DECL_TAG):
            take("I")
        elif kind not in (PTR, FWD, FUNC, FLOAT, *_MODIFIERS):
            raise bad(on, f"BTF kind {kind} is unknown")
        label = _KIND_NAMES[kind]
        counts[label] = counts.get(label, 0) + 1
        types.append(Type(kind, name(name_off), size_or_type, tuple(members), array, signed))
    return Btf(tuple(types), on, counts)
