"""What the entries of maps stand for, as text that can be kept beside them and compared: names, offsets and sizes.

Two maps of one size may hold quite different things. What is kept of an older object goes on only if each member of
a key or a value is where it was; otherwise the first difference is said in words.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mapek.bpf import btf as kinds
from mapek.bpf.btf import Btf
from mapek.bpf.spec import MapSpec, ObjectSpec
from mapek.errors import PinError

_VERSION: Final = 1
_DEEPEST: Final = 16
_NAMES: Final = {kinds.ENUM: "enum", kinds.ENUM64: "enum", kinds.PTR: "pointer", kinds.FLOAT: "float"}


@dataclass(frozen=True, slots=True)
class Layout:
    """Of the maps that one object keeps.

    Args:
        maps: by name, what is known of each: "type", "key bytes", "value bytes", "entries" of arrays, and for each
            member ("value.packets") its type and place.
        meaning: what a sensor adds, such as the order of what it counts in an array.
        object: SHA-256 of the object's file.
        settings: how its programs were loaded; they are of no matter for what entries stand for.
        namespace: tells a network namespace from a later one with the same inode number; "" where the kernel does not.
    """

    maps: Mapping[str, Mapping[str, str]]
    meaning: Mapping[str, str] = field(default_factory=dict)
    object: str = ""
    namespace: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> bytes:
        """For `parse`; the same for the same layout."""
        whole = {
            "version": _VERSION, "maps": {name: dict(one) for name, one in self.maps.items()},
            "meaning": dict(self.meaning), "object": self.object, "namespace": self.namespace,
            "settings": dict(self.settings),
        }  # fmt: skip
        return json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()

    def difference(self, now: Layout) -> str:
        """Why what is kept under this layout cannot go on under `now`, one line; "" when it can."""
        for name, was in self.maps.items():
            if name in now.maps and (found := _first(was, now.maps[name])):
                return f"map {name}: {found}"
        found = _first(self.meaning, now.meaning)
        return f"what is counted: {found}" if found else ""

    def contradiction(self, name: str, type_: str, key_size: int, value_size: int, max_entries: int) -> str:
        """How a map is not what the layout says of it; "" when it is."""
        found = {"type": type_, "key bytes": str(key_size), "value bytes": str(value_size)}
        if "entries" in self.maps[name]:
            found["entries"] = str(max_entries)
        return _first({key: self.maps[name].get(key, "") for key in found}, found)


def _first(was: Mapping[str, str], now: Mapping[str, str]) -> str:
    for key in (*was, *(key for key in now if key not in was)):
        if was.get(key) != now.get(key):
            return f"{key} is {now.get(key, 'gone')}, was {was.get(key, 'not there')}"
    return ""


def parse(text: bytes, on: Path) -> Layout:
    """The layout of `Layout.text`. Raises PinError for anything else."""
    try:
        whole = json.loads(text)
        if whole["version"] != _VERSION:
            raise ValueError(f"version {whole['version']}, not {_VERSION}")
        maps = {str(name): _words(one) for name, one in whole["maps"].items()}
        meaning, settings = _words(whole["meaning"]), _words(whole["settings"])
        return Layout(maps, meaning, str(whole["object"]), str(whole["namespace"]), settings)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = f"its layout cannot be read ({type(error).__name__})"
        raise PinError("adopt", on, why, "mapek release ends it, or set persist = false") from error


def _words(values: Mapping[str, object]) -> dict[str, str]:
    return {str(key): str(value) for key, value in values.items()}


def describe(
    spec: ObjectSpec,
    names: Collection[str],
    *,
    max_entries: Mapping[str, int] | None = None,
    meaning: Mapping[str, str] | None = None,
    namespace: str = "",
    settings: Mapping[str, str] | None = None,
) -> Layout:
    """The layout of the maps `names` of an object, by its BTF.

    Args:
        max_entries: as the object is loaded with.
        meaning, namespace, settings: see `Layout`.
    """
    members = dict(_definitions(spec.btf))
    maps = {}
    for name in names:
        one = spec.maps[name]
        entries = (max_entries or {}).get(name, one.max_entries)
        maps[name] = _describe(spec.btf, one, entries, members.get(name, {}))
    digest = hashlib.sha256(spec.raw).hexdigest()
    return Layout(maps, dict(meaning or {}), digest, namespace, dict(settings or {}))


def _definitions(btf: Btf) -> Iterator[tuple[str, dict[str, int]]]:
    """By map the type ids of its "key" and "value"."""
    section = next((one for one in btf.types if one.kind == kinds.DATASEC and one.name == ".maps"), None)
    for entry in section.members if section else ():
        variable = btf.get(entry.type)
        found = {}
        for member in btf.resolve(variable.size_or_type).members:
            target = btf.resolve(member.type)
            if member.name in ("key", "value") and target.kind == kinds.PTR:
                found[member.name] = target.size_or_type
        yield variable.name, found


def _describe(btf: Btf, one: MapSpec, entries: int, types: Mapping[str, int]) -> dict[str, str]:
    found = {"type": one.type, "key bytes": str(one.key_size), "value bytes": str(one.value_size)}
    # Where an entry's number says what it is of, there must be as many.
    if one.type.endswith("array"):
        found["entries"] = str(entries)
    for part, ident in types.items():
        found.update(_members(btf, ident, part, 0, 0))
    return found


def _members(btf: Btf, ident: int, path: str, bits: int, depth: int) -> Iterator[tuple[str, str]]:
    one = btf.resolve(ident)
    if one.kind in (kinds.STRUCT, kinds.UNION) and depth < _DEEPEST:
        for place, member in enumerate(one.members):
            at, size = bits + (member.offset & 0xFFFFFF), member.offset >> 24
            name = f"{path}.{member.name or place}"
            if size:
                yield name, f"{size} bits at bit {at}"
            else:
                yield from _members(btf, member.type, name, at, depth + 1)
    elif one.kind == kinds.ARRAY and depth < _DEEPEST:
        element, count = one.array
        yield from _members(btf, element, f"{path}[{count}]", bits, depth + 1)
    else:
        sign = "i" if one.signed else "u"
        word = _NAMES.get(one.kind, f"{sign}{btf.size(ident) * 8}")
        yield path, f"{word} of {btf.size(ident)} bytes at byte {bits // 8}"
