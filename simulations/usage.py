"""What a process and its descendants cost: CPU time and memory, from /proc."""

from __future__ import annotations

import os
from pathlib import Path

from mapek.simulations.contender import Usage

_TICKS = os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """`pid` and everything below it, as far as it lives."""
    found, edge = [], [pid]
    while edge:
        pid = edge.pop()
        try:
            tasks = os.listdir(f"/proc/{pid}/task")
        except OSError:
            continue
        found.append(pid)
        for task in tasks:
            try:
                edge.extend(map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split()))
            except OSError:
                continue
    return found


def usage(pid: int) -> Usage:
    """Of the process tree at `pid`; parts that end meanwhile count nothing. Memory in MB of 10^6 bytes."""
    pss = rss = cpu = 0
    for one in descendants(pid):
        try:
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                name, _, rest = line.partition(":")
                if name in ("Pss", "Rss"):
                    kilobytes = int(rest.split()[0])
                    pss, rss = (pss + kilobytes, rss) if name == "Pss" else (pss, rss + kilobytes)
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            cpu += int(fields[11]) + int(fields[12])
        except (OSError, IndexError, ValueError):
            continue
    return Usage(pss * 1024 / 1e6, rss * 1024 / 1e6, cpu / _TICKS)
