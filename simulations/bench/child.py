"""Parts of the bench that run in a process of their own and answer in lines of JSON, here or in a node.

A process of its own is what has its CPU time counted apart, starts with nothing imported, or may take a core.
"""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from typing import Final

from mapek.errors import PermanentError, TemporaryError
from mapek.simulations.netns import Namespace
from mapek.simulations.process import child_environment, end

GIVE_UP_S: Final = 600.0
Record = dict[str, object]


async def start(
    module: str, *arguments: object, inside: Namespace | None = None, pass_fds: Sequence[int] = ()
) -> Process:
    """Start `mapek.simulations.bench.MODULE` with stdout and stderr piped, in the namespace `inside` if given."""
    command = [sys.executable, "-m", f"mapek.simulations.bench.{module}", *map(str, arguments)]
    if inside is not None:
        return await inside.start(command)
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        env=child_environment(),
        pass_fds=tuple(pass_fds),
        limit=1 << 24,
    )


async def records(process: Process, what: str, *, give_up_s: float = GIVE_UP_S) -> list[Record]:
    """Wait until it has ended; what it said, a record for each line.

    Raises PermanentError with its last words when it failed or said nothing, TemporaryError when it takes longer
    than `give_up_s` seconds.
    """
    try:
        async with asyncio.timeout(give_up_s):
            output, said = await process.communicate()
    except TimeoutError as error:
        why = f"not done after {give_up_s:g} s"
        raise TemporaryError("measure", what, why, "leave it the cores") from error
    finally:
        await end(process)
    if process.returncode or not output:
        last = said.decode(errors="replace").strip().splitlines()[-1:] or ["it ended without a word"]
        raise PermanentError("measure", what, last[0], "run it by hand")
    return [json.loads(line) for line in output.splitlines()]


async def measured(
    module: str,
    *arguments: object,
    what: str,
    inside: Namespace | None = None,
    pass_fds: Sequence[int] = (),
    give_up_s: float = GIVE_UP_S,
) -> list[Record]:
    """`start` and `records` in one."""
    process = await start(module, *arguments, inside=inside, pass_fds=pass_fds)
    return await records(process, what, give_up_s=give_up_s)


def number(record: Record, name: str) -> float:
    """A number of a record. Raises PermanentError when there is none."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PermanentError("read", f"{name} of a bench part", f"it is {value!r}", "run it by hand")
    return float(value)
