"""Time, real and virtual; nothing else reads a clock or sleeps (kernel stamps arrive as data).

The real clock keeps one timerfd for all of its timers: asyncio's own timers are half a millisecond late,
a timerfd 20 us. Kernels always have timerfd (2.6.25), Python 3.11 has no wrapper, hence ctypes.
"""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import os
import sys
import time
from collections.abc import Callable
from typing import Protocol

Callback = Callable[[], None]

_TFD_NONBLOCK, _TFD_CLOEXEC, _TFD_TIMER_ABSTIME = os.O_NONBLOCK, os.O_CLOEXEC, 1


def wall_ns() -> int:
    """CLOCK_REALTIME in nanoseconds: for what must grow across restarts, never for durations."""
    return time.time_ns()


def asleep_ns() -> int:
    """How long the machine was suspended since it booted: CLOCK_MONOTONIC, and with it every timer, stood still then.

    From two clocks, read one after the other: good to microseconds, and to milliseconds on a busy machine.
    """
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()


class Timer:
    """A callback that is due at `due_ns`; `cancel` is cheap and may come at any time."""

    __slots__ = ("callback", "due_ns")

    def __init__(self, due_ns: int, callback: Callback) -> None:
        self.due_ns = due_ns
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        self.callback = None


class Clock(Protocol):
    """What the loop needs of time."""

    def now_ns(self) -> int:
        """CLOCK_MONOTONIC in nanoseconds, or what stands for it in a replay."""
        ...

    def call_at(self, due_ns: int, callback: Callback) -> Timer:
        """Run `callback` at `due_ns`, or as soon after as possible."""
        ...

    def close(self) -> None:
        """Forget all timers."""
        ...


class _Timers:
    """A heap of timers in order of due time, and of arrival where that is equal."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Timer]] = []
        self._count = 0

    def push(self, timer: Timer) -> None:
        self._count += 1
        heapq.heappush(self._heap, (timer.due_ns, self._count, timer))

    def next_ns(self) -> int | None:
        while self._heap and self._heap[0][2].callback is None:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now_ns: int) -> Callback | None:
        due = self.next_ns()
        if due is None or due > now_ns:
            return None
        timer = heapq.heappop(self._heap)[2]
        callback, timer.callback = timer.callback, None
        return callback

    def clear(self) -> None:
        self._heap.clear()


class VirtualClock:
    """Time that passes only when `advance_to` says so; the same calls in the same order, always."""

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns
        self._timers = _Timers()

    def now_ns(self) -> int:
        return self._now_ns

    def call_at(self, due_ns: int, callback: Callback) -> Timer:
        timer = Timer(due_ns, callback)
        self._timers.push(timer)
        return timer

    def next_ns(self) -> int | None:
        """When the next timer is due, or None."""
        return self._timers.next_ns()

    def advance_to(self, now_ns: int) -> None:
        """Let time pass up to `now_ns` and run what comes due on the way, each at its own moment."""
        while (due := self._timers.next_ns()) is not None and due <= now_ns:
            self._now_ns = max(self._now_ns, due)
            if callback := self._timers.pop_due(due):
                callback()
        self._now_ns = max(self._now_ns, now_ns)

    def close(self) -> None:
        self._timers.clear()


class _Timespec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_int64), ("nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.timerfd_create.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.timerfd_create.restype = ctypes.c_int
_libc.timerfd_settime.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.POINTER(_Itimerspec), ctypes.c_void_p)
_libc.timerfd_settime.restype = ctypes.c_int


class TimerFd:
    """A timerfd of CLOCK_MONOTONIC, readable when it expires. Raises OSError when the kernel has no more."""

    def __init__(self, *, blocking: bool = False) -> None:
        flags = _TFD_CLOEXEC | (0 if blocking else _TFD_NONBLOCK)
        self.fd = _libc.timerfd_create(time.CLOCK_MONOTONIC, flags)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        spec = _Itimerspec()
        self._value, self._interval, self._spec = spec.value, spec.interval, ctypes.byref(spec)

    def set(self, due_ns: int, interval_ns: int = 0) -> None:
        """Expire at `due_ns` (0 disarms) and then every `interval_ns` (0: once)."""
        self._value.sec, self._value.nsec = divmod(due_ns, 1_000_000_000)
        self._interval.sec, self._interval.nsec = divmod(interval_ns, 1_000_000_000)
        if _libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, self._spec, None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def read(self) -> int:
        """How often it expired since the last read; 0 when it did not (non-blocking only)."""
        try:
            return int.from_bytes(os.read(self.fd, 8), sys.byteorder)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class RealClock:
    """CLOCK_MONOTONIC on one timerfd, read by the running event loop.

    Of several timers that are due, the loop runs one at a time: between two of them it takes what the kernel has to
    say, which must not wait for a second's worth of readings.

    Args:
        on_late: called with the nanoseconds by which each timer ran late, for the loop's own lateness meter; where
            several are due, with the first one's.
    """

    def __init__(self, on_late: Callable[[int], None] | None = None) -> None:
        self._timers = _Timers()
        self._loop = asyncio.get_running_loop()
        self._timerfd = TimerFd()
        self._armed_ns = 0
        self._on_late = on_late
        self._turning = False
        """Timers are being worked off, and the last turn arms for the next."""
        self._loop.add_reader(self._timerfd.fd, self._expire)

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def call_at(self, due_ns: int, callback: Callback) -> Timer:
        timer = Timer(due_ns, callback)
        self._timers.push(timer)
        if not self._turning and (not self._armed_ns or due_ns < self._armed_ns):
            self._arm(due_ns)
        return timer

    def _arm(self, due_ns: int) -> None:
        self._armed_ns = max(due_ns, 1)
        self._timerfd.set(self._armed_ns)

    def _expire(self) -> None:
        self._timerfd.read()
        armed, self._armed_ns, self._turning = self._armed_ns, 0, True
        try:
            if self._on_late and armed:
                self._on_late(time.monotonic_ns() - armed)
        finally:
            self._turn()

    def _turn(self) -> None:
        try:
            if callback := self._timers.pop_due(time.monotonic_ns()):
                callback()
        finally:
            due = self._timers.next_ns()
            if due is not None and due <= time.monotonic_ns():
                # twice: what is found ready in between runs before
                self._loop.call_soon(self._loop.call_soon, self._turn)
            else:
                self._turning = False
                if due is not None and self._timerfd.fd >= 0:
                    self._arm(due)

    def close(self) -> None:
        self._timers.clear()
        if self._timerfd.fd >= 0:
            self._loop.remove_reader(self._timerfd.fd)
            self._timerfd.close()
