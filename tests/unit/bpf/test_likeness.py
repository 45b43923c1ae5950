"""The BTF of a loaded program against the object that it may come from."""

from __future__ import annotations

import struct

import pytest

from mapek.bpf import ObjectSpec, object_path
from mapek.bpf.likeness import same_build

SPEC = ObjectSpec.read(object_path("xdp_counter"))
BTF = bytes(SPEC.elf.section(".BTF").data)
TYPES, STRINGS = (24 + at for at in struct.unpack_from("=I4xI", BTF, 8))
DATASEC = struct.pack("=I", 15 << 24 | 1)
"""kind 15 with one variable"""


def changed(at: int) -> bytes:
    return BTF[:at] + bytes((BTF[at] ^ 1,)) + BTF[at + 1 :]


def longer(more: bytes) -> bytes:
    length = struct.unpack_from("=I", BTF, 20)[0] + len(more)
    return BTF[:20] + struct.pack("=I", length) + BTF[24:] + more


@pytest.mark.parametrize(
    ("loaded", "same"),
    [
        (BTF, True),
        # what libbpf does: the size of a data section, another name
        (changed(BTF.index(DATASEC, TYPES) + 4), True),
        (longer(b"dummy_ksym\0"), True),
        # the last name, the size of the first type, half of it, nothing
        (changed(len(BTF) - 3), False),
        (changed(TYPES + 8), False),
        (BTF[: len(BTF) // 2], False),
        (b"", False),
        (bytes(object_path("empty").read_bytes()), False),
    ],
)
def test_same_build(loaded: bytes, same: bool):
    assert same_build(SPEC, loaded) is same
