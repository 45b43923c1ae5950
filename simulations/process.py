"""Start and end the lab's own processes, each marked so that remains can be found.

The mark is one environment variable, `MAPEK_LAB=<pid>:<start time of that pid>`, inherited by all that the
child starts. A mark whose owner no longer lives is a remain. Pids are reused, hence the start time.
Children die with the *thread* that runs the event loop (PR_SET_PDEATHSIG), so a lab belongs on a lasting one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path

import mapek
from mapek.errors import PermanentError, TemporaryError

MARK = "MAPEK_LAB"


def start_time(pid: int) -> int:
    """Clock ticks since boot at which `pid` started; raises OSError when it is gone."""
    text = Path(f"/proc/{pid}/stat").read_text()
    # The comm in parentheses may hold blanks and parentheses itself.
    return int(text.rpartition(")")[2].split()[19])


def mark() -> str:
    """This process's mark."""
    return f"{os.getpid()}:{start_time(os.getpid())}"


def child_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment for children: ours, the mark, and a path on which they find this very mapek."""
    environment = dict(os.environ)
    environment[MARK] = mark()
    assert mapek.__file__ is not None
    root = str(Path(mapek.__file__).parent.parent)
    rest = environment.get("PYTHONPATH", "")
    environment["PYTHONPATH"] = f"{root}{os.pathsep}{rest}" if rest else root
    environment.update(extra or {})
    return environment


def child_command(module: str, *arguments: object) -> list[str]:
    """The command line of one of the programs in `mapek.simulations.child`."""
    return [sys.executable, "-m", f"mapek.simulations.child.{module}", *map(str, arguments)]


async def start_child(module: str, *arguments: object, pass_fds: Sequence[int] = ()) -> Process:
    """Start a child program with pipes on stdin and stdout and wait for its line "ready".

    Raises:
        PermanentError: the child ended before it was ready; the message carries what it said.
        TemporaryError: it did not even get the CPU to start.
    """
    process = await asyncio.create_subprocess_exec(
        *child_command(module, *arguments),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env=child_environment(),
        pass_fds=tuple(pass_fds),
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            line = await process.stdout.readline()
    except TimeoutError as error:
        await end(process)
        why = "it did not get to run within 20 s"
        raise TemporaryError("start", f"lab process {module}", why, "look for what hogs the CPUs") from error
    except BaseException:
        await end(process)
        raise
    if line.strip() != b"ready":
        assert process.stderr is not None
        said = (await process.stderr.read()).decode(errors="replace").strip().splitlines()
        await end(process)
        why = said[-1] if said else "it ended without a word"
        raise PermanentError("start", f"lab process {module}", why, "run as root on Linux >= 5.10")
    return process


async def end(process: Process, *, grace: float = 0.0, keep_pipes: bool = False) -> None:
    """End a process: SIGTERM and `grace` seconds, if any, then SIGKILL; returns when it is reaped.

    With `keep_pipes` what it wrote can still be read; call `release` afterwards.
    """
    with contextlib.suppress(ProcessLookupError):
        if process.returncode is None and grace > 0:
            # not send_signal: it polls, and would reap the child before asyncio does
            os.kill(process.pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await process.wait()
        if process.returncode is None:
            process.kill()
    await process.wait()
    if not keep_pipes:
        release(process)


def release(process: Process) -> None:
    """Close the pipes of an ended process now; left alone they warn when the loop has closed."""
    transport = getattr(process, "_transport", None)
    if transport is not None:
        transport.close()
