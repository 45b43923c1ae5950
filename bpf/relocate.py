"""Whether the CO-RE relocations of an object can be resolved on a kernel, without asking the kernel to load it.

A kernel's BTF has more than a hundred thousand types, of which an object wants a handful: only the heads of records are
walked, and only types of a wanted name are read. libbpf does the same match anew when it loads, and it is the judge.
"""

from __future__ import annotations

import functools
import os
import struct
import sys
from collections.abc import Iterator, Mapping
from typing import Final

from mapek.bpf import btf as b
from mapek.bpf.anatomy import Anatomy
from mapek.bpf.btf_ext import CoreRelocation
from mapek.bpf.elf import MAX_NAME, ByteOrder, bad
from mapek.bpf.regular import read_regular, reason
from mapek.bpf.validate import Finding, Severity
from mapek.errors import ObjectError

VMLINUX: Final = "/sys/kernel/btf/vmlinux"
_MAX_FILE: Final = 64 << 20
_DEEPEST: Final = 64
"""Members in one path of a relocation; libbpf takes no more."""
_MAX_STEPS: Final = 1 << 17
"""Members in all paths together."""
_ASKS: Final = ("field_exists", "type_exists", "enumval_exists", "type_matches", "type_id_local")
"""Kinds that cannot fail: "no" is an answer to them."""
_PER_MEMBER: Final = {b.STRUCT: 12, b.UNION: 12, b.ENUM: 8, b.ENUM64: 12, b.FUNC_PROTO: 8, b.DATASEC: 12}
_FIXED: Final = {b.INT: 4, b.ARRAY: 12, b.VAR: 4, b.DECL_TAG: 4}
_FAMILIES: Final = {b.STRUCT: "composite", b.UNION: "composite", b.ENUM: "enum", b.ENUM64: "enum"}


