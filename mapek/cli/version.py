"""`mapek version`: of mapek and of what it stands on, for bug reports."""

from __future__ import annotations

import argparse
import json
import os
import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    command = commands.add_parser("version", help="versions of mapek and of what it stands on")
    command.add_argument("--json", action="store_true", help="as one JSON object")
    command.set_defaults(run=_version)


def _version(arguments: argparse.Namespace) -> int:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    from mapek import __version__

    found = {"mapek": __version__, "python": platform.python_version(), "kernel": os.uname().release}
    for name in ("numpy", "pyroute2", "prometheus-client"):
        try:
            found[name] = installed(name)
        except PackageNotFoundError:
            found[name] = "missing"
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, version in found.items():
            print(f"{name} {version}")
    return 0
