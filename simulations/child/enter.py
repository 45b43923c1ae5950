"""Start a command inside a node: `enter PID [fifo] -- COMMAND…`; it dies with the lab, whatever happens.

The command replaces this process, so its pid is the one that the lab got when it started us.
"""

from __future__ import annotations

import os
import signal
import sys

from mapek.simulations import libc


def main(arguments: list[str]) -> None:
    """Enter the namespaces of process `arguments[0]` and exec what follows `--`."""
    split = arguments.index("--")
    holder, options, command = int(arguments[0]), arguments[1:split], arguments[split + 1 :]
    parent = os.getppid()
    libc.die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("enter: the lab ended meanwhile")
    libc.enter(holder)
    if options:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(int(options[0])))
    os.execvp(command[0], command)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.exit(f"enter: {error}")
