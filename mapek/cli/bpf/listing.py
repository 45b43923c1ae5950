"""`mapek bpf list`: what runs in this kernel."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from mapek.cli.telling import tell

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from mapek.bpf.inventory import Loaded


def add(parts: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    listing = parts.add_parser("list", help="what is loaded, by us and by others, and attached where")
    listing.add_argument("--ours", action="store_true", help="only programs of mapek")
    listing.add_argument("--json", action="store_true", help="as one JSON list")
    listing.set_defaults(run=_list)


def _list(arguments: argparse.Namespace) -> int:
    from mapek.bpf.inventory import programs

    found = [one for one in programs() if one.object or not arguments.ours]
    if arguments.json:
        print(json.dumps([asdict(one) for one in found]))
    elif found:
        tell(*_lines(found))
    else:
        print("no program of mapek is loaded" if arguments.ours else "no BPF program is loaded")
    return 0


def _lines(found: list[Loaded]) -> list[str]:
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    lines = [
        f"{'ID':<7}{'NAME':<17}{'TYPE':<16}{'WHOSE':<23}{'SINCE':>8}{'MAPS':>10}{'RUNS':>15}{'NS/RUN':>8}"
    ]
    for one in found:
        whose = f"mapek {one.object}" if one.object else "foreign"
        runs = f"{one.runs:>15}{one.run_ns / one.runs:>8.0f}" if one.runs else f"{'-':>15}{'-':>8}"
        lines.append(
            f"{one.id:<7}{one.name:<17}{one.type:<16}{whose:<23}{_ago(now - one.loaded_ns):>8}"
            f"{_size(one.map_bytes):>10}{runs}"
        )
        lines += [f"       {word}" for word in _where(one)]
    return lines


def _where(one: Loaded) -> list[str]:
    """What is told of a program below its line."""
    words = []
    for at in one.attached:
        if at.kind == "chain":
            place, _, slot = at.place.rpartition(" slot ")
            words.append(f"in the chain of {place}, slot {slot}")
        else:
            link = f" (link {at.link_id})" if at.link_id else ""
            words.append(f"on {at.kind} {at.place}{link}{', which only its pin keeps' * at.pinned}")
    words += [f"pinned at {path}" for path in one.pins]
    who = ", ".join(f"{holder.command} ({holder.pid})" for holder in one.holders)
    words.append(f"held by {who}" if who else "held by no process that we can see")
    if not one.attached:
        words.insert(0, "attached to nothing that we can see")
    return words


def _size(number: int) -> str:
    for unit, size in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= size:
            return f"{number / size:.0f} {unit}"
    return f"{number} B"


def _ago(ns: int) -> str:
    seconds = ns // 10**9
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
