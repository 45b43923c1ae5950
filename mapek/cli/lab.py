"""`mapek lab clean`: finds what a killed lab left behind and ends it, and touches nothing else."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    command = commands.add_parser("lab", help="the lab of namespaces")
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    clean = actions.add_parser("clean", help="end what dead labs left behind")
    clean.add_argument("--json", action="store_true", help="as one JSON list")
    clean.add_argument("--dry-run", action="store_true", help="only say what there is")
    clean.set_defaults(run=_clean)


def _clean(arguments: argparse.Namespace) -> int:
    from mapek.simulations.clean import clean, remains

    found = remains() if arguments.dry_run else clean()
    # What we may not end stays, and saying otherwise would be a lie.
    left = [] if arguments.dry_run else remains()
    if arguments.json:
        print(json.dumps([asdict(one) for one in found]))
    else:
        verb = "found" if arguments.dry_run else "ended"
        for one in found:
            print(f"{verb} {one.pid}: {one.command}")
        if not found:
            print("nothing is left of any lab")
    return 1 if left else 0
