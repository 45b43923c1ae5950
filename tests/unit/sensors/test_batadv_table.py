"""batadv's tables: bytes of the kernel in, rows out, and a remainder that never goes backwards."""

from __future__ import annotations

import struct
import sys
from typing import NamedTuple

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
    intervals_ns,
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


class Row(NamedTuple):
    """One item of each column."""

    counts: np.ndarray
    seen_ns: int
    interval_ns: int
    silent: bool
    turned: bool
    originators: int


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
        columns = (
            found.counts,
            found.seen_ns,
            found.interval_ns,
            found.silent,
            found.turned,
            found.originators,
        )
        rows = {name: Row(*cells) for name, *cells in zip(found.names, *columns, strict=True)}
        return rows, rest.tolist()


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
    found = intervals_ns(np.array([spacing], np.uint64), np.array([told], np.uint32))
    assert found.tolist() == [expected]


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
    assert rest == [7, 0, 3, 4, 5, 0]  # what was told in the row of a is not told again
    kernel.hears(B, 9, seen=603 * SECOND)
    found, rest = kernel.read(rows, 604 * SECOND)
    assert found[text(B)].counts.tolist() == [2, 0, 0, 0, 0, 0]
    assert rest[0] == 7
    kernel.passes_on(A, C, 43, seen=500 * SECOND)  # its OGMs still come
    assert kernel.read(rows, 604 * SECOND)[1][5] == 3
    kernel.read(rows, 1150 * SECOND)  # forgets what a passed on
    assert kernel.originators.held == {}
    assert kernel.read(rows, 1151 * SECOND)[1] == [7, 0, 3, 4, 5, 3]


def test_what_the_remainder_has_of_one_stays_when_it_is_forgotten():
    kernel, rows = Kernel(), table(most=1, forget_ns=600 * SECOND)
    kernel.hears(A, 100, seen=SECOND)
    kernel.hears(B, 7, seen=300 * SECOND)
    kernel.passes_on(B, C, 20, seen=300 * SECOND)
    assert kernel.read(rows, 300 * SECOND)[1][0] == 7
    kernel.read(rows, 602 * SECOND)  # forgets a
    kernel.hears(B, 10, seen=605 * SECOND)
    kernel.passes_on(B, C, 25, seen=605 * SECOND)
    found, rest = kernel.read(rows, 605 * SECOND)
    assert (set(found), rest[0], rest[5]) == ({text(B)}, 10, 25)
    kernel.hears(B, 15, seen=610 * SECOND)
    kernel.passes_on(B, C, 29, seen=610 * SECOND)
    found, rest = kernel.read(rows, 610 * SECOND)
    assert (found[text(B)].counts[[0, 5]].tolist(), rest[0], rest[5]) == ([5, 4], 10, 25)
    kernel.read(rows, 1300 * SECOND)  # forgets b, and what it passed on
    assert (kernel.neighbours.held, kernel.originators.held) == ({}, {})
    assert kernel.read(rows, 1301 * SECOND) == ({}, [10, 0, 3, 4, 5, 25])


def test_who_passed_on_before_it_was_a_neighbour_takes_nothing_from_the_remainder():
    kernel, rows = Kernel(), table()
    kernel.passes_on(A, B, 3)
    assert kernel.read(rows, SECOND) == ({}, [0, 0, 0, 0, 0, 3])
    kernel.hears(A, 1)
    found, rest = kernel.read(rows, SECOND)
    assert (found[text(A)].counts.tolist(), rest) == ([1, 0, 3, 4, 5, 0], [0, 0, 0, 0, 0, 3])
    kernel.passes_on(A, B, 5)
    found, rest = kernel.read(rows, SECOND)
    assert (found[text(A)].counts[5], rest[5]) == (2, 3)


def test_who_comes_back_after_it_was_forgotten_takes_nothing_either():
    kernel, rows = Kernel(), table(forget_ns=60 * SECOND)
    kernel.hears(A, 9, seen=SECOND)
    kernel.passes_on(A, B, 6, seen=100 * SECOND)
    found, rest = kernel.read(rows, 100 * SECOND)
    assert (found[text(A)].counts[5], rest[5]) == (6, 0)
    kernel.hears(A, 1, seen=101 * SECOND)  # before the next reading
    found, rest = kernel.read(rows, 101 * SECOND)
    assert (found[text(A)].counts[[0, 5]].tolist(), rest[0], rest[5]) == ([1, 0], 0, 0)


def test_originators_of_a_row_are_forgotten_without_loss():
    kernel, rows = Kernel(), table(forget_ns=60 * SECOND)
    kernel.hears(A, 1, seen=100 * SECOND)
    kernel.passes_on(A, B, 5, seen=SECOND)
    kernel.passes_on(A, C, 6, seen=100 * SECOND)
    for _ in range(3):
        found, rest = kernel.read(rows, 100 * SECOND)
        assert (found[text(A)].counts[5], rest[5]) == (11, 0)
    assert len(kernel.originators.held) == 1


def test_a_reading_does_as_much_for_many_rows_as_for_few():
    """Its cost is that of whole columns: whoever forges addresses cannot make the loop wait."""

    def calls(most: int) -> int:
        kernel, rows = Kernel(), table(most=most)
        for index in range(1000):
            kernel.hears(bytes([2, 0, 0, 0, *index.to_bytes(2, "big")]), 1, seen=SECOND)
        kernel.read(rows, SECOND)
        made = 0

        def count(*_: object) -> None:
            nonlocal made
            made += 1

        sys.setprofile(count)
        try:
            rows.rows(kernel.neighbours, kernel.originators, SECOND)
        finally:
            sys.setprofile(None)
        return made

    assert calls(256) == calls(1)


def test_many_come_and_go_and_nothing_falls_or_counts_twice():
    """All that was told as growth, of rows and of the remainder together, is what there was."""
    kernel, rows = Kernel(), table(most=3, forget_ns=50 * SECOND)
    random = np.random.default_rng(7)
    heard = passed = 0
    told, last, last_rest = np.zeros(6), {}, np.zeros(6)
    for now in range(100, 700):
        mac = bytes([2, 0, 0, 0, 9, int(random.integers(40))])
        more = int(random.integers(1, 9))
        if random.random() < 0.5:
            held = kernel.neighbours.held.get(mac + bytes(2))
            kernel.hears(
                mac, (struct.unpack_from("=Q", held, 16)[0] if held else 0) + more, seen=now * SECOND
            )
            heard += more
        else:
            held = kernel.originators.held.get(A + mac)
            kernel.passes_on(mac, A, (struct.unpack_from("=Q", held)[0] if held else 0) + more, now * SECOND)
            passed += more
        found, rest = kernel.read(rows, now * SECOND)
        assert len(found) <= 3
        grown = {name: row.counts.astype(np.int64) - last.get(name, 0) for name, row in found.items()}
        assert all((one[[0, 5]] >= 0).all() for one in grown.values())
        assert (np.array(rest) >= last_rest)[[0, 5]].all()
        told += sum(grown.values()) + np.array(rest) - last_rest
        last, last_rest = {name: row.counts.astype(np.int64) for name, row in found.items()}, np.array(rest)
        assert (told[0], told[5]) == (heard, passed), now
