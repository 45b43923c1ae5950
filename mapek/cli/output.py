"""Lines on stdout that never make the event loop wait: a reader may be slow, stopped or gone.

Lines are made a moment after the event, so that printing a suspicion does not delay the verdict on it, and
a thread of its own writes them. What does not fit into the queue is dropped, counted and said.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from mapek.bpf.capabilities import hold_none
from mapek.errors import PrivilegeError

_DELAY_S: Final = 0.005
_QUEUE: Final = 256
_PENDING: Final = 20_000
_LAST_WORDS_S: Final = 2.0


class Lines:
    """Writes lines to a descriptor. Belongs to the event loop that made it.

    Args:
        fd: is not closed at the end.
        dropped: makes the line that tells of a number of lines that were lost.
    """

    def __init__(self, fd: int, dropped: Callable[[int], str]) -> None:
        self._fd, self._dropped = fd, dropped
        self._loop = asyncio.get_running_loop()
        self._pending: list[Callable[[], str]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._lost = 0
        self._queue: queue.Queue[bytes | None] = queue.Queue(_QUEUE)
        self._gone = False
        self._thread = threading.Thread(target=self._write, name="mapek-output", daemon=True)
        self._thread.start()

    @property
    def gone(self) -> bool:
        """Whether the reader has gone: lines lead nowhere from then on."""
        return self._gone

    def put(self, make: Callable[[], str]) -> None:
        """Print what `make` returns, in a moment; cheap."""
        if len(self._pending) >= _PENDING:
            self._lost += 1
            return
        self._pending.append(make)
        if self._timer is None:
            self._timer = self._loop.call_later(_DELAY_S, self._flush)

    def _flush(self, wait_s: float = 0.0) -> None:
        self._timer = None
        pending, self._pending = self._pending, []
        if self._queue.full() and not wait_s:
            self._lost += len(pending)
            return
        # What was lost is said where it is missing: before what comes after it.
        made = [self._dropped(self._lost)] if self._lost else []
        made += [make() for make in pending]
        try:
            self._queue.put("".join(f"{line}\n" for line in made).encode(), timeout=wait_s or None)
        except queue.Full:
            self._lost += len(pending)
            return
        self._lost = 0

    def _write(self) -> None:
        with suppress(PrivilegeError):
            hold_none()
        while (data := self._queue.get()) is not None:
            view = memoryview(data)
            while view and not self._gone:
                try:
                    view = view[os.write(self._fd, view) :]
                except OSError:
                    self._gone = True

    def close(self) -> None:
        """Write what is left; gives up after two seconds on a reader that does not read."""
        if self._timer is not None:
            self._timer.cancel()
        if self._pending or self._lost:
            self._flush(_LAST_WORDS_S)
        try:
            self._queue.put(None, timeout=_LAST_WORDS_S)
        except queue.Full:
            return
        self._thread.join(_LAST_WORDS_S)
