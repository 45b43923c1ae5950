"""Section `virtual-hour`: an hour of virtual time with the same loss on both paths, through the real loop.

Whatever switches here is a false alarm. Each rate of loss runs in a process of its own, as many at a time as
there are cores.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import Final

from mapek.errors import PermanentError
from mapek.simulations.bench.child import Record, measured, number
from mapek.simulations.bench.plan import Budget
from mapek.simulations.bench.targets import Row

PERCENTS: Final = (0.1, 1.0, 2.0)
WARM_UP_S: Final = 10.0
"""Until the paths are known and the first route lies; not counted."""

WALL_S: Final = 180.0


@dataclass(frozen=True, slots=True)
class Quiet:
    """What happened in `seconds` of virtual time, which took `wall_s`; `verdicts` are the kinds of the symptoms."""

    seconds: float
    switches: int
    inquiries: int
    suspicions: int
    cleared: int
    wall_s: float
    verdicts: tuple[str, ...] = ()


async def run_virtual(percent: float, seconds: float, seed: int) -> Quiet:
    """One node with two paths that both lose `percent` %, at the fast profile's rate."""
    from mapek.analyzers.path_health import PathHealth
    from mapek.config.settings import PROFILES
    from mapek.loop import Decision
    from mapek.model import Event, Frame, Symptom
    from mapek.policies.link_failover import LinkFailover
    from mapek.simulations.radio import Loss
    from mapek.simulations.virtual_mesh import VirtualLink, VirtualMesh, two_links

    fast, kinds = PROFILES["fast"], list[str]()

    def tap(now_ns: int, item: Frame | Event | Decision) -> None:
        if isinstance(item, Symptom) and not item.cleared:
            kinds.append(item.kind)

    # Of 100 probes `percent` are lost, on the way there and on the way back alike.
    one_way = 1 - (1 - percent / 100) ** 0.5
    links = {f"b/l{k}": VirtualLink(Loss(one_way), Loss(one_way)) for k in range(2)}
    analyzers, policies = [PathHealth(fast["path_health"])], [LinkFailover({})]
    start = time.monotonic()
    async with VirtualMesh(
        two_links(), analyzers, policies, links, fast["link_watch"], seed=seed, tap=tap
    ) as mesh:
        await mesh.run(WARM_UP_S)
        tally, moves = mesh.loop.tally, len(mesh.routes.moves)
        if not moves:
            raise PermanentError("run", "virtual mesh", "no route was laid in the warm-up", "see its tests")
        names = ("inquiries", "suspicions", "cleared_suspicions")
        before = [tally.total(name) for name in names]
        kinds.clear()
        await mesh.run(seconds)
        inquiries, suspicions, cleared = (
            tally.total(name) - n for name, n in zip(names, before, strict=True)
        )
        switches = len(mesh.routes.moves) - moves
    wall = time.monotonic() - start
    return Quiet(seconds, switches, inquiries, suspicions, cleared, wall, tuple(kinds))


async def measure(budget: Budget) -> list[Row]:
    """Switches, suspicions, inquiries and the wall time for each rate of loss."""
    seats = asyncio.Semaphore(len(os.sched_getaffinity(0)))

    async def seated(percent: float) -> list[Row]:
        async with seats:
            return _rows(percent, await _in_child(percent, budget.virtual_s, budget.seed))

    # The longest first.
    found = await asyncio.gather(*map(seated, PERCENTS[::-1]))
    return [row for rows in found[::-1] for row in rows]


def _rows(percent: float, found: Quiet) -> list[Row]:
    title = f"{found.seconds / 60:.4g} min at {percent:g} % on both paths"
    said = found.verdicts
    verdicts = ", ".join(f"{said.count(word)} x {word}" for word in sorted(set(said)))
    return [
        Row(f"{title}: switches", found.switches, "", 0, verdicts),
        Row(f"{title}: suspicions", found.suspicions, "", None, f"{found.cleared} of them refuted"),
        Row(f"{title}: inquiries", found.inquiries),
        Row(f"{title}: wall time", round(found.wall_s, 1), "s", WALL_S),
    ]


async def _in_child(percent: float, seconds: float, seed: int) -> Quiet:
    what = f"virtual time at {percent:g} %"
    (found,) = await measured("virtual_hour", percent, seconds, seed, what=what)
    return quiet(found)


def quiet(record: Record) -> Quiet:
    """What the child said."""
    said = record["verdicts"]
    verdicts = tuple(map(str, said)) if isinstance(said, list) else ()
    switches, inquiries, suspicions, cleared = (
        int(number(record, name)) for name in ("switches", "inquiries", "suspicions", "cleared")
    )
    seconds, wall = number(record, "seconds"), number(record, "wall_s")
    return Quiet(seconds, switches, inquiries, suspicions, cleared, wall, verdicts)


if __name__ == "__main__":
    _percent, _seconds, _seed = sys.argv[1:]
    _found = asyncio.run(run_virtual(float(_percent), float(_seconds), int(_seed)))
    sys.stdout.write(json.dumps(asdict(_found)) + "\n")
