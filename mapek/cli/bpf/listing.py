"""`mapek bpf list`: what runs in this kernel."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

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
        print("\n".join(_lines(found)))
    else:
        print("no program of mapek is loaded" if arguments.ours else "no BPF program is loaded")
    return 0


def _lines(found: list[Loaded]) -> list[str]:
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    lines = []
    for one in found:
        places = ", ".join(f"{at.kind} {at.place}{', pinned' * at.pinned}" for at in one.attached)
        who = ", ".join(f"{holder.command} ({holder.pid})" for holder in one.holders)
        parts = [
            f"{one.id:<7}{one.name:<16} {one.type:<15}",
            f"{f'mapek {one.object}' if one.object else 'foreign':<24}",
            f"since {_ago(now - one.loaded_ns):<8}",
            places or "attached by no link",
            f"held by {who}" if who else "held by no process that we can see",
        ]
        if one.runs:
            parts.append(f"{one.runs} runs of {one.run_ns / one.runs:.0f} ns")
        lines.append("  ".join(parts))
    return lines


def _ago(ns: int) -> str:
    seconds = ns // 10**9
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
