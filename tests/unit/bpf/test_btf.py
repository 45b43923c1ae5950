"""BTF by hand: loops, deep nests and records that end early."""

from __future__ import annotations

import struct

import pytest

from mapek.bpf import btf
from mapek.errors import ObjectError

NAMES = b"\0a\0b\0"


def section(*records: bytes, order: str = "<", names: bytes = NAMES, magic: int = btf.MAGIC) -> memoryview:
    types = b"".join(records)
    head = struct.pack(order + "HBBIIIII", magic, 1, 0, 24, 0, len(types), len(types), len(names))
    return memoryview(head + types + names)


def record(
    kind: int, name: int = 0, count: int = 0, size: int = 0, rest: bytes = b"", order: str = "<"
) -> bytes:
    return struct.pack(order + "III", name, kind << 24 | count, size) + rest


U32 = record(btf.INT, 1, 0, 4, struct.pack("<I", 32))


@pytest.mark.parametrize(
    ("records", "ident", "size"),
    [
        ((U32,), 1, 4),
        ((U32, record(btf.TYPEDEF, 1, size=1)), 2, 4),
        ((U32, record(btf.CONST, size=3), record(btf.VOLATILE, size=1)), 2, 4),
        ((U32, record(btf.PTR, size=1)), 2, 8),
        ((U32, record(btf.ARRAY, rest=struct.pack("<III", 1, 1, 6))), 2, 24),
        ((record(btf.STRUCT, 1, 1, 16, struct.pack("<III", 3, 0, 0)),), 1, 16),
        ((record(btf.ENUM, 1, 2, 4, struct.pack("<II", 1, 0) + struct.pack("<II", 3, 1)),), 1, 4),
        ((record(btf.ENUM64, 1, 1, 8, struct.pack("<III", 1, 2, 3)),), 1, 8),
        ((record(btf.FLOAT, 1, size=8),), 1, 8),
    ],
)
def test_sizes(records: tuple[bytes, ...], ident: int, size: int):
    assert btf.parse(section(*records), "little").size(ident) == size


def test_big_endian():
    found = btf.parse(section(record(btf.INT, 1, 0, 8, struct.pack(">I", 1 << 24), ">"), order=">"), "big")
    assert found.types[1] == btf.Type(btf.INT, "a", 8, signed=True)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (memoryview(b""), "truncated at 0"),
        (section(magic=0x1234), "magic 0x1234"),
        (section(U32)[:-12], "truncated"),
        (section(U32[:-2]), "truncated|header lies"),
        (section(record(25)), "kind 25 is unknown"),
        (section(record(btf.STRUCT, 1, 9, 4)), "type 1 is truncated"),
        (section(record(btf.FUNC_PROTO, 0, 0xFFFF)), "type 1 is truncated"),
        (section(record(btf.PTR, 99)), "past its string table"),
        (section(record(btf.FWD, 1), names=b"\0unending"), "does not end"),
    ],
)
def test_hostile_sections(data: memoryview, why: str):
    with pytest.raises(ObjectError, match=why):
        btf.parse(data, "little")


def test_hostile_references():
    loop = btf.parse(section(record(btf.CONST, size=2), record(btf.VOLATILE, size=1)), "little")
    with pytest.raises(ObjectError, match="is a loop"):
        loop.resolve(1)
    far = btf.parse(section(record(btf.CONST, size=1 << 31)), "little")
    with pytest.raises(ObjectError, match="of 2"):
        far.size(1)
    nest = btf.parse(section(record(btf.ARRAY, rest=struct.pack("<III", 1, 1, 2))), "little")
    with pytest.raises(ObjectError, match="nests too deep"):
        nest.size(1)
    with pytest.raises(ObjectError, match="void has no size"):
        nest.size(0)
