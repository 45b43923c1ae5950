"""`mapek bpf list | validate | explain`: what runs in this kernel, and what an object would do there."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from mapek.errors import ObjectError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from mapek.bpf.inventory import Loaded
    from mapek.bpf.spec import ObjectSpec
    from mapek.bpf.validate import Report


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command and its own commands."""
    command = commands.add_parser(
        "bpf", help="look at BPF programs: in the kernel, and before they get there"
    )
    parts = command.add_subparsers(dest="part", metavar="COMMAND", required=True)
    listing = parts.add_parser("list", help="what is loaded, by us and by others, and attached where")
    listing.add_argument("--ours", action="store_true", help="only programs of mapek")
    listing.add_argument("--json", action="store_true", help="as one JSON list")
    listing.set_defaults(run=_list)
    judging = parts.add_parser(
        "validate",
        help="whether an object may be loaded; needs no privilege",
        description="Exit code 0: valid, 1: refused, 2: wrong usage or rules.",
    )
    judging.add_argument(
        "object", metavar="OBJECT", help="a .o file, or the name of a sensor or program of ours"
    )
    judging.add_argument("--rules", metavar="FILE.toml", help="what is allowed (docs/VALIDATE.md)")
    judging.add_argument(
        "--sha256", metavar="FILE", help="digests of objects that may be loaded, as of sha256sum"
    )
    judging.add_argument(
        "--btf",
        metavar="FILE",
        help="BTF of the kernel it is for (default: of this kernel, if readable; 'none': do not look)",
    )
    judging.add_argument("--json", action="store_true", help="as one JSON object")
    judging.set_defaults(run=_validate)
    telling = parts.add_parser("explain", help="what an object does, in plain words; needs no privilege")
    telling.add_argument(
        "object",
        metavar="OBJECT",
        help="a .o file, the name of a sensor or program of ours, or the id of a loaded one",
    )
    telling.add_argument("--program", metavar="NAME", default="", help="only this program of it")
    form = telling.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as one JSON object")
    form.add_argument("--dot", action="store_true", help="the flow of control as a picture for Graphviz")
    telling.set_defaults(run=_explain)


def _list(arguments: argparse.Namespace) -> int:
    from mapek.bpf.inventory import programs

    found = [one for one in programs() if one.object or not arguments.ours]
    if arguments.json:
        print(json.dumps([asdict(one) for one in found]))
    elif found:
        print("\n".join(_lines(found)))
    else:
        print("no program of mapek is loaded" if arguments.ours else "no BPF program is loaded")
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    from mapek.bpf import rules as rules_module
    from mapek.bpf import words
    from mapek.bpf.relocate import unresolved
    from mapek.bpf.validate import validate

    rules = rules_module.read(arguments.rules) if arguments.rules else rules_module.Rules()
    if arguments.sha256:
        rules = replace(rules, sha256=rules_module.read_digests(arguments.sha256))
    report = validate(_object(arguments.object)[0], rules)
    if arguments.btf != "none":
        report = replace(report, findings=(*report.findings, *unresolved(report.anatomy, arguments.btf)))
    if arguments.json:
        print(json.dumps({"ok": report.ok, **_document(report)}))
    else:
        print(words.report(report))
    return 0 if report.ok else 1


def _document(report: Report) -> dict[str, object]:
    document = asdict(replace(report, anatomy=None))
    del document["anatomy"]
    return document


def _explain(arguments: argparse.Namespace) -> int:
    from mapek.bpf import words
    from mapek.bpf.anatomy import take_apart
    from mapek.bpf.explain import explain

    spec, program = _object(arguments.object)
    anatomy = take_apart(spec)
    found = explain(spec, anatomy, arguments.program or program)
    if arguments.dot:
        print(words.dot(anatomy, [one.name for one in found.programs]))
    elif arguments.json:
        print(json.dumps(asdict(found)))
    else:
        print(words.text(found))
    return 0


def _object(given: str) -> tuple[ObjectSpec, str]:
    """The object that is meant, and the program in it, "" for all of them."""
    from mapek.bpf.spec import ObjectSpec, object_path

    program = ""
    if given.isdigit():
        given, program = _loaded(int(given))
    path = given if "/" in given or given.endswith(".o") else object_path(given)
    return ObjectSpec.read(path), program


def _loaded(ident: int) -> tuple[str, str]:
    from mapek.bpf.inventory import programs
    from mapek.bpf.spec import ObjectSpec, object_path

    one = next((known for known in programs() if known.id == ident), None)
    if one is None:
        raise ObjectError("find program", ident, "no such program is loaded", "see mapek bpf list")
    if not one.object:
        why = "it is foreign, and the kernel keeps no object to explain"
        raise ObjectError("explain program", f"{ident} ({one.name})", why, "give the file it was loaded from")
    # The kernel keeps fifteen letters of a name.
    names = [name for name in ObjectSpec.read(object_path(one.object)).programs if name[:15] == one.name]
    return one.object, names[0] if len(names) == 1 else ""


def _lines(found: list[Loaded]) -> list[str]:
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    lines = []
    for one in found:
        places = ", ".join(f"{at.kind} {at.place}{', pinned' * at.pinned}" for at in one.attached)
        who = ", ".join(f"{holder.command} ({holder.pid})" for holder in one.holders)
        parts = [
            f"{one.id:<7}{one.name:<16} {one.type:<15}",
            f"{f'mapek {one.object}' if one.object else 'foreign':<24}",
            f"since {_ago(now - one.loaded_ns):<8}",
            places or "attached by no link",
            f"held by {who}" if who else "held by no process that we can see",
        ]
        if one.runs:
            parts.append(f"{one.runs} runs of {one.run_ns / one.runs:.0f} ns")
        lines.append("  ".join(parts))
    return lines


def _ago(ns: int) -> str:
    seconds = ns // 10**9
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
