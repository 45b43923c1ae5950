"""The table that tc_classifier looks packets up in, made of classes: for each value of a field a bit per class.

The kernel ANDs the sets of a packet's fields, so that 64 classes cost what one costs. What that takes is memory, 74
KiB a table, and work in user space when the classes change. Mirror of bpf/programs/tc_classifier.h.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mapek.errors import ConfigError
from mapek.sensors.tc_classifier_classes import MOST, Ranges, TrafficClass

SLOT_OTHER: Final = 2 * MOST
SLOTS: Final = SLOT_OTHER + 1
DIRECTIONS: Final = ("ingress", "egress")
FIELDS: Final = ("packets", "bytes", "drops")
COUNTERS_BYTES: Final = len(DIRECTIONS) * SLOTS * len(FIELDS) * 8
RANGES: Final = 256

_PORTS: Final = np.dtype([("source", "u8"), ("destination", "u8"), ("either", "u8")])
_MARK: Final = np.dtype([("value", "u4"), ("mask", "u4"), ("classes", "u8")])
TABLE: Final = np.dtype(
    [
        ("protocol", "u8", 257),
        ("dscp", "u8", 65),
        ("portless", "u8"),
        ("any_mark", "u8"),
        ("drop", "u8"),
        ("marks_used", "u8"),
        ("marks", _MARK, MOST),
        ("ports", _PORTS, RANGES),
        ("slot", "u1", MOST),
        ("range", "u1", 65536),
    ]
)
_DE_BRUIJN: Final = 0x03F79D71B4CB0A89

Record = npt.NDArray[Any]


def place_of(bit: int) -> int:
    """Where the program looks for the slot of class `bit`."""
    return ((1 << bit) * _DE_BRUIJN & 2**64 - 1) >> 58


def build(classes: Sequence[TrafficClass], slots: Mapping[str, int]) -> Record:
    """The table of `classes`, in their order, as an array of one `TABLE`; `slots` says where each counts.

    Raises ConfigError when they tell more than 256 ranges of ports apart.
    """
    table = np.zeros(1, TABLE)
    row = table[0]
    row["protocol"] = _sets(257, classes, lambda one: one.protocols)
    row["dscp"] = _sets(65, classes, lambda one: one.dscp)
    row["portless"] = _bits(not (one.ports or one.source_ports or one.destination_ports) for one in classes)
    row["any_mark"] = _bits(not one.marks for one in classes)
    row["drop"] = _bits(one.drop for one in classes)
    marks = {mark: _bits(mark in one.marks for one in classes) for one in classes for mark in one.marks}
    if len(marks) > MOST:
        raise ConfigError(
            "classify by", f"{len(marks)} marks", f"at most {MOST} can be told apart", "use fewer"
        )
    row["marks_used"] = len(marks)
    for at, ((value, mask), bits) in enumerate(marks.items()):
        row["marks"][at] = (value, mask, bits)
    for bit, one in enumerate(classes):
        row["slot"][place_of(bit)] = slots[one.name]
    _ports(row["range"], row["ports"], classes)
    return table


def _bits(wanted: Iterable[bool]) -> int:
    return sum(1 << bit for bit, one in enumerate(wanted) if one)


def _sets(
    values: int, classes: Sequence[TrafficClass], of: Callable[[TrafficClass], frozenset[int]]
) -> list[int]:
    """For each value of a field the classes that it satisfies; the last is for packets without that field."""
    anything = _bits(not of(one) for one in classes)
    return [anything | _bits(value in of(one) for one in classes) for value in range(values)]


def _ports(ranges: Record, sets: Record, classes: Sequence[TrafficClass]) -> None:
    kinds = [(one.source_ports, one.destination_ports, one.ports) for one in classes]
    edges = {0, 65536}
    for low, high in (pair for kind in kinds for wanted in kind for pair in wanted):
        edges |= {low, high + 1}
    known: dict[tuple[int, ...], int] = {}
    for low, beyond in pairwise(sorted(edges)):
        key = tuple(_bits(_has(kind[field], low) for kind in kinds) for field in range(3))
        index = known.setdefault(key, len(known))
        if index >= RANGES:
            why = f"at most {RANGES} can be told apart"
            raise ConfigError("classify by", "ranges of ports", why, "use fewer or wider ones")
        sets[index] = key
        ranges[low:beyond] = index


def _has(wanted: Ranges, port: int) -> bool:
    return not wanted or any(low <= port <= high for low, high in wanted)
