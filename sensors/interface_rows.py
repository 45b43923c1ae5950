"""What was dumped, arranged as a frame: who has a row, and which statistics of drivers have a column.

Pure functions of what was known before and what was found, so that a thread can do it: 256 rows take a millisecond,
which the event loop has better use for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from mapek.model import Entity, Frame, Schema
from mapek.sensors.interface_columns import NO_QDISC, qdisc_columns, schema_with
from mapek.sensors.interface_wire import LinkCounters, QdiscCounters

MOST_ROWS: Final = 256
MOST_COLUMNS: Final = 128


@dataclass(frozen=True, slots=True)
class Dumped:
    """One look at the kernel; `links` and `drivers` by ifindex, `qdiscs` by (ifindex, ingress)."""

    time_ns: int
    links: Mapping[int, LinkCounters]
    qdiscs: Mapping[tuple[int, bool], QdiscCounters]
    drivers: Mapping[int, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Layout:
    """What stays from one frame to the next.

    Args:
        rows: by name.
        schema: that of frames with these columns.
        columns: statistics of drivers, in the order of their columns.
        left_out: interfaces for which there is no row.
        refused: statistics for which there is no column.
        rows_left_out: how many were ever left out.
        columns_left_out: how many were ever refused.
    """

    rows: Mapping[str, Entity]
    schema: Schema
    columns: tuple[str, ...] = ()
    left_out: frozenset[Entity] = frozenset()
    refused: frozenset[str] = frozenset()
    rows_left_out: int = 0
    columns_left_out: int = 0


def laid_out(before: Layout, found: Dumped, wanted: Callable[[str], bool], *, keeps: bool) -> Layout:
    """`before` with what came since: a row or a column stays what it is, new ones come behind while there is room.

    Args:
        wanted: who is to have a row, by name.
        keeps: whether one that is away keeps its row.
    """
    there = {link.name: Entity("link", link.name, link.ifindex) for link in found.links.values()}
    rows = {name: one for name, one in before.rows.items() if keeps or there.get(name) == one}
    left_out = set()
    for name, entity in there.items():
        if not wanted(name):
            continue
        if name in rows or len(rows) < MOST_ROWS:
            rows[name] = entity
        else:
            left_out.add(entity)
    columns, refused = dict.fromkeys(before.columns), set(before.refused)
    for statistic in (one for driver in found.drivers.values() for one in driver):
        if statistic in columns or statistic in refused:
            continue
        if len(columns) < MOST_COLUMNS:
            columns[statistic] = None
        elif len(refused) < MOST_ROWS * 16:
            refused.add(statistic)
    grown = len(columns) > len(before.columns)
    return Layout(
        rows,
        schema_with(tuple(columns)) if grown else before.schema,
        tuple(columns),
        frozenset(left_out),
        frozenset(refused),
        before.rows_left_out + len(left_out - before.left_out),
        before.columns_left_out + len(refused) - len(before.refused),
    )


def framed(layout: Layout, found: Dumped) -> Frame:
    """The frame; the row of one that is away is not valid."""
    entities = tuple(layout.rows.values())
    counters = np.zeros((len(entities), len(layout.schema.counters)), np.uint64)
    gauges = np.full((len(entities), len(layout.schema.gauges)), math.nan)
    valid = np.zeros(len(entities), np.bool_)
    for row, entity in enumerate(entities):
        link = found.links.get(entity.generation)
        if link is None or link.name != entity.name:
            continue
        valid[row] = True
        values = [*link.statistics, link.carrier_up, link.carrier_down]
        gauges[row, 0] = link.operstate
        for ingress in (False, True):
            qdisc = found.qdiscs.get((link.ifindex, ingress))
            values += NO_QDISC if qdisc is None else qdisc_columns(qdisc)
            if qdisc is not None and not ingress:
                gauges[row, 1:] = qdisc.qlen, qdisc.backlog
        driver = found.drivers.get(link.ifindex, {})
        counters[row] = values + [driver.get(name, 0) for name in layout.columns]
    return Frame(found.time_ns, layout.schema, entities, counters, gauges, valid)
