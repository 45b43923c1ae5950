"""`mapek lab open`: a lab to work in by hand or by script; `mapek lab clean`: ends what a killed lab left."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from mapek.cli.telling import tell

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from mapek.cli.printing import Json
    from mapek.simulations.agent import Profile
    from mapek.simulations.session import Record
    from mapek.simulations.topology import Topology

_STDIN: Final = 0


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    command = commands.add_parser("lab", help="the lab of namespaces")
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    opened = actions.add_parser("open", help="open a lab and take commands from stdin; say help there")
    opened.add_argument("--topology", choices=("pair", "triangle", "line"), default="pair")
    opened.add_argument("--links", type=int, help="between neighbours (pair: 2, line: 1)")
    opened.add_argument("--nodes", type=int, help="of a line (3)")
    opened.add_argument("--profile", choices=("fast", "default"), default="default", help="of the agents")
    opened.add_argument("--no-agents", action="store_true", help="static routes only, to try something else")
    opened.add_argument("--flow", default="a:b", metavar="A:B", help="the nodes that the flow joins (a:b)")
    opened.add_argument("--json", action="store_true", help="print JSON lines")
    opened.set_defaults(run=_open)
    clean = actions.add_parser("clean", help="end what dead labs left behind")
    clean.add_argument("--json", action="store_true", help="as one JSON list")
    clean.add_argument("--dry-run", action="store_true", help="only say what there is")
    clean.set_defaults(run=_clean)


def _open(arguments: argparse.Namespace) -> int:
    import asyncio

    from mapek.cli.lab_needs import missing_for_lab
    from mapek.cli.signals import until_signal
    from mapek.errors import PrivilegeError

    topology = _topology(arguments)
    if lacks := missing_for_lab():
        raise PrivilegeError("open", "lab", "; ".join(lacks))
    source, _, target = arguments.flow.partition(":")
    profile: Profile | None = None if arguments.no_agents else arguments.profile
    return asyncio.run(until_signal(_session(topology, profile, (source, target), arguments.json)))


def _topology(arguments: argparse.Namespace) -> Topology:
    from mapek.errors import ConfigError
    from mapek.simulations.topology import line, pair, triangle

    kind, links, nodes = arguments.topology, arguments.links, arguments.nodes
    if nodes is not None and kind != "line":
        raise ConfigError(
            "lay out", kind, "its number of nodes is fixed", "leave out --nodes or lay out a line"
        )
    if links is not None and kind == "triangle":
        raise ConfigError("lay out", kind, "it has one link between two nodes", "leave out --links")
    if kind == "pair":
        return pair(2 if links is None else links)
    if kind == "line":
        return line(3 if nodes is None else nodes, 1 if links is None else links)
    return triangle()


async def _session(topology: Topology, profile: Profile | None, ends: tuple[str, str], as_json: bool) -> int:
    import time
    from contextlib import ExitStack

    from mapek.cli import say
    from mapek.cli.input import LinesIn
    from mapek.cli.output import Lines
    from mapek.errors import MapekError
    from mapek.simulations.session import Session, work

    began_ns, wrong = time.monotonic_ns(), 0

    def line(record: Record) -> str:
        return _json_line(record) if as_json else _human_line(record, began_ns)

    def failed(error: MapekError) -> None:
        nonlocal wrong
        wrong += 1
        say(error)

    with ExitStack() as life:
        lines = Lines(
            sys.stdout.fileno(),
            lambda count: line({"type": "dropped", "time_ns": time.monotonic_ns(), "count": count}),
        )
        life.callback(lines.close)

        def tell(record: Record) -> None:
            lines.put(lambda: line(record))

        life.callback(lambda: tell({"type": "closed", "time_ns": time.monotonic_ns()}))
        async with Session(topology, profile, ends, tell) as session:
            tell({"type": "open", "time_ns": time.monotonic_ns(), "topology": topology.name})
            entered = LinesIn(_STDIN)
            life.callback(entered.close)
            await work(session, entered.lines, failed)
    # At a terminal the person has seen it and gone on.
    return 2 if wrong and not os.isatty(_STDIN) else 0


def _plain(record: Record) -> dict[str, Json]:
    return dict(record)


def _json_line(record: Record) -> str:
    from mapek.cli.printing import json_line

    return json_line(_plain(record))


def _human_line(record: Record, began_ns: int) -> str:
    from mapek.cli.printing import human_line

    plain = _plain(record)
    match plain["type"]:
        case "help":
            return f"  {plain['usage']!s:<27} {plain['meaning']}"
        case "node":
            return (
                f"node {plain['node']} ({plain['address']}): enter it with  nsenter -t {plain['pid']} -n -m"
            )
        case "wire":
            return f"wire {plain['wire']}: {plain['a']} - {plain['b']}"
        case "open":
            return "the lab is open; say help, end it with quit"
    node = plain.pop("node", None)
    text = human_line(plain, began_ns)
    # The node stands after the time, where the eye looks for who speaks.
    return f"{text[:12]}  {node or '':<3}{text[12:]}"


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
            tell(f"{verb} {one.pid}: {one.command}")
        if not found:
            print("nothing is left of any lab")
    return 1 if left else 0
