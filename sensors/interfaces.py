"""Keeps a sensor attached to its interfaces while they vanish, come back and change their names.

The former attachment is handed to the next one, which goes on with its maps: what was counted stays counted. An
interface is known by the name it was configured with; while it is away, its last counts are still read.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from mapek.bpf.standing import Standing
from mapek.clock import Timer
from mapek.contracts import Surroundings
from mapek.errors import AttachError, MapekError
from mapek.model import Entity, Event
from mapek.sensors.detachments import Detachments
from mapek.sensors.guard import Guard, Held
from mapek.sensors.links import Links, ifindex_of
from mapek.sensors.named import absent, named, no_such
from mapek.supervision import together

if TYPE_CHECKING:
    from mapek.knowledge.topology import Topology

log = logging.getLogger("mapek")

FIRST_RETRY_NS: Final = 1_000_000_000
LAST_RETRY_NS: Final = 60_000_000_000


class Attachment(Protocol):
    """What a sensor has on one interface."""

    @property
    def entity(self) -> Entity:
        """The link: configured name, and ifindex as generation."""

    @property
    def where(self) -> str:
        """How it is attached, for people: "xdp native"."""

    def handles(self) -> Sequence[Standing]:
        """What is attached, for `Guard` to look after."""

    async def leave(self) -> None:
        """Take the programs off; the maps stay readable. Twice is fine."""

    def close(self) -> None:
        """Close the maps too; twice is fine."""


A = TypeVar("A", bound=Attachment)


class Interfaces(Generic[A]):
    """The interfaces of one sensor. `attached` and `missing` are by configured name.

    Args:
        verb: what the sensor does on an interface, for messages ("count on").
        attach: attaches to a link; gets the former attachment under this name, whose maps are still open.
        sensor: its name, for the event when somebody takes its program off.
        reattach: put it back then.
    """

    def __init__(
        self,
        verb: str,
        attach: Callable[[Entity, A | None], Awaitable[A]],
        *,
        sensor: str,
        reattach: bool = True,
    ) -> None:
        self.attached: dict[str, A] = {}
        self.missing: dict[str, MapekError] = {}
        self._verb, self._attach_to = verb, attach
        self._names: tuple[str, ...] = ()
        self._around: Surroundings | None = None
        self._links: Links | None = None
        self._turns: dict[str, asyncio.Lock] = {}
        """By name: an interface that comes back is heard of several times."""
        self._retries: dict[str, tuple[int, Timer]] = {}
        """By name: the delay in ns, and the timer that ends it."""
        self._attaching: dict[str, tuple[int, bool]] = {}
        """By name: the ifindex that is being attached to, and whether it went meanwhile."""
        self._detachments = Detachments(sensor, verb, reattach, lambda link: self._take(link.name))

    def shortfalls(self, topology: Topology, names: Iterable[str]) -> tuple[str, ...]:
        """For `Touchpoint.shortfalls`: what `open` would miss now; raises what it would raise."""
        return tuple(map(str, absent(self._verb, named(names, topology))))

    async def open(self, around: Surroundings, names: Iterable[str] = ()) -> None:
        """Attach to each of `names`, by default the interfaces of all paths.

        Raises the first error when it could attach to none; the others are in `missing`, and tried again when
        the kernel says that the interface is there, and with a back-off where it is there and something else is
        in the way.
        """
        self._around = around
        self._names = named(names, around.knowledge.topology)
        links = around.shared(Links)
        await links.join(self._hear, around.clock.now_ns)
        self._links = links
        self._detachments.open(around)
        # Together: most of it is waiting, for the kernel's grace periods and for its verifier.
        await together(self._take(name) for name in self._names)
        await around.shared(Guard).join(self, around)
        if self.missing and not self.attached:
            raise next(iter(self.missing.values()))

    async def close(self) -> None:
        """Take everything off and close it; twice is fine."""
        if self._around is not None:
            # Also where `open` was cancelled while it joined.
            self._around.shared(Links).leave(self._hear)
            self._around.shared(Guard).leave(self)
        self._around = self._links = None
        self._detachments.close()
        for _, timer in self._retries.values():
            timer.cancel()
        self._retries.clear()
        failure: Exception | None = None
        while self.attached:
            name, one = next(iter(self.attached.items()))
            try:
                await one.leave()
            except (MapekError, OSError) as error:
                failure = failure or error
            # Forgotten only now: whoever is cancelled in between is closed once more.
            one.close()
            del self.attached[name]
        self.missing.clear()
        if failure is not None:
            raise failure

    def places(self) -> dict[str, str]:
        """Where each interface is attached now, for `Status.attached`; those that are away are left out."""
        return {name: one.where for name, one in self.attached.items() if name not in self.missing}

    def troubles(self) -> tuple[str, ...]:
        """What is missing and why, a line each, for `Status.degraded`."""
        return tuple(str(error) for error in self.missing.values())

    def counts(self) -> dict[str, int]:
        """How often our programs were taken off and put back, for `Status.counts`."""
        return self._detachments.counts()

    def held(self) -> list[Held]:
        """What should stand, for `Guard`."""
        there = (
            one
            for name, one in self.attached.items()
            if name not in self.missing and not ((turn := self._turns.get(name)) and turn.locked())
        )
        return [Held(one.entity, handle) for one in there for handle in one.handles()]

    def lost(self, held: Held, how: str) -> None:
        """Somebody took it off."""
        self.missing[held.link.name] = self._detachments.lost(held.link, how)

    async def _take(self, name: str) -> None:
        async with self._turns.setdefault(name, asyncio.Lock()):
            if self._around is not None:
                await self._attach(name)

    async def _attach(self, name: str) -> None:
        ifindex = await ifindex_of(name)
        if self._around is None:
            return
        if not ifindex:
            self.missing[name] = no_such(self._verb, name)
            return
        entity, former = Entity("link", name, ifindex), self.attached.get(name)
        if former is not None and former.entity == entity and name not in self.missing:
            return
        try:
            self._attaching[name] = entity.generation, False
            if former is not None:
                await former.leave()
            now = await self._attach_to(entity, former)
        except MapekError as error:
            self._failed(name, error)
            return
        except OSError as error:
            why = AttachError(self._verb, name, os.strerror(error.errno or 0), "see the log")
            why.__cause__ = error
            self._failed(name, why)
            return
        finally:
            _, went = self._attaching.pop(name, (0, False))
        self.attached[name] = now
        # As they were configured, whichever came first: rows of a frame keep their places.
        self.attached = {one: self.attached[one] for one in self._names if one in self.attached}
        self.missing.pop(name, None)
        self._detachments.back(entity)
        if (retry := self._retries.pop(name, None)) is not None:
            retry[1].cancel()
        if former is not None:
            former.close()
        if went and self._around is not None:
            # It may be the one that went that we are attached to, and another one is there with its number.
            self._lost(name)
            self._around.spawn(self._take(name))

    def _failed(self, name: str, error: MapekError) -> None:
        """Try again later: what is in the way, such as another's program, may go without an event of the link."""
        self.missing[name] = error
        around = self._around
        if around is None:
            return
        delay, timer = self._retries.get(name, (FIRST_RETRY_NS // 2, None))
        if timer is not None:
            timer.cancel()
        delay = min(2 * delay, LAST_RETRY_NS)
        due = around.clock.now_ns() + delay
        self._retries[name] = delay, around.clock.call_at(due, lambda: around.spawn(self._take(name)))

    def _hear(self, event: Event) -> None:
        name, ifindex = event.entity.name, event.entity.generation
        if event.kind == "link.gone":
            for one, (index, _) in self._attaching.items():
                if index == ifindex:
                    self._attaching[one] = index, True
            for known in self.attached.values():
                if known.entity.generation == ifindex:
                    self._lost(known.entity.name)
        elif event.kind in ("link.new", "link.up", "link.renamed") and name in self._names:
            former = self.attached.get(name)
            stale = former is None or former.entity.generation != ifindex or name in self.missing
            if former is not None and ifindex == former.entity.generation:
                stale = stale and not self._detachments.stays_off(former.entity)
            if stale and self._around is not None:
                self._around.spawn(self._take(name))

    def _lost(self, name: str) -> None:
        why = AttachError(self._verb, name, "the interface is gone", "it goes on when the interface is back")
        self.missing[name] = why
        log.warning("%s", why)
