"""`mapek bpf profile`: what programs cost, measured: those that are loaded now, or a sensor's in an A/B of its own."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from mapek.cli.printing import Json

SECONDS: Final = 5.0


def add(parts: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    profiling = parts.add_parser(
        "profile",
        help="what programs cost: run times, memory, and what they do to a flow; as root",
        description="Without --ab: the programs that are loaded now, timed by bpf_stats meanwhile. With it: "
        "each sensor with and without, in turns, in namespaces of its own. Ctrl-C: what there is by then.",
    )
    profiling.add_argument(
        "sensor",
        nargs="*",
        metavar="SENSOR",
        help="sensors, or ids of loaded programs (default: all of ours)",
    )
    profiling.add_argument("--seconds", type=float, default=SECONDS, help=f"how long ({SECONDS:g})")
    profiling.add_argument("--json", action="store_true", help="as one JSON object (docs/PROFILE.md)")
    profiling.set_defaults(run=_profile)


def _profile(arguments: argparse.Namespace) -> int:
    import asyncio

    from mapek.cli.signals import until_signal
    from mapek.errors import ConfigError

    if not 0.1 <= arguments.seconds <= 3600:
        raise ConfigError("profile for", f"{arguments.seconds:g} s", "out of range", "take 0.1 to 3600")
    return asyncio.run(until_signal(_loaded(arguments.sensor, arguments.seconds, arguments.json)))


def sensors() -> list[str]:
    """Names that a sensor with a program can have."""
    from mapek import plugins

    return sorted(plugins.available(plugins.SENSORS))


async def _loaded(wanted: list[str], seconds: float, as_json: bool) -> int:
    import asyncio
    import time

    from mapek.bpf.inventory import programs
    from mapek.bpf.run_stats import Watched, run_time_stats
    from mapek.bpf.stop_watch import stop_watch
    from mapek.cli.bpf.loaded_cost import Cost, choose, document, inside, table
    from mapek.errors import ObjectError

    everything = await asyncio.to_thread(programs)
    chosen = choose(everything, wanted, sensors())
    above = inside(everything)
    with Watched(one.id for one in chosen) as watched:
        sizes = await asyncio.to_thread(watched.sizes)
        if not sizes:
            raise ObjectError(
                "profile", ", ".join(wanted) or "programs of ours", "unloaded just now", "try again"
            )
        watch, cut_short = await asyncio.to_thread(stop_watch), True
        with run_time_stats():
            before, start = watched.runs(), time.monotonic()
            try:
                await asyncio.sleep(seconds)
                cut_short = False
            finally:
                # Also after Ctrl-C: what it has by then.
                took, after = time.monotonic() - start, watched.runs()
                costs = [
                    Cost(one, after[one.id] - before[one.id], sizes[one.id], took, above.get(one.id))
                    for one in chosen
                    if one.id in after
                ]
                if as_json:
                    print(json.dumps(document(costs, watch, took, cut_short)))
                else:
                    print(table(costs, watch, took))
    return 0
