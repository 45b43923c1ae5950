"""batadv's tables: bytes of the kernel in, rows out, and a remainder that never goes backwards."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from mapek.bpf import ObjectSpec, object_path
from mapek.sensors.batadv_table import (
    COUNTED,
    LONGEST_NS,
    NEIGHBOUR,
    ORIGINATOR,
    SHORTEST_NS,
    NeighbourTable,
    interval_ns,
)

SECOND = 1_000_000_000
A, B, C, D = (bytes([2, 0, 0, 0, 0, last]) for last in (1, 2, 3, 4))


class Entries:
    """A hash map's contents."""

    def __init__(self, key_size: int, value_size: int) -> None:
        self.held: dict[bytes, bytes] = {}
        self._key_size, self._value_size = key_size, value_size

    def items(self, key_dtype=None, value_dtype=None):
        keys = np.frombuffer(b"".join(self.held), np.uint8).reshape(-1, self._key_size)
        values = np.frombuffer(b"".join(self.held.values()), np.uint8).reshape(-1, self._value_size)
        return keys.copy(), values.copy().view(value_dtype)[:, 0]

    def delete(self, key: bytes) -> bool:
        return self.held.pop(key, None) is not None


class Kernel:
    """Both tables, as bytes."""

    def __init__(self) -> None:
        self.neighbours, self.originators = Entries(8, 88), Entries(12, 24)

    def hears(
        self, mac: bytes, received: int, *, lost: int = 0, seen: int = 0, interval: int = 0, spacing: int = 0
    ):
        """A struct neighbour, with distinct values where none is given."""
        value = struct.pack(
            "=IIQQQQQQQQQII", 0, 9, 1, received, lost, 3, 4, 5, seen, seen, spacing, interval, 3
        )
        self.neighbours.held[mac + bytes(2)] = value

    def passes_on(self, mac: bytes, originator: bytes, received: int, seen: int = 0):
        self.originators.held[originator + mac] = struct.pack("=QQII", received, seen, 7, 0)

    def read(self, table: NeighbourTable, now: int):
        found, rest = table.rows(self.neighbours, self.originators, now)
        return {row.mac: row for row in found}, rest.tolist()


def table(most: int = 8, silent_after: int = 5, forget_ns: int = 600 * SECOND) -> NeighbourTable:
    return NeighbourTable(most, silent_after, forget_ns)


def text(mac: bytes) -> str:
    return mac.hex(":")


def test_sizes_are_those_of_the_object():
    maps = ObjectSpec.read(object_path("batadv")).maps
    assert (maps["neighbours"].value_size, maps["originators"].value_size) == (
        NEIGHBOUR.itemsize,
        ORIGINATOR.itemsize,
    )
    assert (maps["neighbours"].key_size, maps["originators"].key_size, maps["own"].key_size) == (8, 12, 8)


def test_nothing_heard():
    assert Kernel().read(table(), SECOND) == ({}, [0] * len(COUNTED))


