"""The bench's own small C programs: compiled when a section needs them, then driven line by line.

Each line on stdin is a request, each line on stdout its answer in whole numbers. Without a compiler the row
says so, and nothing else suffers.
"""

from __future__ import annotations

import asyncio
import shutil
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

from mapek.errors import FeatureError, PermanentError
from mapek.simulations.netns import Namespace
from mapek.simulations.process import child_environment, end


async def compile_c(name: str, folder: Path, *libraries: str) -> Path:
    """`name`.c of this package, built in `folder`. Raises FeatureError naming what is missing."""
    source, needed = (
        Path(__file__).with_name(f"{name}.c"),
        " ".join(("gcc", *(f"{x}-dev" for x in libraries))),
    )
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise FeatureError("compile", source.name, "there is no C compiler", f"apt-get install {needed}")
    program = folder / name
    flags = [f"-l{library.removeprefix('lib')}" for library in libraries]
    process = await asyncio.create_subprocess_exec(
        *(compiler, "-O2", "-o", str(program), str(source), *flags), stdout=DEVNULL, stderr=PIPE
    )
    _, said = await process.communicate()
    if process.returncode:
        first = (said.decode(errors="replace").splitlines() or ["the compiler failed"])[0]
        raise FeatureError("compile", source.name, first.strip(), f"apt-get install {needed}")
    return program


class Native:
    """One of the programs, running; an async context manager."""

    def __init__(self, program: Path, *arguments: object, inside: Namespace | None = None) -> None:
        self._command = (str(program), *map(str, arguments))
        self._inside = inside
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    async def __aenter__(self) -> Native:
        if self._inside is not None:
            self._process = await self._inside.start(self._command, stdin=PIPE)
        else:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=child_environment(), limit=1 << 20
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
            raise PermanentError("measure", " ".join(self._command), said or "it ended", "run it by hand")
        return [int(word) for word in line.split()]
