"""Time: the real timerfd and the virtual clock keep order, survive callbacks that raise, and end."""

import asyncio
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapek.clock import RealClock, TimerFd, VirtualClock

MS = 1_000_000


@pytest.fixture
async def clock():
    clock = RealClock()
    yield clock
    clock.close()


async def until(reached, seconds=5.0):
    async with asyncio.timeout(seconds):
        await reached.wait()


async def test_real_timers_come_in_order_of_due_time_and_never_early(clock):
    seen, done = [], asyncio.Event()
    now = clock.now_ns()
    for delay in (3, 1, 2):
        due = now + delay * MS
        clock.call_at(due, lambda delay=delay, due=due: seen.append((delay, clock.now_ns() >= due)))
    clock.call_at(now + 4 * MS, done.set)
    await until(done)
    assert seen == [(1, True), (2, True), (3, True)]


async def test_equal_due_times_come_in_order_of_arrival(clock):
    seen, done = [], asyncio.Event()
    due = clock.now_ns() + MS
    for name in "abc":
        clock.call_at(due, lambda name=name: seen.append(name))
    clock.call_at(due, done.set)
    await until(done)
    assert seen == ["a", "b", "c"]


async def test_what_is_overdue_comes_at_once(clock):
    done = asyncio.Event()
    clock.call_at(clock.now_ns() - 5 * MS, done.set)
    await until(done, 1.0)
    done.clear()
    clock.call_at(0, done.set)
    await until(done, 1.0)


async def test_a_cancelled_timer_does_not_come_and_keeps_no_other(clock):
    seen, done = [], asyncio.Event()
    now = clock.now_ns()
    first = clock.call_at(now + MS, lambda: seen.append("cancelled"))
    second = clock.call_at(now + 2 * MS, done.set)
    first.cancel()
    first.cancel()
    await until(done)
    second.cancel()
    assert seen == []


async def test_a_callback_may_set_timers_earlier_and_later(clock):
    seen, done = [], asyncio.Event()
    now = clock.now_ns()

    def first():
        seen.append("first")
        clock.call_at(now + 5 * MS, done.set)
        clock.call_at(now + 2 * MS, lambda: seen.append("second"))

    clock.call_at(now + MS, first)
    clock.call_at(now + 3 * MS, lambda: seen.append("third"))
    await until(done)
    assert seen == ["first", "second", "third"]


async def test_a_callback_that_raises_loses_no_timer(clock):
    told, seen, done = [], [], asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    due = clock.now_ns() + MS

    def fail():
        raise ValueError("of this callback")

    clock.call_at(due, fail)
    clock.call_at(due, lambda: seen.append("same moment"))
    clock.call_at(due + MS, done.set)
    await until(done)
    assert [str(error) for error in told] == ["of this callback"]
    assert seen == ["same moment"]


async def test_a_meter_that_raises_loses_no_timer():
    told, done = [], asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    late = []

    def meter(late_ns):
        late.append(late_ns)
        if len(late) == 1:
            raise ValueError("of the meter")

    clock = RealClock(meter)
    try:
        clock.call_at(clock.now_ns() + MS, done.set)
        await until(done)
        done.clear()
        clock.call_at(clock.now_ns() + MS, done.set)
        await until(done)
    finally:
        clock.close()
    assert len(told) == 1
    assert len(late) >= 2
    assert min(late) >= 0


async def test_close_from_a_callback_and_twice(clock):
    done, seen = asyncio.Event(), []
    now = clock.now_ns()

    def close():
        clock.close()
        done.set()

    clock.call_at(now + MS, close)
    clock.call_at(now + MS, lambda: seen.append("after the end"))
    await until(done)
    clock.close()
    assert seen == []


async def test_close_gives_the_descriptor_back():
    before = set(os.listdir("/proc/self/fd"))
    clock = RealClock()
    assert set(os.listdir("/proc/self/fd")) - before
    clock.close()
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_blocking_timerfd_waits_and_counts():
    timer = TimerFd(blocking=True)
    try:
        timer.set(1, MS)
        assert timer.read() >= 1
    finally:
        timer.close()
        timer.close()
    with pytest.raises(OSError, match="timerfd_settime"):
        timer.set(1)


def test_a_timerfd_that_has_not_expired_reads_zero():
    timer = TimerFd()
    try:
        assert timer.read() == 0
    finally:
        timer.close()


def test_virtual_time_stands_still_until_told():
    clock, seen = VirtualClock(5), []
    clock.call_at(7, lambda: seen.append(clock.now_ns()))
    assert (clock.now_ns(), clock.next_ns()) == (5, 7)
    clock.advance_to(6)
    assert seen == []
    clock.advance_to(20)
    assert (seen, clock.now_ns(), clock.next_ns()) == ([7], 20, None)
    clock.advance_to(10)
    assert clock.now_ns() == 20


def test_a_virtual_timer_may_set_others_on_the_way():
    clock, seen = VirtualClock(), []

    def again():
        seen.append(clock.now_ns())
        if len(seen) < 4:
            clock.call_at(clock.now_ns() + 3, again)

    clock.call_at(1, again)
    clock.advance_to(8)
    assert seen == [1, 4, 7]
    clock.advance_to(10)
    assert seen == [1, 4, 7, 10]


def test_virtual_close_forgets():
    clock, seen = VirtualClock(), []
    clock.call_at(1, lambda: seen.append(1))
    clock.close()
    clock.advance_to(5)
    assert (seen, clock.next_ns()) == ([], None)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=30),
    st.lists(st.integers(0, 25), max_size=4),
)
def test_virtual_order_is_that_of_due_time_then_of_arrival(timers, stops):
    clock, seen = VirtualClock(), []
    for number, (due, cancelled) in enumerate(timers):
        timer = clock.call_at(due, lambda due=due, number=number: seen.append((due, number, clock.now_ns())))
        if cancelled:
            timer.cancel()
    for stop in sorted(stops):
        clock.advance_to(stop)
    clock.advance_to(30)
    assert seen == sorted((due, n, due) for n, (due, cancelled) in enumerate(timers) if not cancelled)
