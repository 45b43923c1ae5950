"""`mapek demo`: real faults on real links, healed as one watches; a recording of it where that cannot be."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from mapek.simulations.campaign import CampaignResult


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    command = commands.add_parser("demo", help="inject faults into a lab and watch the loop heal them")
    command.add_argument("--out", type=Path, default=Path("build/demo"), help="where the report goes")
    command.add_argument("--replay", action="store_true", help="replay the shipped recording even as root")
    command.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from mapek.cli.machine import missing_for_lab

    lacks = ["--replay was asked for"] if arguments.replay else missing_for_lab()
    if not lacks:
        import asyncio

        from mapek.simulations.demo import run_demo

        results = asyncio.run(run_demo(arguments.out))
        return 0 if all(_healed(result) for result in results.values()) else 1
    print("the lab cannot run here:" if not arguments.replay else "no lab this time:")
    for line in lacks:
        print(f"  {line}")
    print("so this is a recording of a lab run, through the very same loop in virtual time:\n")
    sys.stdout.flush()
    from mapek.cli.replay import shipped, show

    codes = [show(file, as_json=False) for file in shipped()]
    return max(codes)


def _healed(result: CampaignResult) -> bool:
    return all(trial.rescued for series in result.series for trial in series.trials)
