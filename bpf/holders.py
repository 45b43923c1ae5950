"""Which processes hold what of BPF: by their descriptors, as far as /proc shows them to us."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Holder:
    """A process with a descriptor of it."""

    pid: int
    command: str


def holders() -> dict[tuple[str, int], list[Holder]]:
    """Processes by what they hold: ("prog" | "map" | "link", id), as far as /proc shows them to us."""
    found: dict[tuple[str, int], list[Holder]] = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            handles = [one.name for one in (process / "fd").iterdir() if _is_bpf(one)]
            command = (process / "comm").read_text().strip() if handles else ""
        except OSError:
            continue
        for handle in handles:
            for key in _held(process / "fdinfo" / handle):
                found.setdefault(key, []).append(Holder(int(process.name), command))
    return found


def _is_bpf(handle: Path) -> bool:
    try:
        return "bpf" in os.readlink(handle)
    except OSError:
        # closed since it was listed, as the descriptor of our own listing is
        return False


def _held(fdinfo: Path) -> Iterator[tuple[str, int]]:
    try:
        rows = dict(line.split(":", 1) for line in fdinfo.read_text().splitlines() if ":" in line)
    except OSError:
        return
    # A link's information names its program too, which the process does not hold thereby.
    for kind in ("link", "map", "prog"):
        if f"{kind}_id" in rows:
            yield kind, int(rows[f"{kind}_id"])
            return


def users(things: Collection[tuple[str, int]]) -> str:
    """Other processes that hold one of `things`, in words; "" for nobody.

    Who only looks at all there is (`bpftool prog`) holds each for a moment, and is no user.
    """
    held = _others(things)
    for _ in range(2):
        if held:
            time.sleep(0.03)
            still = _others(things)
            held = [one for one in held if one in still]
    return ", ".join(f"{one.command} (pid {one.pid})" for one in held)


def _others(things: Collection[tuple[str, int]]) -> list[Holder]:
    found = holders()
    held = dict.fromkeys(one for thing in things for one in found.get(thing, ()))
    return [one for one in held if one.pid != os.getpid()]
