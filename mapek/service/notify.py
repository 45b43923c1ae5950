"""Tells the service manager how we do: sd_notify(3) with its watchdog, in the few lines that the protocol takes.

The watchdog is fed from the loop's own timers, and only while ticks go through all phases: neither a loop that hangs
nor one that runs idle with its phases dead is kept alive. Where nobody listens it costs nothing.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable, MutableMapping
from typing import TYPE_CHECKING, Final

from mapek.loop import TICK_NS

if TYPE_CHECKING:
    from mapek.clock import Timer
    from mapek.loop import Loop

log = logging.getLogger("mapek")

DEAD_NS: Final = 3 * TICK_NS
"""A loop whose last tick is older is taken for dead."""
_LINE: Final = 240


class Notifier:
    """Sends to the service manager that `environment` names, if it names one.

    Its variables are taken out of `environment`, so that no child speaks for us.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        address = environment.pop("NOTIFY_SOCKET", "")
        watchdog_us = environment.pop("WATCHDOG_USEC", "")
        meant = environment.pop("WATCHDOG_PID", "") in ("", str(os.getpid()))
        self.watchdog_ns = int(watchdog_us) * 1000 if meant and watchdog_us.isdecimal() else 0
        """How long it waits for a sign of life; 0: no watchdog."""
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._socket: socket.socket | None = None
        self._timer: Timer | None = None
        self._status = ""
        if self._address.startswith(("/", "\0")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    def send(self, *lines: str) -> bool:
        """Send assignments such as "READY=1" in one message; False where nobody took it. Never waits, never raises."""
        if self._socket is None:
            return False
        try:
            self._socket.sendto("\n".join(lines).encode("utf-8", "replace"), self._address)
        except OSError as error:
            log.warning("notify the service manager: %s", error.strerror or error)
            return False
        return True

    def ready(self, loop: Loop) -> None:
        """Say that the loop runs; from now on feed the watchdog while it lives, and say what is degraded."""
        self._status = status_line(loop)
        self.send("READY=1", f"STATUS={self._status}")
        if self._socket is not None:
            self._watch(loop)

    def _watch(self, loop: Loop) -> None:
        every_ns = min(self.watchdog_ns // 2 or TICK_NS, TICK_NS)

        def look() -> None:
            self._timer = loop.clock.call_at(loop.clock.now_ns() + every_ns, look)
            words = []
            if self.watchdog_ns and loop.clock.now_ns() - max(loop.ticked_ns, began_ns) < DEAD_NS:
                words.append("WATCHDOG=1")
            if (status := status_line(loop)) != self._status:
                self._status = status
                words.append(f"STATUS={status}")
            if words:
                self.send(*words)

        began_ns = loop.clock.now_ns()
        look()

    def stopping(self) -> None:
        """Say that we are about to end; the watchdog is fed no more, a stop has its own time limit."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.send("STOPPING=1")

    def close(self) -> None:
        """Send nothing any more; twice is fine."""
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._socket.close()
        self._socket = self._timer = None


def status_line(loop: Loop) -> str:
    """One line: how many touchpoints are open, and what is not as it should be."""
    watched = loop.monitor.watched
    statuses = {name: loop.supervision.call(name, None, one.status) for name, one in watched.items()}
    words = [f"{name}: {word}" for name, one in statuses.items() if one for word in one.degraded]
    return _line(f"{sum(one.open for one in watched.values())} of {len(watched)} open", words)


def _line(head: str, words: Iterable[str]) -> str:
    text = " ".join("; ".join([head, *words]).split())
    return text if len(text) <= _LINE else text[: _LINE - 1] + "…"