class KernelBtf:
    """The types of a kernel, of which few are read. Raises ObjectError for what is no BTF."""

    def __init__(self, data: bytes, on: str) -> None:
        # Its magic says which byte order it is of.
        self.byteorder: ByteOrder = "big" if data[:2] == b.MAGIC.to_bytes(2, "big") else "little"
        mark = "<" if self.byteorder == "little" else ">"
        if len(data) < 24:
            raise bad(on, f"BTF is truncated at {len(data)} bytes")
        magic, version, _, header, type_off, type_len, str_off, str_len = struct.unpack_from(
            mark + "HBBIIIII", data
        )
        if magic != b.MAGIC or version != 1:
            raise bad(on, f"BTF magic {magic:#x} version {version}")
        end = header + type_off + type_len
        if header < 24 or max(end, header + str_off + str_len) > len(data):
            raise bad(on, "BTF is truncated or its header lies")
        self._data, self._mark, self._on = data, mark, on
        self._strings = data[header + str_off : header + str_off + str_len]
        self._head = struct.Struct(mark + "III")
        # By id; id 0 is void.
        self._at = [0]
        self._named: dict[int, list[int]] = {}
        self._members: dict[int, dict[str, int]] = {}
        self._walk(header + type_off, end)

    def _walk(self, at: int, end: int) -> None:
        unpack, data, found, named = self._head.unpack_from, self._data, self._at, self._named
        while at + 12 <= end:
            name, word, _ = unpack(data, at)
            kind = word >> 24 & 31
            if kind in _FAMILIES or kind == b.TYPEDEF:
                named.setdefault(name, []).append(len(found))
            found.append(at)
            at += 12
            if kind in _PER_MEMBER:
                at += _PER_MEMBER[kind] * (word & 0xFFFF)
            elif kind in _FIXED:
                at += _FIXED[kind]
            elif not 0 < kind <= b.ENUM64:
                raise bad(self._on, f"BTF kind {kind} is unknown")
        if at != end:
            raise bad(self._on, "BTF is cut short")

    @classmethod
    def read(cls, path: str) -> KernelBtf:
        """The BTF in a file, raw as in /sys/kernel/btf. Raises ObjectError."""
        try:
            return cls(read_regular(path, _MAX_FILE), path)
        except (OSError, ValueError) as error:
            do = "give the BTF of the kernel it is for"
            raise ObjectError("read BTF", path, reason(error), do) from error

    @functools.cached_property
    def _by_name(self) -> Mapping[str, list[int]]:
        found: dict[str, list[int]] = {}
        for place, ids in self._named.items():
            found.setdefault(self._text(place), []).extend(ids)
        return found

    def named(self, name: str, kind: int) -> list[int]:
        """Ids of types of that name that are of the same family as `kind` (struct and union, or enum)."""
        family = _FAMILIES.get(kind)
        ids = self._by_name.get(name, ())
        return [i for i in ids if (_FAMILIES.get(self.kind(i)) == family if family else self.kind(i) == kind)]

    def kind(self, ident: int) -> int:
        """Of a type."""
        return self._read(ident)[1] >> 24 & 31

    def _read(self, ident: int) -> tuple[int, int, int]:
        if not 0 < ident < len(self._at):
            return 0, 0, 0
        name, word, size_or_type = self._head.unpack_from(self._data, self._at[ident])
        return name, word, size_or_type

    def resolve(self, ident: int) -> int:
        """The id behind typedefs and qualifiers; 0 for a loop."""
        for _ in range(32):
            _, word, target = self._read(ident)
            if word >> 24 & 31 not in (b.TYPEDEF, b.VOLATILE, b.CONST, b.RESTRICT, b.TYPE_TAG):
                return ident
            ident = target
        return 0

    def element(self, ident: int) -> int:
        """The type of an array's elements, 0 for what is no array."""
        ident = self.resolve(ident)
        if self.kind(ident) != b.ARRAY:
            return 0
        element: int = self._head.unpack_from(self._data, self._at[ident] + 12)[0]
        return element

    def members(self, ident: int) -> list[tuple[str, int]]:
        """(name, type) of a struct's or union's members, (name, 0) of an enum's values."""
        _, word, _ = self._read(ident)
        kind, count, at = word >> 24 & 31, word & 0xFFFF, self._at[ident] + 12
        if kind not in _FAMILIES:
            return []
        size = _PER_MEMBER[kind]
        rows = (struct.unpack_from(self._mark + "II", self._data, at + i * size) for i in range(count))
        composite = _FAMILIES[kind] == "composite"
        return [(self._text(name), type_ if composite else 0) for name, type_ in rows]

    def member(self, ident: int, name: str) -> int | None:
        """The type of the member `name`, looked for in members without a name too; None where there is none."""
        return self._all_members(self.resolve(ident), 0).get(name)

    def _all_members(self, ident: int, depth: int) -> Mapping[str, int]:
        if ident not in self._members:
            # Put there before it is full, so that a record in itself is no loop.
            found = self._members[ident] = {}
            for called, type_ in self.members(ident):
                if called:
                    found.setdefault(called, type_)
                elif depth < 8:
                    for inner, of in self._all_members(self.resolve(type_), depth + 1).items():
                        found.setdefault(inner, of)
        return self._members[ident]

    def _text(self, offset: int) -> str:
        return self._strings[offset : offset + MAX_NAME].split(b"\0")[0].decode("utf-8", "replace")


