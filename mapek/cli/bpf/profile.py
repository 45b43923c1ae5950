"""`mapek bpf profile`: what programs cost, measured: those that are loaded now, or a sensor's in an A/B of its own."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from argparse import _SubParsersAction


SECONDS: Final = 5.0
AB_SECONDS: Final = 20.0


def add(parts: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    profiling = parts.add_parser(
        "profile",
        help="what programs cost: run times, memory, and what they do to a flow; as root",
        description="Without --ab: the programs that are loaded now, timed by bpf_stats meanwhile. With it: "
        "each sensor with and without, in turns, on a load in namespaces of its own. After Ctrl-C it prints "
        "what it has by then.",
    )
    profiling.add_argument(
        "sensor", nargs="*", metavar="SENSOR", help="names, or ids of loaded programs (default: all of ours)"
    )
    profiling.add_argument(
        "--ab", "--flow", action="store_true", help="with and without, on a flow or on system calls"
    )
    profiling.add_argument(
        "--seconds", type=float, help=f"how long ({SECONDS:g}; with --ab {AB_SECONDS:g} for each sensor)"
    )
    profiling.add_argument("--seed", type=int, default=0, help="of the order of with and without (0)")
    profiling.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the sensor, in TOML, with --ab and one sensor",
    )
    profiling.add_argument("--json", action="store_true", help="as one JSON object (docs/PROFILE.md)")
    profiling.add_argument("--plot", type=Path, metavar="FILE.png", help="a picture of the A/B")
    profiling.set_defaults(run=_profile)


def _profile(arguments: argparse.Namespace) -> int:
    import asyncio

    from mapek.cli.signals import until_signal
    from mapek.errors import ConfigError

    seconds = arguments.seconds
    if seconds is None:
        seconds = AB_SECONDS if arguments.ab else SECONDS
    if not 0.1 <= seconds <= 3600:
        raise ConfigError("profile for", f"{seconds:g} s", "out of range", "take 0.1 to 3600")
    if arguments.ab:
        from mapek.cli.bpf.profile_ab import profile_ab

        return profile_ab(arguments, seconds)
    if arguments.plot or arguments.option:
        given = "--plot" if arguments.plot else "--option"
        raise ConfigError("profile with", given, "there is no A/B without --ab", "add --ab")
    return asyncio.run(until_signal(_loaded(arguments.sensor, seconds, arguments.json)))


async def _loaded(wanted: list[str], seconds: float, as_json: bool) -> int:
    import asyncio
    import time

    from mapek.bpf.inventory import programs
    from mapek.bpf.run_stats import Watched, run_time_stats
    from mapek.bpf.stop_watch import stop_watch
    from mapek.cli.bpf.loaded_cost import DISPATCHER, Cost, choose, document, inside, table
    from mapek.errors import ObjectError
    from mapek.simulations.profile.subjects import SUBJECTS

    with run_time_stats():
        # Where it cannot be measured, that is what is said.
        everything = await asyncio.to_thread(programs)
    chosen = choose(everything, wanted, (*SUBJECTS, DISPATCHER))
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
