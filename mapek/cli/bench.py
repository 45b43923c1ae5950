"""`mapek bench`: the full measurements, section by section; `make bench` runs them all."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    command = commands.add_parser("bench", help="the full measurements, up to 60 minutes, as root")
    command.add_argument("section", nargs="*", help="only these; an unknown one lists them all")
    command.add_argument("--out", type=Path, default=Path("build/bench"), help="where the reports go")
    command.add_argument("--trials", type=int, default=30, help="of each silent fault (30)")
    command.add_argument("--seconds", type=float, default=120.0, help="of each quiet spell (120)")
    command.add_argument("--virtual", type=float, default=3600.0, help="virtual seconds at each loss (3600)")
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=_bench)


def _bench(arguments: argparse.Namespace) -> int:
    import asyncio

    from mapek.cli.lab_needs import missing_for_lab
    from mapek.errors import ConfigError, PrivilegeError
    from mapek.simulations.bench import run_bench

    if arguments.trials < 1 or not 0 < arguments.seconds < 3600 or not 0 < arguments.virtual <= 86_400:
        raise ConfigError(
            "run", "bench", "trials or seconds out of range", "use at least one trial and 1-3600 s"
        )
    if lacks := missing_for_lab():
        raise PrivilegeError("run", "bench", "; ".join(lacks))
    done = asyncio.run(
        run_bench(
            arguments.out,
            tuple(arguments.section),
            trials=arguments.trials,
            seconds=arguments.seconds,
            virtual_s=arguments.virtual,
            seed=arguments.seed,
        )
    )
    return 0 if done.complete else 1
