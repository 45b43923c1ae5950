"""Section `agent`: memory and CPU of an agent to which nothing happens, scraped and with its journal on disk.

The `quiet` sections have the same without a service but beside traffic. Memory is of all processes of an
agent; pages that the two agents of the lab share count half for each in the PSS.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from mapek.errors import PermanentError
from mapek.simulations.agent import Mapek, Profile
from mapek.simulations.bench.child import Record, measured, number
from mapek.simulations.bench.judge import PSS_MB, TARGETS
from mapek.simulations.bench.plan import PROFILES, Budget
from mapek.simulations.bench.targets import Row
from mapek.simulations.lab import Lab, Node
from mapek.simulations.topology import pair

PORT: Final = 9464


async def measure(budget: Budget) -> list[Row]:
    """PSS, RSS and CPU of the costlier node, by profile."""
    rows: list[Row] = []
    for profile in PROFILES:
        rows += await _idle(profile, budget.seconds / 3)
    return rows


async def _idle(profile: Profile, seconds: float) -> list[Row]:
    agents = Mapek(profile, listen=f"127.0.0.1:{PORT}")
    async with Lab(pair(links=2)) as lab:
        try:
            await agents.open(lab)
            before, start = agents.usage(), time.monotonic_ns()
            scraped = await asyncio.gather(*(_scraped(node, seconds) for node in lab.nodes.values()))
            after, stop = agents.usage(), time.monotonic_ns()
            journals = [
                sum(file.stat().st_size for file in (node.namespace.files / "mapek").iterdir())
                for node in lab.nodes.values()
            ]
            moved = sum(event.kind == "switch" for event in agents.events(start, stop))
        finally:
            await agents.close()
    if not all(journals):
        raise PermanentError("measure", f"{profile} agent", "it keeps no journal", "set state_dir")
    cpu = max(
        100 * (after[name].cpu_seconds - before[name].cpu_seconds) * 1e9 / (stop - start) for name in after
    )
    pss, rss = (max(getattr(one, name) for one in after.values()) for name in ("pss_mb", "rss_mb"))
    first = scraped[0]
    note = f"{first['scrapes']} scrapes of {first['bytes']} bytes, {number(first, 'took_ms'):.1f} ms each"
    return [
        Row(f"{profile}, served and scraped: PSS", round(pss, 1), "MB", PSS_MB, note),
        Row(f"{profile}, served and scraped: RSS", round(rss, 1), "MB"),
        Row(f"{profile}, served and scraped: CPU", round(cpu, 2), "%", TARGETS[profile].cpu_percent),
        Row(f"{profile}, served and scraped: failovers", moved, "", 0, f"in {(stop - start) / 1e9:.0f} s"),
    ]


async def _scraped(node: Node, seconds: float) -> Record:
    (found,) = await measured(
        "scrape", PORT, seconds, what=f"/metrics of the agent on {node.name}", inside=node.namespace
    )
    return found
