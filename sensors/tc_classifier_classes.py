"""Traffic classes as people write them: "protocol=udp port=5060,16384-32767 dscp=ef", parsed into sets of numbers.

One short text per class serves the configuration file and a plan's step alike, whose fields are plain values. All
conditions of a class must hold, each by any one of its values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mapek.config.options import error, guess, plain

MOST: Final = 64
"""Classes at once: a bit each."""
OTHER: Final = "other"
REMOVED: Final = "removed"
"""Counts of classes that are no more."""

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,63}")
_LONGEST: Final = 1000
_PROTOCOLS: Final = {
    "icmp": 1, "igmp": 2, "ipip": 4, "tcp": 6, "udp": 17, "dccp": 33, "ipv6": 41, "gre": 47, "esp": 50, "ah": 51,
    "icmpv6": 58, "ospf": 89, "sctp": 132, "udplite": 136,
}  # fmt: skip
_DSCP: Final = {
    "be": 0, "le": 1, "ef": 46, "va": 44,
    **{f"cs{n}": 8 * n for n in range(8)},
    **{f"af{n}{drop}": 8 * n + 2 * drop for n in range(1, 5) for drop in range(1, 4)},
}  # fmt: skip
_KEYS: Final = ("protocol", "port", "source_port", "destination_port", "dscp", "mark", "verdict")

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class TrafficClass:
    """What belongs to a class; an empty set asks nothing.

    Args:
        name: 1 to 63 letters, digits, "-" or "_"; not "other" or "removed".
        protocols: IP protocol numbers; the one after all IPv6 extension headers.
        ports: ranges, ends included, of which the source or the destination port is in one.
        source_ports: the same for the source port alone.
        destination_ports: the same for the destination port alone.
        dscp: differentiated services code points, 0 to 63.
        marks: (value, mask): `skb->mark & mask == value`.
        drop: drop what belongs to it; else only count.
    """

    name: str
    protocols: frozenset[int] = frozenset()
    ports: Ranges = ()
    source_ports: Ranges = ()
    destination_ports: Ranges = ()
    dscp: frozenset[int] = frozenset()
    marks: Ranges = ()
    drop: bool = False


def parse_classes(table: Mapping[str, object]) -> tuple[TrafficClass, ...]:
    """The classes of a table name -> text, in its order: the first that matches a packet has it.

    Raises ConfigError: one line that names the class and the word.

    >>> parse_classes({"ssh": "protocol=tcp port=22"})[0].ports
    ((22, 22),)
    """
    if len(table) > MOST:
        raise error(table, "classes", f"has {len(table)} classes", f"at most {MOST} can be told apart")
    return tuple(_parse(table, name, text) for name, text in table.items())


def _parse(table: Mapping[str, object], name: str, text: object) -> TrafficClass:
    if not _NAME.fullmatch(name) or name in (OTHER, REMOVED):
        do = f'use letters, digits, "-" and "_", and not "{OTHER}" or "{REMOVED}"'
        raise error(table, name, "is no name for a class", do)
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise error(table, name, "is not a short string", 'write for example "protocol=udp port=53"')
    found: dict[str, str] = {}
    for word in text.split():
        key, _, values = word.partition("=")
        if key not in _KEYS:
            raise error(table, name, f'has "{plain(key)}"', guess(key, _KEYS, "remove it"))
        if key in found:
            raise error(table, name, f'has "{key}" twice', "separate its values by commas")
        found[key] = values
    verdict = found.pop("verdict", "observe")
    if verdict not in ("observe", "drop"):
        raise error(table, name, f'has verdict "{plain(verdict)}"', "it is observe or drop")
    if not found:
        raise error(
            table, name, "asks for nothing", f'say what belongs to it; the rest is "{OTHER}" by itself'
        )

    def numbers(key: str, names: Mapping[str, int], most: int) -> frozenset[int]:
        return frozenset(_number(table, name, key, word, names, most) for word in _words(found, key))

    def ranges(key: str) -> Ranges:
        return tuple(_range(table, name, key, word) for word in _words(found, key))

    return TrafficClass(
        name,
        numbers("protocol", _PROTOCOLS, 255),
        ranges("port"),
        ranges("source_port"),
        ranges("destination_port"),
        numbers("dscp", _DSCP, 63),
        tuple(_mark(table, name, word) for word in _words(found, "mark")),
        verdict == "drop",
    )


def _words(found: Mapping[str, str], key: str) -> list[str]:
    return found[key].split(",") if key in found else []


def _number(
    table: Mapping[str, object], name: str, key: str, word: str, names: Mapping[str, int], most: int
) -> int:
    if word in names:
        return names[word]
    try:
        # ASCII alone, and no underscores or signs: what int() takes besides is a slip of the pen here.
        value = int(word, 0) if re.fullmatch(r"0x[0-9a-fA-F]{1,8}|0|[1-9][0-9]{0,9}", word) else -1
    except ValueError:
        value = -1
    if not 0 <= value <= most:
        known = f"a name or a number from 0 to {most}" if names else f"a number from 0 to {most}"
        raise error(table, name, f'has {key} "{plain(word)}"', guess(word, names, f"it is {known}"))
    return value


def _range(table: Mapping[str, object], name: str, key: str, word: str) -> tuple[int, int]:
    first, dash, last = word.partition("-")
    low = _number(table, name, key, first, {}, 65535)
    high = _number(table, name, key, last, {}, 65535) if dash else low
    if high < low:
        raise error(table, name, f'has {key} "{plain(word)}"', "begin a range with its lower end")
    return low, high


def _mark(table: Mapping[str, object], name: str, word: str) -> tuple[int, int]:
    first, slash, last = word.partition("/")
    value = _number(table, name, "mark", first, {}, 2**32 - 1)
    mask = _number(table, name, "mark", last, {}, 2**32 - 1) if slash else 2**32 - 1
    if value & ~mask:
        raise error(table, name, f'has mark "{plain(word)}"', "its mask leaves out bits of the value")
    return value, mask
