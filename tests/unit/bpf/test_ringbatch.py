"""Batches of ring records: every way in which records can lie in a ring, against a reader that walks them."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapek.bpf.ringbatch import Layout

BUSY, DISCARD = 1 << 31, 1 << 30
SIZE = 512


@dataclass(frozen=True)
class Written:
    """A ring's data area twice in a row, and the positions between which records lie."""

    ring: np.ndarray
    consumer: int
    producer: int
    records: list[tuple[int, bytes]]


def write(start: int, records: list[tuple[int, int]]) -> Written:
    """Records of (flags, size) from position `start`, as the kernel writes them; what does not fit is left."""
    area, position, kept = bytearray(SIZE), start, []
    for number, (flags, size) in enumerate(records):
        step = 8 + (size + 7 & ~7)
        if position + step - start > SIZE:
            break
        body = bytes((number * 7 + k) % 251 for k in range(size))
        for k, byte in enumerate(struct.pack("=II", flags | size, 0) + body):
            area[(position + k) % SIZE] = byte
        kept.append((flags | size, body))
        position += step
    return Written(np.frombuffer(bytes(area) * 2, np.uint8), start, position, kept)


def walked(written: Written, wanted: int) -> tuple[int, list[bytes], int, int]:
    """(position, records, discarded, foreign), one record after another."""
    position, found, discarded, foreign = written.consumer, list[bytes](), 0, 0
    for header, body in written.records:
        if header & BUSY:
            break
        if len(body) != wanted:
            foreign += 1
        elif header & DISCARD:
            discarded += 1
        else:
            found.append(body)
        position += 8 + (len(body) + 7 & ~7)
    return position, found, discarded, foreign


flags = st.sampled_from([0, 0, 0, 0, DISCARD, BUSY])
sizes = st.sampled_from([20, 20, 20, 20, 0, 1, 8, 24, 40])


@settings(max_examples=400)
@given(st.integers(0, 2**40), st.lists(st.tuples(flags, sizes), max_size=30))
def test_a_batch_is_what_a_walk_finds(start, records):
    written = write(start * 8, records)
    found = Layout("V20").batch(written.ring, written.consumer, written.producer)
    got = (found.position, [row.tobytes() for row in found.records], found.discarded, found.foreign)
    assert got == walked(written, 20)


@settings(max_examples=200)
@given(st.integers(0, 200), st.integers(1, 5), st.lists(st.tuples(flags, sizes), max_size=30))
def test_small_batches_one_after_another_are_the_whole(start, most, records):
    written = write(start * 8, records)
    layout, position, rows = Layout("V20"), written.consumer, list[bytes]()
    while True:
        found = layout.batch(written.ring, position, written.producer, most)
        assert len(found.records) + found.discarded <= most
        rows += [row.tobytes() for row in found.records]
        if found.position == position:
            break
        position = found.position
    assert (position, rows) == walked(written, 20)[:2]


@given(st.binary(min_size=64, max_size=64), st.integers(0, 64))
def test_nonsense_in_the_ring_ends_the_batch_within_its_bounds(noise, filled):
    ring = np.frombuffer(noise * 2, np.uint8)
    found = Layout("V20").batch(ring, 0, filled)
    assert 0 <= found.position <= filled


def test_fields_and_a_busy_record_in_the_middle():
    layout = Layout([("seq", "u8"), ("key", "u4")])
    body = [struct.pack("=QI", n, n * 10) + bytes(4) for n in range(3)]
    headers = [12, 12 | BUSY, 12]
    data = b"".join(struct.pack("=II", h, 0) + b for h, b in zip(headers, body, strict=True)).ljust(
        128, b"\0"
    )
    found = layout.batch(np.frombuffer(data * 2, np.uint8), 0, 72)
    assert found.records["seq"].tolist() == [0]
    assert found.position == 24
    done = bytearray(data)
    done[24:28] = struct.pack("=I", 12)  # it was submitted
    rest = layout.batch(np.frombuffer(bytes(done) * 2, np.uint8), found.position, 72)
    assert rest.records["seq"].tolist() == [1, 2]
    assert rest.records["key"].tolist() == [10, 20]


def test_records_are_copies():
    written = write(0, [(0, 20)] * 3)
    ring = written.ring.copy()
    found = Layout("V20").batch(ring, 0, written.producer)
    before = found.records.tobytes()
    ring[:] = 0xFF
    assert found.records.tobytes() == before


@pytest.mark.parametrize("record", ["V0", "V1073741824"])
def test_a_record_that_cannot_be(record):
    with pytest.raises(ValueError, match="does not fit a ring"):
        Layout(record)