def unresolved(anatomy: Anatomy | None, path: str | None) -> Iterator[Finding]:
    """A finding for each relocation that this kernel has no type or member for.

    It warns and does not refuse where the function asks by `bpf_core_..._exists` before it uses what may be missing,
    and where a whole type is: it may be one of a module, in whose BTF libbpf looks then.

    Args:
        path: of the kernel's BTF; None: this kernel's, if it can be read.
    """
    if anatomy is None or not any(one.relocations for one in anatomy.functions.values()):
        return
    spec = anatomy.spec
    if path is None and spec.byteorder != sys.byteorder:
        return  # Not for this kernel, which the finding about the byte order says.
    if path is None and not os.access(VMLINUX, os.R_OK):
        yield Finding(
            "warn", "CO-RE", "this kernel has no readable BTF", "give that of the kernel with --btf"
        )
        return
    kernel = KernelBtf.read(path or VMLINUX)
    if kernel.byteorder != spec.byteorder:
        why = f"it is {spec.byteorder}-endian, the kernel of that BTF {kernel.byteorder}"
        yield Finding("refuse", "CO-RE", why, "take the object built for the other byte order")
    known: dict[tuple[int, str], tuple[str, bool]] = {}
    steps = 0
    for function in anatomy.functions.values():
        asks = any(one.kind in _ASKS for one in function.relocations)
        said = set()
        for one in function.relocations:
            key = one.type, one.access
            if one.kind in _ASKS:
                continue
            if key not in known:
                steps += one.access.count(":")
                if steps > _MAX_STEPS:
                    raise bad(spec.path, "its relocations are longer than those of any object")
                known[key] = _missing(spec.btf, one, kernel)
            lacks, whole = known[key]
            if lacks and lacks not in said:
                said.add(lacks)
                line = function.line((one.offset - function.start) // 8)
                at = f" ({line.file}:{line.number})" if line else ""
                do = "it cannot run on that kernel"
                if asks:
                    do = "it asks if things exist, so this may be meant"
                elif whole:
                    do = "it cannot run there unless a module has it, in which this does not look"
                severity: Severity = "warn" if asks or whole else "refuse"
                yield Finding(severity, f"function {function.name}", f"the kernel has no {lacks}{at}", do)


def _missing(local: b.Btf, one: CoreRelocation, kernel: KernelBtf) -> tuple[str, bool]:
    """What the kernel lacks for a relocation, in words, or ""; and whether it is a whole type."""
    try:
        path = [int(word) for word in one.access.split(":", _DEEPEST)]
    except ValueError:
        raise bad(local.on, f"a relocation has the path {one.access[:80]!r}") from None
    root = local.resolve(one.type)
    kind = {b.STRUCT: "struct", b.UNION: "union", b.ENUM: "enum", b.ENUM64: "enum"}.get(root.kind)
    if kind is None:
        return "", False
    # What follows three underscores tells two local views of one kernel type apart.
    name = root.name.split("___")[0] or root.name
    candidates = kernel.named(name, root.kind)
    if not candidates:
        return f"{kind} {name}", True
    if one.kind.startswith("type_") or (kind == "enum" and not one.kind.startswith("enumval")):
        return "", False
    if kind == "enum":
        if not 0 <= path[0] < len(root.members):
            raise bad(local.on, f"a relocation names value {path[0]} of {len(root.members)} of enum {name}")
        wanted = root.members[path[0]].name.split("___")[0]
        there = any(kernel.member(ident, wanted) is not None for ident in candidates)
        return "" if there else f"value {wanted} in enum {name}", False
    return _walk(local, root, path[1:], name, candidates, kernel), False


def _walk(
    local: b.Btf, root: b.Type, path: list[int], name: str, candidates: list[int], kernel: KernelBtf
) -> str:
    here, places = root, candidates
    for index in path:
        if here.kind == b.ARRAY:
            here = local.resolve(here.array[0])
            places = [element for place in places if (element := kernel.element(place))]
            continue
        if here.kind not in (b.STRUCT, b.UNION) or not 0 <= index < len(here.members):
            raise bad(
                local.on, f"a relocation names member {index} of {here.name or 'a type'}, which has none"
            )
        member = here.members[index]
        here = local.resolve(member.type)
        if not member.name:
            continue
        name = f"{name}.{member.name}"
        places = [found for place in places if (found := kernel.member(place, member.name)) is not None]
        if not places:
            return f"member {name}"
    return ""
