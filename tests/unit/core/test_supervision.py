"""Calls into plugins: what they raise is counted, coroutines behave as if awaited directly."""

import asyncio
import logging

import pytest

from mapek.clock import VirtualClock
from mapek.errors import DegradedError
from mapek.supervision import BLOCKING_NS, Supervision
from mapek.tally import Tally


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture
def supervision(clock):
    return Supervision(clock, Tally())


def test_the_same_message_is_logged_once_until_it_changes(supervision, caplog):
    def fail(message):
        raise DegradedError("do", "it", message)

    for message in ("one", "one", "two", "two", "one"):
        assert supervision.call("p", "default", fail, message) == "default"
    assert [record.getMessage() for record in caplog.records] == [
        "p: do it: one",
        "p: do it: two",
        "p: do it: one",
    ]
    assert all(record.exc_info is None for record in caplog.records)
    supervision.recovered("p")
    supervision.call("p", None, fail, "one")
    assert len(caplog.records) == 4
    assert supervision.failures == {"p": "do it: one"}


def test_an_error_that_nobody_expected_is_logged_with_its_traceback(supervision, caplog):
    supervision.call("p", None, lambda: 1 / 0)
    assert caplog.records[0].exc_info
    assert supervision.failures == {"p": "ZeroDivisionError: division by zero"}


def test_timed_lets_errors_through(supervision):
    with pytest.raises(ZeroDivisionError):
        supervision.timed("p", lambda: 1 / 0)
    assert supervision.failures == {}


@pytest.mark.parametrize(("took", "blocked"), [(BLOCKING_NS, 0), (BLOCKING_NS + 1, 1)])
def test_blocking_is_what_takes_longer_than_the_limit(supervision, clock, caplog, took, blocked):
    caplog.set_level(logging.WARNING)
    supervision.call("p", None, lambda: clock.advance_to(clock.now_ns() + took))
    assert supervision._tally.total("blocked_loop") == blocked
    assert len(caplog.records) == blocked


async def test_each_step_of_a_coroutine_is_timed_and_the_waiting_is_not(supervision, clock):
    async def work():
        clock.advance_to(clock.now_ns() + 3_000_000)
        await asyncio.sleep(0)
        clock.advance_to(clock.now_ns() + 6_000_000)
        await asyncio.sleep(0)
        clock.advance_to(clock.now_ns() + 3_000_000)
        return "done"

    async def elsewhere():
        clock.advance_to(clock.now_ns() + 50_000_000)

    other = asyncio.ensure_future(elsewhere())
    assert await supervision.run("p", work()) == "done"
    await other
    assert supervision._tally.total("blocked_loop") == 1
    assert supervision._tally.histograms["blocked_loop_seconds"][(("plugin", "p"),)].sum == pytest.approx(
        0.006
    )


async def test_exceptions_timeouts_and_cancellation_reach_the_coroutine(supervision):
    told = []

    async def waits():
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            told.append("cancelled")
            raise

    task = asyncio.create_task(supervision.run("p", waits()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async def limited():
        async with asyncio.timeout(0):
            await waits()

    with pytest.raises(TimeoutError):
        await supervision.run("p", limited())
    assert told == ["cancelled", "cancelled"]

    async def catches():
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_exception, ValueError("of the future"))
        try:
            await future
        except ValueError as error:
            return str(error)

    assert await supervision.run("p", catches()) == "of the future"

    async def raises():
        await asyncio.sleep(0)
        raise KeyError("k")

    with pytest.raises(KeyError):
        await supervision.run("p", raises())


async def test_a_future_may_be_awaited_too(supervision):
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, 5)
    assert await supervision.run("p", future) == 5
