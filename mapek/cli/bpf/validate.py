"""`mapek bpf validate`: whether an object may be loaded."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from mapek.cli.bpf.subject import subject

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from mapek.bpf.validate import Report


def add(parts: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
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
        "--key",
        metavar="FILE.pub",
        action="append",
        default=[],
        help="an Ed25519 public key whose owner must have signed it; more than one: any of them",
    )
    judging.add_argument(
        "--signature", metavar="FILE.sig", help="the detached signature (default: OBJECT.sig)"
    )
    judging.add_argument(
        "--btf",
        metavar="FILE",
        help="BTF of the kernel it is for (default: of this kernel, if readable; 'none': do not look)",
    )
    judging.add_argument("--json", action="store_true", help="as one JSON object")
    judging.set_defaults(run=_validate)


def _validate(arguments: argparse.Namespace) -> int:
    from mapek.bpf import rules as rules_module
    from mapek.bpf import words
    from mapek.bpf.relocate import unresolved
    from mapek.bpf.signatures import read_key
    from mapek.bpf.validate import validate
    from mapek.errors import ConfigError

    rules = rules_module.read(arguments.rules) if arguments.rules else rules_module.Rules()
    if arguments.sha256:
        rules = replace(rules, sha256=rules_module.read_digests(arguments.sha256))
    if arguments.key:
        rules = replace(rules, keys=tuple(read_key(one) for one in arguments.key))
    if arguments.signature and not rules.keys:
        do = "name one with --key, or keys in the file of --rules"
        raise ConfigError("check signature", arguments.signature, "no key is given", do)
    report = validate(subject(arguments.object), rules, arguments.signature)
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
