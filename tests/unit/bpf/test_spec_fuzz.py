"""Hostile objects: whatever the bytes, ObjectSpec gives a spec or an ObjectError, soon and in bounded
memory."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mapek.bpf import ObjectSpec, object_path
from mapek.errors import ObjectError

SEEDS = [object_path(name).read_bytes() for name in ("empty", "dispatcher", "xdp_counter", "link_watch")]
BIG = object_path("xdp_counter").with_name("xdp_counter.bpfeb.o").read_bytes()
# Header fields, section headers and BTF are where a lie does most.
INTERESTING = [
    0,
    1,
    7,
    8,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    (1 << 64) - 1,
]


def parse(data: bytes) -> None:
    try:
        spec = ObjectSpec.parse(data)
    except ObjectError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert spec.raw is data


def section_headers(data: bytes) -> range:
    start, count = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<H", data, 60)[0]
    return range(start, start + 64 * count)


@st.composite
def lies(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from([*SEEDS, BIG])))
    for _ in range(draw(st.integers(1, 6))):
        where = draw(st.sampled_from(["anywhere", "header", "sections"]))
        if where == "header":
            at = draw(st.integers(0, 63))
        elif where == "sections" and data is not BIG:
            at = len(data) - 1 - draw(st.integers(0, min(len(data) - 1, 64 * 24)))
        else:
            at = draw(st.integers(0, len(data) - 1))
        width = draw(st.sampled_from([1, 2, 4, 8]))
        value = draw(st.sampled_from(INTERESTING)) & ((1 << 8 * width) - 1)
        data[at : at + width] = value.to_bytes(width, "little")
    return bytes(data)


@settings(max_examples=600, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(lies())
def test_lying_fields(data: bytes):
    parse(data)


@settings(max_examples=200, deadline=2000)
@given(st.sampled_from(SEEDS), st.data())
def test_truncations(seed: bytes, data: st.DataObject):
    parse(seed[: data.draw(st.integers(0, len(seed) - 1))])


@settings(max_examples=200, deadline=2000)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0), st.binary(min_size=1, max_size=64)), max_size=8),
)
def test_random_patches(seed: bytes, patches: list[tuple[int, bytes]]):
    data = bytearray(seed)
    for at, patch in patches:
        at %= len(data)
        data[at : at + len(patch)] = patch
    parse(bytes(data))


@settings(max_examples=300)
@given(st.binary(max_size=4096))
@example(b"\x7fELF\x02\x01\x01" + bytes(57))
def test_noise(data: bytes):
    parse(data)


def test_every_byte_of_a_small_object():
    """Exhaustive where it is affordable: each byte of the smallest object set to 0, inverted and to 0xff."""
    seed = SEEDS[0]
    for at in range(len(seed)):
        for value in (0, seed[at] ^ 0xFF, 0xFF):
            parse(seed[:at] + bytes([value]) + seed[at + 1 :])


def test_a_file_of_enormous_claims_is_refused_at_once():
    seed = bytearray(SEEDS[0])
    struct.pack_into("<H", seed, 60, 0xFFFF)
    with pytest.raises(ObjectError, match="section headers"):
        ObjectSpec.parse(bytes(seed))
    with pytest.raises(ObjectError, match="more than any BPF object"):
        ObjectSpec.parse(bytes(33 << 20))
