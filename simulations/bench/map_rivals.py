"""Whom our map reads are measured against: a small C program with libbpf's batches, and `bpftool -j`.

The C program is compiled when the bench runs; without a compiler, libbpf's headers or bpftool the row says
so, and nothing else suffers.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

from mapek.errors import FeatureError, PermanentError
from mapek.simulations.process import end

SOURCE = Path(__file__).with_name("map_reads.c")


async def compile_c(folder: Path) -> Path:
    """The program, built in `folder`. Raises FeatureError naming what is missing."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise FeatureError("compile", SOURCE.name, "there is no C compiler", "apt-get install gcc libbpf-dev")
    program = folder / "map_reads"
    command = (compiler, "-O2", "-o", str(program), str(SOURCE), "-lbpf")
    process = await asyncio.create_subprocess_exec(*command, stdout=DEVNULL, stderr=PIPE)
    _, said = await process.communicate()
    if process.returncode:
        first = (said.decode(errors="replace").splitlines() or ["the compiler failed"])[0]
        raise FeatureError("compile", SOURCE.name, first.strip(), "apt-get install gcc libbpf-dev")
    return program


class CReader:
    """The C program on one map; an async context manager."""

    def __init__(self, program: Path, map_id: int) -> None:
        self._command = (str(program), str(map_id))
        self._process: Process | None = None

    async def __aenter__(self) -> CReader:
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            await end(self._process)

    async def read(self, times: int) -> list[int]:
        """Nanoseconds of each of `times` reads in a row. Raises PermanentError when it ended itself."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"%d\n" % times)
        line = await process.stdout.readline()
        if not line.strip():
            assert process.stderr is not None
            said = (await process.stderr.read()).decode(errors="replace").strip()
            raise PermanentError("read map", " ".join(self._command), said or "it ended", "run it by hand")
        return [int(word) for word in line.split()]


async def bpftool(map_id: int) -> int:
    """Nanoseconds that `bpftool -j map dump` and parsing its output take.

    Raises FeatureError when it is not installed, PermanentError when it fails.
    """
    found = shutil.which("bpftool", path="/usr/sbin:/usr/local/sbin:/usr/bin:/sbin")
    if found is None:
        raise FeatureError("read map", map_id, "bpftool is not installed", "apt-get install bpftool")
    start = time.perf_counter_ns()
    process = await asyncio.create_subprocess_exec(
        found, "-j", "map", "dump", "id", str(map_id), stdout=PIPE, stderr=DEVNULL
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise PermanentError("read map", map_id, "bpftool failed", "run bpftool map dump by hand")
    json.loads(output)
    return time.perf_counter_ns() - start