def test_every_field_lands_in_its_column():
    kernel = Kernel()
    kernel.hears(A, 11, lost=2, seen=5 * SECOND, interval=500)
    kernel.passes_on(A, B, 6, seen=5 * SECOND)
    kernel.passes_on(A, C, 7, seen=1)
    found, rest = kernel.read(table(), 40 * SECOND - 5 * SECOND)
    row = found[text(A)]
    assert row.counts.tolist() == [11, 2, 3, 4, 5, 13]
    assert (row.seen_ns, row.interval_ns, row.originators) == (5 * SECOND, SECOND // 2, 0)
    assert rest == [0] * 6
    found, _ = kernel.read(table(), 34 * SECOND)
    assert found[text(A)].originators == 1


def test_originators_of_nobody_we_hear_are_the_remainders():
    """In B.A.T.M.A.N. V an OGM may come before the first ELP."""
    kernel, rows = Kernel(), table()
    kernel.passes_on(A, B, 6)
    assert kernel.read(rows, SECOND) == ({}, [0, 0, 0, 0, 0, 6])
    kernel.hears(C, 1)
    kernel.passes_on(D, B, 5)
    found, rest = kernel.read(rows, SECOND)
    assert (found[text(C)].counts[5], rest[5]) == (0, 11)


@pytest.mark.parametrize(
    ("spacing", "told", "expected"),
    [
        (0, 500, 500_000_000),
        (7 * SECOND, 500, 500_000_000),
        (2 * SECOND, 0, 2 * SECOND),
        (0, 0, LONGEST_NS),
        (0, 1, SHORTEST_NS),
        (0, 2**32 - 1, LONGEST_NS),
        (5, 0, SHORTEST_NS),
        (2**63, 0, LONGEST_NS),
    ],
)
def test_intervals(spacing, told, expected):
    assert interval_ns(spacing, told) == expected


def test_silence_turns_once_each_way():
    kernel, rows = Kernel(), table(silent_after=4)
    kernel.hears(A, 1, seen=10 * SECOND, interval=500)

    def at(now):
        row = kernel.read(rows, now)[0][text(A)]
        return row.silent, row.turned

    assert at(12 * SECOND) == (False, False)
    assert at(12 * SECOND + 1) == (True, True)
    assert at(13 * SECOND) == (True, False)
    kernel.hears(A, 2, seen=13 * SECOND, interval=500)
    assert at(13 * SECOND) == (False, True)
    assert at(13 * SECOND - 1) == (False, False)  # seen after we looked at the clock


def test_who_is_heard_most_has_a_row_and_keeps_it():
    kernel, rows = Kernel(), table(most=2)
    for mac, received in ((A, 5), (B, 50), (C, 20)):
        kernel.hears(mac, received)
    found, rest = kernel.read(rows, SECOND)
    assert set(found) == {text(B), text(C)}
    assert rest[0] == 5
    kernel.hears(A, 1000)
    found, rest = kernel.read(rows, SECOND)
    assert set(found) == {text(B), text(C)}
    assert rest[0] == 1000


def test_what_is_forgotten_goes_to_the_remainder_and_its_row_to_the_next():
    kernel, rows = Kernel(), table(most=1, forget_ns=600 * SECOND)
    kernel.hears(A, 100, lost=9, seen=SECOND)
    kernel.hears(B, 7, seen=500 * SECOND)
    kernel.passes_on(A, C, 40, seen=500 * SECOND)
    found, rest = kernel.read(rows, 600 * SECOND)
    assert (set(found), rest) == ({text(A)}, [7, 0, 3, 4, 5, 0])
    kernel.read(rows, 602 * SECOND)  # forgets a
    assert set(kernel.neighbours.held) == {B + bytes(2)}
    found, rest = kernel.read(rows, 603 * SECOND)
    assert found[text(B)].counts.tolist() == [0] * 6
    assert rest == [107, 9, 6, 8, 10, 40]
    kernel.hears(B, 9, seen=603 * SECOND)
    found, rest = kernel.read(rows, 604 * SECOND)
    assert found[text(B)].counts.tolist() == [2, 0, 0, 0, 0, 0]
    assert rest[0] == 107
    kernel.read(rows, 1150 * SECOND)  # forgets what a passed on
    assert kernel.originators.held == {}
    assert kernel.read(rows, 1151 * SECOND)[1] == [107, 9, 6, 8, 10, 40]


def test_originators_of_a_row_are_forgotten_without_loss():
    kernel, rows = Kernel(), table(forget_ns=60 * SECOND)
    kernel.hears(A, 1, seen=100 * SECOND)
    kernel.passes_on(A, B, 5, seen=SECOND)
    kernel.passes_on(A, C, 6, seen=100 * SECOND)
    for _ in range(3):
        found, rest = kernel.read(rows, 100 * SECOND)
        assert (found[text(A)].counts[5], rest[5]) == (11, 0)
    assert len(kernel.originators.held) == 1


def test_many_come_and_go_and_the_sum_never_falls():
    kernel, rows = Kernel(), table(most=3, forget_ns=50 * SECOND)
    random = np.random.default_rng(7)
    expected, last = 0, np.zeros(6)
    for now in range(100, 400):
        mac = bytes([2, 0, 0, 0, 9, int(random.integers(40))])
        held = kernel.neighbours.held.get(mac + bytes(2))
        before = struct.unpack_from("=Q", held, 16)[0] if held else 0
        more = int(random.integers(1, 9))
        kernel.hears(mac, before + more, seen=now * SECOND)
        expected += more
        found, rest = kernel.read(rows, now * SECOND)
        assert len(found) <= 3
        assert rest[0] + sum(int(row.counts[0]) for row in found.values()) == expected
        assert (np.array(rest) >= last)[[0, 1, 5]].all()
        last = np.array(rest)
