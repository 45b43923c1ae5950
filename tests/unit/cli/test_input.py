"""Lines come in from pipes, files, terminals and nothing, and the descriptor stays as it was."""

from __future__ import annotations

import asyncio
import os
import pty

import pytest

from mapek.cli.input import LinesIn


async def _all(fd: int) -> list[str]:
    read, found = LinesIn(fd), []
    while (line := await asyncio.wait_for(read.lines.get(), 10)) is not None:
        found.append(line)
    read.close()
    return found


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"a\nb c\n", ["a", "b c"]),
        (b"a\n\nlast", ["a", "", "last"]),
        (b"\xff\n", ["\ufffd"]),
        (b"x" * 5000 + b"\nafter\n", ["x" * 5000, "after"]),
        (b"ok\n" + b"x" * 5000, ["ok", "x" * 4096]),
    ],
)
@pytest.mark.parametrize("kind", ["pipe", "file"])
async def test_lines(data, lines, kind, tmp_path):
    if kind == "pipe":
        fd, write = os.pipe()
        os.write(write, data)
        os.close(write)
    else:
        (tmp_path / "script").write_bytes(data)
        fd = os.open(tmp_path / "script", os.O_RDONLY)
    try:
        assert await _all(fd) == lines
    finally:
        os.close(fd)


async def test_nothing():
    fd = os.open(os.devnull, os.O_RDONLY)
    try:
        assert await _all(fd) == []
    finally:
        os.close(fd)


async def test_a_terminal_stays_blocking():
    ours, theirs = pty.openpty()
    try:
        read = LinesIn(theirs)
        os.write(ours, b"status\n")
        assert await asyncio.wait_for(read.lines.get(), 10) == "status"
        assert os.get_blocking(theirs)
        read.close()
        read.close()
    finally:
        os.close(ours)
        os.close(theirs)


async def test_a_line_comes_in_parts():
    fd, write = os.pipe()
    try:
        read = LinesIn(fd)
        os.write(write, b"sta")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read.lines.get(), 0.02)
        os.write(write, b"tus\n")
        assert await asyncio.wait_for(read.lines.get(), 10) == "status"
        read.close()
    finally:
        os.close(fd)
        os.close(write)


async def test_a_closed_descriptor_has_no_lines():
    fd, write = os.pipe()
    os.close(fd)
    os.close(write)
    assert await _all(fd) == []
