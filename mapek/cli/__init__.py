"""The command line: `mapek run | release | demo | replay | lab | bench | bpf | doctor | version`.

Each command is a small file with `add` (its arguments) and a function that runs it; what is heavy is imported
in there. Exit codes: 0, 1 for a failure, 2 for usage and configuration, 130 for Ctrl-C. An error that was to
be expected is one line on stderr, never a traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from mapek.cli import bench, bpf, demo, doctor, lab, release, replay, run, version
from mapek.cli.telling import say as say
from mapek.errors import ConfigError, MapekError

Command = Callable[[argparse.Namespace], int]


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    top = argparse.ArgumentParser(
        prog="mapek", description="Heals the links of a mesh node, and measures it."
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (run, release, demo, replay, lab, bench, bpf, doctor, version):
        module.add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, and raises SystemExit(2) for a wrong usage."""
    arguments = parser().parse_args(argv)
    command: Command = arguments.run
    try:
        code = command(arguments)
        sys.stdout.flush()
    except MapekError as error:
        say(error)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Who read our output has gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code
