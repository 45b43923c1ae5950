"""What the suites put around a touchpoint in a loop's place: a clock, a knowledge, tasks and an ear for events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from mapek.clock import RealClock
from mapek.contracts import Surroundings
from mapek.errors import MapekError
from mapek.knowledge import Knowledge, Topology
from mapek.model import Event


@dataclass(slots=True)
class Around:
    """A loop's worth of surroundings; make it inside a running event loop, and `end` it."""

    topology: Topology
    events: list[Event] = field(default_factory=list)
    tasks: set[asyncio.Future[None]] = field(default_factory=set)
    clock: RealClock = field(default_factory=RealClock)
    commons: dict[type, object] = field(default_factory=dict)

    def surroundings(self) -> Surroundings:
        """What `open` gets; touchpoints opened with the same `Around` share their commons."""
        return Surroundings(
            self.events.append,
            self.clock,
            Knowledge(self.topology),
            lambda work: self.tasks.add(asyncio.ensure_future(work)),
            self.commons,
        )

    def failures(self) -> list[BaseException]:
        """What spawned tasks raised so far."""
        ended = [task for task in self.tasks if task.done() and not task.cancelled()]
        return [error for task in ended if (error := task.exception()) is not None]

    async def end(self) -> None:
        """Cancel what was spawned, stop the clock."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.clock.close()


async def until(true: Callable[[], object], seconds: float, otherwise: Callable[[], str]) -> None:
    """Let the loop run until `true()` holds. Raises AssertionError with what `otherwise` says after `seconds`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not true():
        assert loop.time() < deadline, otherwise()
        await asyncio.sleep(0.005)


def one_line(name: str, error: MapekError) -> None:
    """Raise AssertionError if `error` takes more than a line to say."""
    assert "\n" not in str(error), f"{name} complains over several lines: {error}"
