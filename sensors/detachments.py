"""What a sensor does when somebody takes its program off: says it, counts it, and puts it back, but not for ever.

Put back at once the first time, later with a back-off; after five times within ten minutes it stays off, because
whoever takes it off means it: an operator, or another agent that would do the same to us for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from mapek.clock import Timer
from mapek.contracts import Surroundings
from mapek.errors import AttachError
from mapek.model import Entity, Event, Value

log = logging.getLogger("mapek")

MOST: Final = 5
WINDOW_NS: Final = 600_000_000_000
FIRST_NS: Final = 1_000_000_000
LAST_NS: Final = 60_000_000_000
COUNTED: Final[Mapping[str, str]] = {
    "detached": "Times that somebody took its program off an interface.",
    "reattached": "Times that it was put back.",
}
"""For `Touchpoint.counted`."""


class Detachments:
    """Of one sensor, by the names of its interfaces.

    Args:
        sensor: its name. verb: what it does on an interface ("count on").
        reattach: put back what was taken off.
        again: attaches to an interface again, and calls `back` when it is.
    """

    def __init__(
        self, sensor: str, verb: str, reattach: bool, again: Callable[[Entity], Awaitable[None]]
    ) -> None:
        self._sensor, self._verb, self._reattach, self._again = sensor, verb, reattach, again
        self._counts = dict.fromkeys(COUNTED, 0)
        self._around: Surroundings | None = None
        self._times: dict[str, list[int]] = {}
        self._off: dict[str, Entity] = {}
        """Taken off and not put back."""
        self._stays: set[Entity] = set()
        self._timers: dict[str, Timer] = {}
        self._tries: dict[str, int] = {}

    def open(self, around: Surroundings) -> None:
        """From now on."""
        self._around = around

    def close(self) -> None:
        """Put nothing back any more; twice is fine."""
        for timer in self._timers.values():
            timer.cancel()
        for known in (self._timers, self._off, self._stays, self._times, self._tries):
            known.clear()
        self._around = None

    def counts(self) -> dict[str, int]:
        """For `Status.counts`."""
        return dict(self._counts)

    def lost(self, link: Entity, how: str) -> AttachError:
        """It was taken off `link`: tell everybody, and see to it that it is put back. What `status` says meanwhile."""
        assert self._around is not None
        now = self._around.clock.now_ns()
        self._counts["detached"] += 1
        times = self._times[link.name] = [
            one for one in self._times.get(link.name, ()) if now - one < WINDOW_NS
        ] + [now]
        self._off[link.name] = link
        if not self._reattach:
            do = "it stays off, as reattach = false says: find who did it, and restart the agent"
        elif len(times) > MOST:
            do = f"the {len(times)}th time in {WINDOW_NS // 60_000_000_000} min, so it stays off: find who does it"
            do += ", and restart the agent"
        else:
            delay = 0 if len(times) == 1 else FIRST_NS << len(times) - 2
            do = "it is put back" + (f" in {delay // 1_000_000_000} s" if delay else "")
            self._later(link, delay)
        if not do.startswith("it is put back"):
            self._stays.add(link)
        why = AttachError(self._verb, link.name, f"somebody took our program off: {how}", do)
        log.warning("%s", why)
        self._around.emit(Event(now, link, "sensor.detached", {"sensor": self._sensor, "how": how}))
        return why

    def failed(self, link: Entity) -> None:
        """Putting it back did not work: try again later, if it was taken off."""
        if link.name in self._off and link not in self._stays and self._around is not None:
            tries = self._tries[link.name] = self._tries.get(link.name, 0) + 1
            self._later(link, min(FIRST_NS << min(tries - 1, 10), LAST_NS))

    def back(self, link: Entity) -> None:
        """It is attached; `link` may be another interface of the same name by now."""
        off = self._off.pop(link.name, None)
        self._tries.pop(link.name, None)
        if (timer := self._timers.pop(link.name, None)) is not None:
            timer.cancel()
        if off is None or self._around is None:
            return
        self._stays.discard(off)
        if off != link:
            return
        now = self._around.clock.now_ns()
        self._counts["reattached"] += 1
        fields: dict[str, Value] = {"sensor": self._sensor, "after_ns": now - self._times[link.name][-1]}
        log.warning("%s %s: our program is back where it was taken off", self._verb, link.name)
        self._around.emit(Event(now, link, "sensor.reattached", fields))

    def stays_off(self, link: Entity) -> bool:
        """Is it not to be put back on this interface, whatever the kernel says of it?"""
        return link in self._stays

    def _later(self, link: Entity, delay_ns: int) -> None:
        around = self._around
        assert around is not None
        if (timer := self._timers.pop(link.name, None)) is not None:
            timer.cancel()
        due = around.clock.now_ns() + delay_ns
        self._timers[link.name] = around.clock.call_at(due, lambda: around.spawn(self._again(link)))
