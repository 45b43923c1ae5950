"""A process of its own that measures what a line asks for: each line on stdin is a request, each line on stdout its
answer in whole numbers.

What is measured so has a core to itself if it takes one, and none of our event loop's pauses are in its numbers.
"""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence

from mapek.errors import PermanentError
from mapek.simulations.netns import Namespace
from mapek.simulations.process import child_environment, end


class Gauge:
    """One such process, running; an async context manager.

    Args:
        command: the program and its arguments.
        name: what errors call it, the command by default.
        inside: the namespace that it runs in, ours by default.
        pass_fds: descriptors that it inherits, for one that runs in ours.
    """

    def __init__(
        self,
        command: Sequence[object],
        *,
        name: str = "",
        inside: Namespace | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._command = tuple(map(str, command))
        self._name = name or " ".join(self._command)
        self._inside, self._pass_fds = inside, tuple(pass_fds)
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    async def __aenter__(self) -> Gauge:
        if self._inside is not None:
            self._process = await self._inside.start(self._command, stdin=PIPE)
        else:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                env=child_environment(),
                pass_fds=self._pass_fds,
                limit=1 << 20,
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            await end(self._process)

    async def ask(self, *request: object) -> list[int]:
        """The numbers of its answer. Raises PermanentError with its last words when it ended itself."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(" ".join(map(str, request)).encode() + b"\n")
        line = await process.stdout.readline()
        if not line.strip():
            assert process.stderr is not None
            said = (await process.stderr.read()).decode(errors="replace").strip()
            last = said.splitlines()[-1] if said else "it ended"
            raise PermanentError("measure", self._name, last, "run it by hand" if not said else "")
        return [int(word) for word in line.split()]
