"""`mapek bpf COMMAND`: BPF programs in the kernel, and before they get there. A file a command."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mapek.cli.bpf import clean, explain, listing, profile, validate

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command and its own commands."""
    command = commands.add_parser(
        "bpf", help="look at BPF programs: in the kernel, and before they get there"
    )
    parts = command.add_subparsers(dest="part", metavar="COMMAND", required=True)
    for module in (listing, clean, validate, explain, profile):
        module.add(parts)
