"""What the service reads of the loop, all of it from the loop's memory, and how it is read of ours.

The protocols are what the service needs and no more, so that a test, or a program that embeds only parts of
the loop, can stand in for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mapek.contracts import Status
from mapek.model import Frame
from mapek.tally import Tally

if TYPE_CHECKING:
    from mapek.loop import Loop


class SensorView(Protocol):
    """One touchpoint, as the loop sees it."""

    @property
    def status(self) -> Status:
        """What it says about itself; `up=False` while it is not open."""
        ...

    @property
    def frame(self) -> Frame | None:
        """Its last frame, or None before the first and for a touchpoint that has none."""
        ...

    @property
    def failure(self) -> str:
        """The last error, in one line, as long as it holds; else empty."""
        ...


class LoopView(Protocol):
    """The loop. Called on the event loop's thread only."""

    @property
    def sensors(self) -> Mapping[str, SensorView]:
        """Every configured touchpoint by name, the failed ones too."""
        ...

    @property
    def tally(self) -> Tally:
        """What the loop counts about itself."""
        ...

    @property
    def trouble(self) -> str:
        """Why the loop cannot work, in one line; empty as long as it can."""
        ...


@dataclass(frozen=True, slots=True)
class _Sensor:
    status: Status
    frame: Frame | None
    failure: str


class _View:
    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    @property
    def sensors(self) -> Mapping[str, SensorView]:
        failures, latest = self._loop.supervision.failures, self._loop.knowledge.latest
        return {
            name: _Sensor(
                # Its own code: it may raise, and the answer to a scrape must not fail with it.
                self._loop.supervision.call(name, Status(up=False), watched.status),
                latest.get(name),
                failures.get(name, ""),
            )
            for name, watched in self._loop.monitor.watched.items()
        }

    @property
    def tally(self) -> Tally:
        return self._loop.tally

    @property
    def trouble(self) -> str:
        watched = self._loop.monitor.watched
        if any(one.open for one in watched.values()):
            return ""
        if not watched:
            return "no sensor is configured"
        why = next((str(one.error) for one in watched.values() if one.error), "none is open yet")
        return f"no sensor works: {why}"


def view_of(loop: Loop) -> LoopView:
    """The view of one of our loops."""
    return _View(loop)
