"""Lines that never make the event loop wait, over real pipes."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from mapek.cli.output import Lines


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


async def _all(fd: int) -> bytes:
    data = b""
    while piece := await asyncio.to_thread(os.read, fd, 1 << 20):
        data += piece
    return data


async def test_lines_in_order(pipe: tuple[int, int]) -> None:
    lines = Lines(pipe[1], lambda count: f"lost {count}")
    for number in range(100):
        lines.put(partial(str, number))
    lines.close()
    os.close(pipe[1])
    assert await _all(pipe[0]) == b"".join(b"%d\n" % number for number in range(100))


async def test_they_appear_without_being_closed(pipe: tuple[int, int]) -> None:
    lines = Lines(pipe[1], lambda count: f"lost {count}")
    lines.put(lambda: "ready")
    assert await asyncio.to_thread(os.read, pipe[0], 100) == b"ready\n"
    lines.close()


async def test_a_reader_that_has_gone_is_noticed_and_does_not_hurt(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    lines = Lines(pipe[1], lambda count: f"lost {count}")
    lines.put(lambda: "x")
    lines.close()
    assert lines.gone
    lines.put(lambda: "y")
    lines.close()


async def test_a_reader_that_stops_costs_lines_and_is_told_how_many(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mapek.cli.output._PENDING", 10)
    lines = Lines(pipe[1], lambda count: f"lost {count}")
    for number in range(25):  # no turn of the event loop in between: none of them is made
        lines.put(partial("line {}".format, number))
    lines.close()
    os.close(pipe[1])
    assert await _all(pipe[0]) == b"lost 15\n" + b"".join(b"line %d\n" % number for number in range(10))


async def test_a_full_queue_loses_batches_and_says_so(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mapek.cli.output._QUEUE", 1)
    monkeypatch.setattr("mapek.cli.output._DELAY_S", 0.0)
    lines = Lines(pipe[1], lambda count: f"lost {count}")
    read_pieces: list[bytes] = []

    def read() -> None:
        while piece := os.read(pipe[0], 1 << 20):
            read_pieces.append(piece)

    long = "x" * 100_000  # more than a pipe holds, so the writer waits in the kernel for a reader
    for _ in range(50):
        lines.put(lambda: long)
        for _ in range(3):
            await asyncio.sleep(0)
    reading = threading.Thread(target=read)
    reading.start()
    lines.close()
    os.close(pipe[1])
    reading.join(5)
    got = b"".join(read_pieces).split(b"\n")
    lost = sum(int(line.split()[1]) for line in got if line.startswith(b"lost "))
    assert got.count(long.encode()) + lost == 50
    assert lost > 0
