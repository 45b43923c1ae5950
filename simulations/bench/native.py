"""The bench's own small C programs: compiled when a section needs them, then asked line by line (`gauge`).

Without a compiler the row says so, and nothing else suffers.
"""

from __future__ import annotations

import asyncio
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

from mapek.errors import FeatureError


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
