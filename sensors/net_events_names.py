"""What the running kernel calls things: its drop reasons, from BTF or from a tracepoint's format file, and where the
fields of a tracepoint lie.

Kernels number their reasons anew in almost every release, so a name must come from the kernel that runs. BTF is
searched for one enum and not parsed as a whole: that takes 10 ms and not a second, and no memory. Both inputs are
bounded and may be anything; what cannot be read is an empty answer.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

UNSPECIFIED: Final = "unspecified"
_ENUM: Final = 6
_MOST: Final = 4096
_PLACES: Final = 1 << 16
_BTF_MOST: Final = 64 << 20
_FIELD: Final = re.compile(
    r"field:(?P<type>[^;\n]{1,200}?)\s*\b(?P<name>\w{1,64})(?:\[(?P<items>\w{0,32})\])?;"
    r"\s*offset:(?P<offset>\d{1,6});\s*size:(?P<size>\d{1,6});"
)
_SYMBOL: Final = re.compile(r'\{\s*(?P<value>0x[0-9a-fA-F]{1,8}|\d{1,10})\s*,\s*"(?P<name>\w{1,64})"\s*\}')


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a tracepoint: offset and size in bytes."""

    offset: int
    size: int


def fields(text: str) -> dict[str, Field]:
    """The fields of a format file of tracefs, by name; without those that lie beyond 32 KiB."""
    found: dict[str, Field] = {}
    for match in _FIELD.finditer(text[: 1 << 16]):
        field = Field(int(match["offset"]), int(match["size"]))
        if field.offset + field.size < 1 << 15:
            found.setdefault(match["name"], field)
    return found


def reasons_of_format(text: str) -> dict[int, str]:
    """Number -> name of the drop reasons that kfree_skb's format file lists; empty before kernel 5.17."""
    _, _, printed = text[: 1 << 16].partition("__print_symbolic(REC->reason")
    return _clean({int(match["value"], 0): match["name"] for match in _SYMBOL.finditer(printed)})


def reasons_of_btf(data: bytes) -> dict[int, str]:
    """Number -> name of the drop reasons in the kernel's BTF; empty where it has no such enum."""
    return _clean(enum_of_btf(data, "skb_drop_reason"))


def enum_of_btf(data: bytes, name: str) -> dict[int, str]:
    """Value -> name of the enum `name` in a BTF blob of this machine's byte order; empty if it is not there."""
    mark = "<" if sys.byteorder == "little" else ">"
    if not 24 <= len(data) <= _BTF_MOST:
        return {}
    magic, _, _, header, types_at, types_size, strings_at, strings_size = struct.unpack_from(
        f"{mark}HBBIIIII", data
    )
    types, strings = header + types_at, header + strings_at
    if magic != 0xEB9F or max(types + types_size, strings + strings_size) > len(data):
        return {}
    at = data.find(f"\0{name}\0".encode(), strings, strings + strings_size)
    if at < 0:
        return {}
    wanted, place, end = struct.pack(f"{mark}I", at + 1 - strings), types, types + types_size
    # The number may be anything else that looks like it: a record must be whole, aligned and an enum.
    for _ in range(_PLACES):
        place = data.find(wanted, place, end)
        if place < 0:
            return {}
        if (place - types) % 4 == 0 and place + 12 <= end:
            (word,) = struct.unpack_from(f"{mark}I", data, place + 4)
            count = word & 0xFFFF
            if word >> 24 & 0x1F == _ENUM and 0 < count <= _MOST and place + 12 + 8 * count <= end:
                found = _values(data, mark, place + 12, count, strings, strings_size)
                if found:
                    return found
        place += 1
    return {}


def _values(data: bytes, mark: str, at: int, count: int, strings: int, size: int) -> dict[int, str]:
    found: dict[int, str] = {}
    for offset, value in struct.iter_unpack(f"{mark}Ii", data[at : at + 8 * count]):
        if not 0 < offset < size:
            return {}
        stop = data.find(b"\0", strings + offset, strings + min(offset + 128, size))
        name = data[strings + offset : stop].decode("ascii", "replace")
        if stop < 0 or not name.isidentifier():
            return {}
        found.setdefault(value, name)
    return found


def _clean(found: Mapping[int, str]) -> dict[int, str]:
    """Prometheus' way of writing them: "SKB_DROP_REASON_NO_SOCKET" is "no_socket"; without what is no reason."""
    names = {}
    for value, name in found.items():
        short = name.removeprefix("SKB_").removeprefix("DROP_REASON_").lower()
        if 0 <= value < _MOST and short not in ("max", "subsys_mask", "not_dropped_yet", "consumed"):
            names[value] = UNSPECIFIED if short == "not_specified" else short
    return names
