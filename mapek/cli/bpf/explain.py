"""`mapek bpf explain`: what an object would do in the kernel."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from mapek.cli.bpf.subject import subjects

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add(parts: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    telling = parts.add_parser("explain", help="what an object does, in plain words; needs no privilege")
    telling.add_argument(
        "object",
        metavar="OBJECT",
        help="a .o file, the name of a sensor or program of ours, or the id of a loaded one",
    )
    telling.add_argument("--program", metavar="NAME", default="", help="only this program of it")
    form = telling.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as one JSON object a line, one for each object")
    form.add_argument("--dot", action="store_true", help="the flow of control as a picture for Graphviz")
    telling.set_defaults(run=_explain)


def _explain(arguments: argparse.Namespace) -> int:
    from mapek.bpf import words
    from mapek.bpf.anatomy import take_apart
    from mapek.bpf.explain import explain

    told = []
    for one in subjects(arguments.object, arguments.program):
        anatomy = take_apart(one.spec)
        found = explain(one.spec, anatomy, arguments.program or one.program)
        if arguments.dot:
            told.append(words.dot(anatomy, [program.name for program in found.programs]))
        elif arguments.json:
            told.append(json.dumps({**asdict(found), "other_build": one.other_build}))
        else:
            told.append(words.text(found, other_build=one.other_build))
    print(("\n" if arguments.json or arguments.dot else "\n\n").join(told))
    return 0
