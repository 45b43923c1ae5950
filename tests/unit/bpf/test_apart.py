"""A call in a thread of its own: its result, its failure, its thread."""

import asyncio
import threading

import pytest

from mapek.bpf.apart import apart
from mapek.bpf.worker import in_thread, in_thread_with, under_way


def test_the_result_comes_from_a_thread_of_that_name_which_is_gone_then():
    thread = apart("one", threading.current_thread)
    assert thread.name == "one"
    assert not thread.is_alive()


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_what_it_raises_comes_through(kind):
    def fail():
        raise kind("why")

    with pytest.raises(kind, match="why"):
        apart("one", fail)


class Fake:
    """What `in_thread_with` asks of a program."""

    def __init__(self, copies):
        self.copies, self.open = copies, True

    def copy(self):
        self.copies.append(Fake(self.copies))
        return self.copies[-1]

    def close(self):
        self.open = False


@pytest.mark.parametrize("fails", [False, True])
async def test_a_program_in_use_by_a_thread_is_the_threads_own(fails):
    program, began, go = Fake([]), asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    seen = []

    def call(mine):
        loop.call_soon_threadsafe(began.set)
        go.wait(10)
        seen.append((mine is program, mine.open))
        if fails:
            raise ValueError("why")

    task = asyncio.ensure_future(in_thread_with(program, call))
    await began.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    program.close()
    go.set()
    while under_way:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.001)
    assert seen == [(False, True)]
    assert [one.open for one in program.copies] == [False]


async def test_what_a_cancelled_call_gave_is_undone_by_its_own_thread():
    """The loop may end before it comes to it."""
    began, go, undone = asyncio.Event(), threading.Event(), threading.Event()
    loop, seen = asyncio.get_running_loop(), []

    def call():
        loop.call_soon_threadsafe(began.set)
        go.wait(10)
        seen.append(threading.get_ident())
        return 7

    def discard(result):
        seen.extend([result, threading.get_ident()])
        undone.set()

    task = asyncio.ensure_future(in_thread(call, discard))
    await began.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    go.set()
    assert undone.wait(10), "it waits for the loop, which stands still here"
    assert seen == [seen[0], 7, seen[0]]
    while under_way:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.001)
