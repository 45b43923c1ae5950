"""The command line of this package: see `python -m tools.vm --help`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from tools.vm import boot, store
from tools.vm.apt import install
from tools.vm.catalogue import CATALOGUE, entries
from tools.vm.problem import Problem
from tools.vm.suite import PACKAGES, Plan, test


def main(argv: list[str] | None = None) -> int:
    """0 when all went well, 1 when a test failed, 2 when a kernel could not be fetched or booted."""
    names = ", ".join(entry.name for entry in CATALOGUE)
    parser = argparse.ArgumentParser(prog="python -m tools.vm", description=f"Kernels: {names}.")
    commands = parser.add_subparsers(dest="command", required=True)
    fetch = commands.add_parser("fetch", help="fetch kernels and ask for newer ones")
    fetch.add_argument("kernels", nargs="*", metavar="KERNEL")
    one = commands.add_parser("run", help="run a command (a line of shell, or words) on one kernel")
    one.add_argument("kernel", metavar="KERNEL")
    one.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")
    suite = commands.add_parser("test", help="run the tests marked `kernel` on each kernel")
    suite.add_argument("kernels", nargs="*", metavar="KERNEL")
    suite.add_argument(
        "--jobs", type=int, default=0, help="guests at once (default: one more than CPUs here)"
    )
    suite.add_argument("--reports", type=Path, default=Path("build/kernels"))
    suite.add_argument("--within", type=float, default=1200, metavar="S", help="for all guests together")
    suite.add_argument("--select", default="", help="a pytest -k expression, to run fewer")
    for parsers in (one, suite):
        parsers.add_argument(
            "--cpus", type=int, default=0, help="of each guest (default: 2, or what is here)"
        )
        parsers.add_argument("--memory", type=int, default=2048, metavar="MIB")
        parsers.add_argument("--timeout", type=float, default=1200, metavar="S")
    options = parser.parse_args(argv)
    # So that the guests end by the same road as with Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        chosen = entries([options.kernel] if options.command == "run" else options.kernels)
        install(PACKAGES)
        here = len(os.sched_getaffinity(0))
        if options.command == "fetch":
            for entry in chosen:
                print(f"{entry.name}: {store.kernel(entry, refresh=True).release}")
            return 0
        if options.command == "run":
            (entry,) = chosen
            guest = boot.Guest(
                store.kernel(entry),
                entry.hides_btf,
                options.cpus or min(here, 2),
                options.memory,
                options.timeout,
            )
            return _run(guest, options.words)
        jobs = options.jobs or here + 1
        plan = Plan(
            tuple(chosen), options.reports, jobs, options.cpus or min(here, 2),
            options.memory, options.timeout, options.select, options.within,
        )  # fmt: skip
        return test(plan)
    except Problem as problem:
        print(f"tools.vm: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(guest: boot.Guest, words: list[str]) -> int:
    if not words:
        raise Problem(f"running on {guest.kernel.release}: no command was given")
    outcome = boot.run(
        guest,
        words[1:] if words[0] == "--" else words,
        out=lambda data: os.write(1, data),
        err=lambda data: os.write(2, data),
    )
    if outcome.status is None:
        raise Problem(f"running on {guest.kernel.release}: {outcome.why}")
    return outcome.status


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())
