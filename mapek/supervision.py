"""Watches plugins: what they raise is counted against them, and whoever blocks the event loop is named.

Every call into a plugin, and every step of its coroutines, is timed; one clock reading a call (50 ns) is
what it costs. A plugin's own reader callbacks and tasks (`together` makes some) are seen through the loop's
lateness only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator, Iterable
from typing import ParamSpec, TypeVar

from mapek.clock import Clock
from mapek.errors import MapekError
from mapek.tally import Tally

log = logging.getLogger("mapek")

P = ParamSpec("P")
T = TypeVar("T")

BLOCKING_NS = 5_000_000
"""A call that keeps the event loop longer than this is reported."""


class Supervision:
    """Calls plugins on behalf of the loop.

    Args:
        clock: to time the calls; in virtual time nothing is ever slow.
        tally: counts `plugin_failures` and `blocked_loop` by plugin.
    """

    def __init__(self, clock: Clock, tally: Tally) -> None:
        self._clock = clock
        self._tally = tally
        self.failures: dict[str, str] = {}

    def call(self, plugin: str, default: T, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`function(*args)`; what it raises is noted against `plugin`, and `default` returned."""
        try:
            return self.timed(plugin, function, *args, **kwargs)
        except Exception as error:
            self.failed(plugin, error)
            return default

    def timed(self, plugin: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`function(*args)`; what it raises goes to the caller."""
        began = self._clock.now_ns()
        try:
            return function(*args, **kwargs)
        finally:
            self._measure(plugin, began)

    async def run(self, plugin: str, work: Awaitable[T]) -> T:
        """Await `work`, timing each of its steps."""
        return await _Timed(work, lambda began: self._measure(plugin, began), self._clock)

    def failed(self, plugin: str, error: BaseException) -> None:
        """Note that `plugin` raised; a message is logged once, until it changes."""
        self._tally.count("plugin_failures", {"plugin": plugin})
        message = str(error) if isinstance(error, MapekError) else f"{type(error).__name__}: {error}"
        if self.failures.get(plugin) != message:
            self.failures[plugin] = message
            expected = isinstance(error, MapekError)
            log.warning("%s: %s", plugin, message, exc_info=None if expected else error)

    def recovered(self, plugin: str) -> None:
        """Forget the last failure of `plugin`."""
        self.failures.pop(plugin, None)

    def _measure(self, plugin: str, began_ns: int) -> None:
        took = self._clock.now_ns() - began_ns
        if took > BLOCKING_NS:
            self._tally.count("blocked_loop", {"plugin": plugin})
            self._tally.observe("blocked_loop_seconds", {"plugin": plugin}, took / 1e9)
            log.warning("%s blocked the event loop for %.1f ms", plugin, took / 1e6)


class _Timed(Awaitable[T]):
    """An awaitable that reports how long each step of another took."""

    def __init__(self, work: Awaitable[T], measure: Callable[[int], None], clock: Clock) -> None:
        self._work, self._measure, self._clock = work, measure, clock

    def __await__(self) -> Generator[object, object, T]:
        steps = self._work.__await__()
        sent: object = None
        thrown: BaseException | None = None
        while True:
            began = self._clock.now_ns()
            try:
                waits_for = steps.throw(thrown) if thrown is not None else steps.send(sent)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            finally:
                self._measure(began)
            sent, thrown = None, None
            try:
                sent = yield waits_for
            except (Exception, asyncio.CancelledError) as error:
                thrown = error


async def together(works: Iterable[Awaitable[T]]) -> list[T]:
    """The results of `works` in their order, all run at the same time.

    The first that fails ends the others, and its error is raised as it is, without a group around it.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_awaiting(work)) for work in works]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from failed.exceptions[0].__cause__
    return [task.result() for task in tasks]


async def _awaiting(work: Awaitable[T]) -> T:
    return await work
