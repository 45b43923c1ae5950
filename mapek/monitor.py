"""Monitor: opens the touchpoints, reads the sensors on time, and keeps trying what failed.

A touchpoint that cannot open is tried again for ever with a back-off that doubles up to a minute; the
others go on without it. Reads happen on the event loop: a sensor promises to take far less than a
millisecond, and is named when it does not. They come one behind another, for an interpreter that has just read
one sensor reads the next in a third of the time that it takes when it was asleep.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mapek.clock import Clock, Timer
from mapek.contracts import Status, Surroundings, Touchpoint
from mapek.errors import MapekError, PluginError
from mapek.knowledge import Knowledge
from mapek.model import Event, Frame
from mapek.supervision import Supervision, together

FIRST_READ_NS = 200_000_000
FIRST_RETRY_NS = 500_000_000
LAST_RETRY_NS = 60_000_000_000


@dataclass(slots=True)
class Watched:
    """A touchpoint and how it does."""

    touchpoint: Touchpoint
    open: bool = False
    failures: int = 0
    error: MapekError | None = None
    frames: int = 0
    tasks: set[asyncio.Future[None]] = field(default_factory=set)
    timer: Timer | None = None

    def status(self) -> Status:
        """What the touchpoint says of itself, or why it is not open."""
        if self.open:
            return self.touchpoint.status()
        return Status(up=False, degraded=(str(self.error),) if self.error else ("not open yet",))


class Monitor:
    """The touchpoints of one loop, by name.

    Args:
        feed: takes every frame and event.
        state_dir: as in `Surroundings`.
    """

    def __init__(
        self,
        touchpoints: Iterable[Touchpoint],
        clock: Clock,
        knowledge: Knowledge,
        supervision: Supervision,
        feed: Callable[[Frame | Event], None],
        state_dir: Path | None = None,
    ) -> None:
        self.watched: dict[str, Watched] = {}
        for touchpoint in touchpoints:
            if touchpoint.name in self.watched:
                raise PluginError("start", touchpoint.name, "two touchpoints of that name", "rename one")
            self.watched[touchpoint.name] = Watched(touchpoint)
        self._commons: dict[type, object] = {}
        self._raster_ns = 0
        """A moment at which all are read that are due about then, and again after each period; 0: not known yet."""
        self._clock, self._knowledge, self._supervision, self._feed = clock, knowledge, supervision, feed
        self._state_dir = state_dir

    async def start(self) -> dict[str, MapekError]:
        """Open all touchpoints at the same time, for most of that is waiting for the kernel, but each after those
        that it names in `opens_after`; returns what failed and is being retried from now on, in the order given."""
        tried: dict[str, asyncio.Event] = {}
        works = []
        for name, watched in self.watched.items():
            # Only those before it in the order, so that no two can wait for each other.
            first = [tried[other] for other in watched.touchpoint.opens_after if other in tried]
            tried[name] = asyncio.Event()
            works.append(self._open_after(watched, first, tried[name]))
        errors = await together(works)
        self._raster_ns = self._clock.now_ns() + FIRST_READ_NS
        failed = {}
        for watched, error in zip(self.watched.values(), errors, strict=True):
            if error is not None:
                failed[watched.touchpoint.name] = error
                self._later(watched, FIRST_RETRY_NS)
        return failed

    async def _open_after(
        self, watched: Watched, first: list[asyncio.Event], tried: asyncio.Event
    ) -> MapekError | None:
        for other in first:
            await other.wait()
        try:
            return await self._open(watched)
        finally:
            tried.set()

    async def _open(self, watched: Watched) -> MapekError | None:
        touchpoint = watched.touchpoint
        surroundings = Surroundings(
            emit=self._feed,
            clock=self._clock,
            knowledge=self._knowledge,
            spawn=lambda work: self._spawn(watched, work),
            commons=self._commons,
            state_dir=self._state_dir,
            touchpoints=frozenset(self.watched),
        )
        try:
            await self._supervision.run(touchpoint.name, touchpoint.open(surroundings))
        except asyncio.CancelledError:
            await self._close(watched)
            raise
        except Exception as error:
            watched.failures += 1
            watched.error = self._as_ours(touchpoint, error)
            self._supervision.failed(touchpoint.name, error)
            await self._close(watched)
            return watched.error
        watched.open, watched.error = True, None
        self._supervision.recovered(touchpoint.name)
        if touchpoint.period_ns:
            # soon at first: what the others need to know before they can act
            self._schedule(watched, self._clock.now_ns() + min(touchpoint.period_ns, FIRST_READ_NS))
        return None

    @staticmethod
    def _as_ours(touchpoint: Touchpoint, error: Exception) -> MapekError:
        if isinstance(error, MapekError):
            return error
        return PluginError("open", touchpoint.name, f"{type(error).__name__}: {error}", "see the log")

    def _later(self, watched: Watched, delay_ns: int) -> None:
        def retry() -> None:
            self._spawn(watched, self._reopen(watched, min(2 * delay_ns, LAST_RETRY_NS)))

        watched.timer = self._clock.call_at(self._clock.now_ns() + delay_ns, retry)

    async def _reopen(self, watched: Watched, next_delay_ns: int) -> None:
        if await self._open(watched):
            self._later(watched, next_delay_ns)

    def _spawn(self, watched: Watched, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(self._supervision.run(watched.touchpoint.name, work))
        watched.tasks.add(task)

        def ended(task: asyncio.Future[None]) -> None:
            watched.tasks.discard(task)
            if asyncio.iscoroutine(work):
                work.close()  # cancelled before its first step, it would complain that nobody awaited it
            if not task.cancelled() and (error := task.exception()):
                self._supervision.failed(watched.touchpoint.name, error)

        task.add_done_callback(ended)

    def _schedule(self, watched: Watched, due_ns: int) -> None:
        def read() -> None:
            name, frame = watched.touchpoint.name, None
            try:
                frame = self._supervision.timed(name, watched.touchpoint.read)
                self._supervision.recovered(name)
            except Exception as error:
                self._supervision.failed(name, error)
            if frame is not None:
                watched.frames += 1
                self._feed(frame)
            if watched.open:
                period = watched.touchpoint.period_ns
                late = max(self._clock.now_ns() - due_ns, 0)
                next_ns = due_ns + period * (1 + late // period)
                if self._raster_ns:
                    beside = (next_ns - self._raster_ns + period // 2) % period - period // 2
                    next_ns -= beside
                self._schedule(watched, next_ns)

        watched.timer = self._clock.call_at(due_ns, read)

    def heard(self, event: Event) -> None:
        """Pass an event on to the touchpoints that listen (`on_event`)."""
        for name, watched in self.watched.items():
            if watched.open and type(watched.touchpoint).on_event is not Touchpoint.on_event:
                self._supervision.call(name, None, watched.touchpoint.on_event, event)

    async def stop(self) -> None:
        """Close all touchpoints, the last opened first.

        Neither an error of one nor being cancelled meanwhile keeps the others open: who was cancelled while
        closing is closed once more.
        """
        cancelled: asyncio.CancelledError | None = None
        for watched in reversed(list(self.watched.values())):
            try:
                await self._close(watched)
            except asyncio.CancelledError as error:
                cancelled = error
                await self._close(watched)
        if cancelled is not None:
            raise cancelled

    async def _close(self, watched: Watched) -> None:
        watched.open = False
        if watched.timer:
            watched.timer.cancel()
        current = asyncio.current_task()
        tasks = [task for task in watched.tasks if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # a task that was opening it may have come through with it in spite of the cancellation
        watched.open = False
        if watched.timer:
            watched.timer.cancel()
        try:
            await self._supervision.run(watched.touchpoint.name, watched.touchpoint.close())
        except Exception as error:
            self._supervision.failed(watched.touchpoint.name, error)
