"""Looks after what the sensors of one loop have attached: is it still there, or did somebody take it off?

The kernel says when a tc filter or XDP by netlink changes (RTNLGRP_TC, RTNLGRP_LINK); those are looked at then, at
once. It says nothing when a link is forced off or an element of a program array is changed; those are looked at every
0.8 s, so that it is noticed within a second. The questions wait for rtnl, which others may hold for long, so they are
asked in a thread, together. An interface that is gone is not "taken off": see `Links`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from mapek.bpf.clsact import ClsactFilter
from mapek.bpf.standing import Standing, how_lost
from mapek.bpf.worker import in_thread
from mapek.bpf.xdp_netlink import NetlinkXdp
from mapek.clock import Timer
from mapek.contracts import Surroundings
from mapek.model import Entity, Event
from mapek.sensors.links import Links
from mapek.sensors.netlink_events import subscribe

PERIOD_NS: Final = 800_000_000
_SOON_NS: Final = 20_000_000
"""What one command changes is told in several messages."""
_GROUPS: Final = (1, 4)
"""RTNLGRP_LINK, RTNLGRP_TC."""
_TOLD: Final = (ClsactFilter, NetlinkXdp)
"""What the kernel tells of."""


@dataclass(frozen=True, slots=True)
class Held:
    """Something attached to `link` (generation: ifindex)."""

    link: Entity
    handle: Standing


class Guarded(Protocol):
    """Whoever has something attached."""

    def held(self) -> Iterable[Held]:
        """What should stand now; without what is just being attached or taken off."""

    def lost(self, held: Held, how: str) -> None:
        """One of these was taken off. Called for each that is found, at each look that `held` still has it."""


class Guard:
    """The one of a loop, by `Surroundings.shared`."""

    def __init__(self) -> None:
        self._members: list[Guarded] = []
        self._around: Surroundings | None = None
        self._links: Links | None = None
        self._timer: Timer | None = None
        self._looking: asyncio.Future[None] | None = None
        self._again = False
        self._gone: set[Held] = set()
        """What went with its interface."""
        self._heard: socket.socket | None = None
        self._changes = True
        """Did the kernel say, or may it have said, that something changed?"""

    async def join(self, member: Guarded, around: Surroundings) -> None:
        """Tell `member` from now on what it lost. Raises OSError where there is no netlink socket to be had."""
        self._members.append(member)
        if self._around is None:
            self._around = around
            links = self._links = around.shared(Links)
            await links.join(self._hear, around.clock.now_ns)
        # Soon, so that it hears of what is new from then on.
        self._changes = True
        self._due(_SOON_NS)

    def leave(self, member: Guarded) -> None:
        """No more calls; twice is fine."""
        if member in self._members:
            self._members.remove(member)
        if self._members or self._around is None:
            return
        if self._links is not None:
            self._links.leave(self._hear)
        if self._timer is not None:
            self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()
        self._deafen()
        self._around = self._links = self._timer = self._looking = None
        self._gone.clear()

    def _due(self, in_ns: int) -> None:
        if self._around is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        clock = self._around.clock
        self._timer = clock.call_at(clock.now_ns() + in_ns, self._begin)

    def _begin(self) -> None:
        if self._looking is not None:
            # Whatever changed meanwhile may have been looked at before.
            self._again = True
            return
        self._looking = asyncio.ensure_future(self._look())

    async def _look(self) -> None:
        try:
            held = [(member, one) for member in self._members for one in member.held()]
            self._listen(one for _, one in held)
            changes, self._changes = self._changes or self._heard is None, False
            asked = [(m, one) for m, one in held if changes or not isinstance(one.handle, _TOLD)]

            def ask() -> list[tuple[Guarded, Held, str]]:
                answers = ((m, one, how_lost(one.handle, one.link.generation)) for m, one in asked)
                return [answer for answer in answers if answer[2]]

            for member, one, how in await in_thread(ask) if asked else ():
                self._tell(member, one, how)
            self._gone &= {one for _, one in held}
        finally:
            if self._looking is asyncio.current_task():
                self._looking = None
                self._due(_SOON_NS if self._again else PERIOD_NS)
                self._again = False

    def _tell(self, member: Guarded, one: Held, how: str) -> None:
        if self._links is None:
            return
        # An interface that went, and came back with its old number, is told of by now.
        self._links.hear_now()
        if member in self._members and one not in self._gone and one in member.held():
            member.lost(one, how)

    def _hear(self, event: Event) -> None:
        if event.kind == "link.gone":
            ifindex = event.entity.generation
            self._gone |= {one for m in self._members for one in m.held() if one.link.generation == ifindex}

    def _listen(self, held: Iterable[Held]) -> None:
        """Only where the kernel would say it: nobody else needs to be woken by every change of a qdisc."""
        wanted = any(isinstance(one.handle, _TOLD) for one in held)
        if wanted and self._heard is None:
            with contextlib.suppress(OSError):
                self._heard = subscribe(_GROUPS)
                asyncio.get_running_loop().add_reader(self._heard.fileno(), self._changed)
            self._changes = True
        elif not wanted:
            self._deafen()

    def _deafen(self) -> None:
        if self._heard is not None:
            asyncio.get_running_loop().remove_reader(self._heard.fileno())
            self._heard.close()
            self._heard = None

    def _changed(self) -> None:
        assert self._heard is not None
        for _ in range(64):
            try:
                self._heard.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:
                # More was said than the socket could hold; what, will be seen.
                continue
        self._changes = True
        if self._looking is not None:
            self._again = True
        elif self._timer is None or self._timer.due_ns > self._now_ns() + _SOON_NS:
            self._due(_SOON_NS)

    def _now_ns(self) -> int:
        return self._around.clock.now_ns() if self._around is not None else 0
