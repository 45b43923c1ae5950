"""Tells the sensors of one loop which interfaces come, go and change their name, as the kernel says it.

One rtnetlink socket for all of them, opened for the first and closed after the last, so that a sensor needs no
other touchpoint to hear of its interface. An overrun is answered with a dump, of which only changes are told.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import closing
from typing import Final

from mapek.bpf.worker import in_thread
from mapek.errors import MapekError
from mapek.model import Event
from mapek.sensors import netlink_wire as wire
from mapek.sensors.netlink_events import Decoder, Link, subscribe

Hear = Callable[[Event], None]

log = logging.getLogger("mapek")

TRIES: Final = 5
_RTNLGRP_LINK: Final = 1


class Links:
    """The links of the network namespace in which it was first joined; share it by `Surroundings.shared`."""

    def __init__(self) -> None:
        self.overruns = 0
        self._decoder = Decoder()
        self._listeners: list[Hear] = []
        self._heard: socket.socket | None = None
        self._now_ns: Callable[[], int] = lambda: 0
        self._lock = asyncio.Lock()
        self._queued: list[bytes] | None = None
        """What is heard while it catches up with what was lost."""
        self._catching_up: asyncio.Future[None] | None = None

    async def join(self, hear: Hear, now_ns: Callable[[], int]) -> None:
        """Call `hear` with each "link.new", "link.up", "link.down", "link.renamed", "link.readdressed" and "link.gone"
        from now on.

        Raises OSError when there is no netlink socket to be had.
        """
        async with self._lock:
            if self._heard is None:
                heard = subscribe((_RTNLGRP_LINK,))
                try:
                    dump = await in_thread(_dump)
                except BaseException:
                    heard.close()
                    raise
                self._decoder = Decoder()
                for kind, body in dump:
                    self._decoder.learn(kind, body)
                self._heard, self._now_ns = heard, now_ns
                asyncio.get_running_loop().add_reader(heard.fileno(), self._read)
            self._listeners.append(hear)

    def leave(self, hear: Hear) -> None:
        """No more calls; twice is fine."""
        if hear in self._listeners:
            self._listeners.remove(hear)
        if not self._listeners and self._heard is not None:
            asyncio.get_running_loop().remove_reader(self._heard.fileno())
            self._heard.close()
            self._heard = None
            if self._catching_up is not None:
                self._catching_up.cancel()
            self._queued = self._catching_up = None

    def links(self) -> list[Link]:
        """All that are there, as last heard of, by their numbers; known from the end of `join` on."""
        return [link for _, link in sorted(self._decoder.links.items())]

    def hear_now(self) -> None:
        """Tell what the kernel has said by now, without waiting for the event loop to come to it."""
        self._read()

    def _read(self) -> None:
        while self._heard is not None:
            try:
                data = self._heard.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                # ENOBUFS: the kernel had more to say than the socket could hold
                self.overruns += 1
                if self._queued is None:
                    self._queued = []
                    self._catching_up = asyncio.ensure_future(self._catch_up())
                continue
            if self._queued is None:
                self._take(data)
            else:
                self._queued.append(data)

    async def _catch_up(self) -> None:
        """Ask for what was missed; what is heard meanwhile is younger, and is told after it."""
        dump: list[tuple[int, bytes]] | None = None
        for _ in range(TRIES):
            try:
                dump = await in_thread(_dump)
                break
            except (MapekError, OSError) as error:
                log.warning("what became of the links is not known: %s", error)
        queued, self._queued = self._queued or [], None
        for event in self._decoder.refreshed(dump, self._now_ns()) if dump is not None else ():
            self._tell(event)
        for data in queued:
            self._take(data)

    def _take(self, data: bytes) -> None:
        for event in self._decoder.events(data, self._now_ns):
            self._tell(event)

    def _tell(self, event: Event) -> None:
        for hear in tuple(self._listeners):
            hear(event)


async def ifindex_of(interface: str) -> int:
    """The number of an interface; 0 where it is not there.

    Asked in a thread: for a name that is away the kernel may run modprobe, and waits for it.
    """

    def ask() -> int:
        try:
            return socket.if_nametoindex(interface)
        except OSError:
            return 0

    return await in_thread(ask)


def _dump() -> list[tuple[int, bytes]]:
    with closing(wire.Messenger()) as messenger:
        return list(messenger.dump(wire.RTM_GETLINK))
