"""Records a live loop without holding it up.

The tap only notes what it is given; encoding happens in slices of a few items between other work of the event
loop, and the file is written by a thread. A crash loses what the last half second brought. What comes faster
than it can be encoded is dropped and counted, and leaves a gap in the recording that a replay reports.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Self

from mapek.errors import RecordingError
from mapek.simulations.recording import About, Recordable, RecordingWriter

QUEUE = 20_000
SLICE = 4
"""Items that are encoded without a look at the event loop: under 0.1 ms."""
FLUSH_SECONDS = 0.5

_log = logging.getLogger(__name__)


class _Drain:
    """A file that collects what is written, to be written by the thread."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.parts.append(data)
        return len(data)


class Recorder:
    """An async context manager; `tap` is the loop's tap while it is open.

    Args:
        path: the file, replaced if it is there.
        about: what is recorded.

    Attributes:
        recorded, dropped: items.
        trouble: why recording ended early, one line; empty as long as it goes on. The loop is not disturbed.

    Raises:
        RecordingError: on entering, if the file cannot be written.
    """

    def __init__(self, path: Path, about: About) -> None:
        self.path, self._about = path, about
        self.recorded = self.dropped = 0
        self.trouble = ""
        self._waiting: deque[tuple[int, Recordable]] = deque()
        self._unsaid = 0
        self._drain = _Drain()
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None

    async def __aenter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1, "mapek-recorder")
        self._loop = asyncio.get_running_loop()
        try:
            self._file: BinaryIO = await self._loop.run_in_executor(self._thread, self.path.open, "wb", 0)
        except OSError as error:
            self._thread.shutdown()
            raise RecordingError(
                "record to", self.path, error.strerror or str(error), "name a file that can be written"
            ) from error
        self._writer = RecordingWriter(self._drain, self._about)
        self._timer = self._loop.call_later(FLUSH_SECONDS, self._work)
        return self

    def tap(self, now_ns: int, item: Recordable) -> None:
        """Note `item`; costs under a microsecond."""
        if len(self._waiting) >= QUEUE or self.trouble:
            self.dropped += 1
            self._unsaid += 1
            return
        if self._unsaid:
            # The gap has to stand where it happened, which is before this item.
            self._waiting.append((-self._unsaid, item))
            self._unsaid = 0
        self._waiting.append((now_ns, item))

    def _work(self) -> None:
        if self._encode(SLICE):
            self._timer = self._loop.call_soon(self._work)
            return
        self._writer.flush()
        self._save()
        self._timer = self._loop.call_later(FLUSH_SECONDS, self._work)

    def _encode(self, limit: int) -> bool:
        """Encode up to `limit` items; False when there is none left."""
        for _ in range(limit):
            if not self._waiting:
                return False
            now_ns, item = self._waiting.popleft()
            if now_ns < 0:
                self._writer.missed(-now_ns)
                continue
            try:
                self._writer(now_ns, item)
                self.recorded += 1
            except (TypeError, ValueError) as error:
                self._writer.missed()
                self.dropped += 1
                _log.warning("record %s: %s", type(item).__name__, error)
        return True

    def _save(self) -> None:
        parts, self._drain.parts = self._drain.parts, []
        if parts:
            self._loop.run_in_executor(self._thread, self._write, b"".join(parts))

    def _write(self, data: bytes) -> None:
        try:
            view = memoryview(data)
            while view and not self.trouble:
                view = view[self._file.write(view) :]
        except OSError as error:
            self.trouble = (
                f"record to {self.path}: {error.strerror}; free space, then start the recording anew"
            )
            _log.error("%s", self.trouble)

    async def __aexit__(self, *_: object) -> None:
        if self._timer:
            self._timer.cancel()
        while self._encode(SLICE):  # noqa: ASYNC110  # no wait: others run between the slices
            await asyncio.sleep(0)
        if self._unsaid:
            self._writer.missed(self._unsaid)
        self._writer.finish()
        self._save()
        await self._loop.run_in_executor(self._thread, self._file.close)
        self._thread.shutdown()
