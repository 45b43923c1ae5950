"""Dumps in, frames out: who keeps a row or a column, and what is said of those for whom there is none."""

from __future__ import annotations

import numpy as np
import pytest

from mapek.knowledge import check_frame
from mapek.sensors import interface_rows
from mapek.sensors.interface_columns import SCHEMA
from mapek.sensors.interface_rows import Dumped, Layout, framed, laid_out
from mapek.sensors.interface_wire import STATISTICS, LinkCounters, QdiscCounters


def dumped(names: dict[str, int], drivers: dict[int, dict[str, int]] | None = None) -> Dumped:
    """Interfaces by name and ifindex; each statistic is its place plus a hundred times the ifindex."""
    links = {
        n: LinkCounters(n, name, 6, tuple(100 * n + k for k in range(len(STATISTICS))), n, n + 1)
        for name, n in names.items()
    }
    return Dumped(5, links, {(1, False): QdiscCounters(1, "tbf", False, *range(20, 27))}, drivers or {})


def everybody(name: str) -> bool:
    return True


def test_values_stand_in_their_columns():
    found = dumped({"a": 1, "b": 2}, {2: {"x": 7, "y": 2**64 - 1}})
    frame = framed(laid_out(Layout({}, SCHEMA), found, everybody, keeps=True), found)
    check_frame(frame)
    assert frame.valid.all()
    width = len(SCHEMA.counters)
    assert frame.counters[0].tolist() == [*range(100, 124), 1, 2, 20, 21, 22, 23, 24, 0, 0, 0, 0, 0, 0, 0]
    assert frame.counters[1].tolist() == [*range(200, 224), 2, 3, *[0] * 10, 7, 2**64 - 1]
    assert len(frame.schema.counters) == width + 2
    assert frame.gauges[0].tolist() == [6, 25, 26]
    assert np.isnan(frame.gauges[1, 1:]).all()


def test_a_name_keeps_its_row_and_column():
    before = laid_out(Layout({}, SCHEMA), dumped({"a": 1, "b": 2}, {1: {"x": 1}}), everybody, keeps=True)
    found = dumped({"c": 3, "b": 4}, {3: {"y": 3}})
    after = laid_out(before, found, everybody, keeps=True)
    assert list(after.rows) == ["a", "b", "c"]
    assert after.columns == ("x", "y")
    frame = framed(after, found)
    check_frame(frame)
    assert frame.valid.tolist() == [False, True, True]
    assert [one.generation for one in frame.entities] == [1, 4, 3]
    assert list(laid_out(before, found, everybody, keeps=False).rows) == ["c", "b"]


def test_whoever_is_too_many_is_counted_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(interface_rows, "MOST_ROWS", 1)
    monkeypatch.setattr(interface_rows, "MOST_COLUMNS", 1)
    found = dumped({"a": 1, "b": 2, "c": 3}, {1: {"x": 1, "y": 2}, 2: {"z": 3}})
    layout = Layout({}, SCHEMA)
    for _ in range(2):
        layout = laid_out(layout, found, everybody, keeps=True)
        assert list(layout.rows) == ["a"]
        assert layout.columns == ("x",)
        assert (layout.rows_left_out, layout.columns_left_out) == (2, 2)
        check_frame(framed(layout, found))
