"""The journal's thread: takes entries off a queue and writes each batch in one transaction.

The queue is bounded and counts what it drops; a disk that refuses is said once and tried again with the
next batch, because healing goes on without a journal but not without a loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue

from mapek.errors import MapekError
from mapek.knowledge.journal import Entry, Found
from mapek.knowledge.journal_store import Store

QUEUE = 4096

_log = logging.getLogger(__name__)


class Writer:
    """One thread that owns one `Store`; every method is called from the loop's thread.

    `begin` is the first that the thread does.
    """

    def __init__(
        self, state_dir: Path, boot_id: str, *, rows: int, megabytes: int, begin: Callable[[], None]
    ) -> None:
        self.dropped = 0
        self.trouble = ""
        self._store = Store(state_dir, boot_id, rows=rows, megabytes=megabytes)
        self._queue: SimpleQueue[Entry | Future[None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._begin = begin

    def start(self, time_ns: int) -> Future[Found]:
        """Open the store in the thread; the future raises what `Store.open` raises."""
        opened: Future[Found] = Future()
        self._thread = threading.Thread(target=self._run, args=(opened, time_ns), name="mapek-journal")
        self._thread.start()
        return opened

    def put(self, entry: Entry) -> None:
        """Queue `entry`; never waits."""
        if self._queue.qsize() >= QUEUE:
            self.dropped += 1
        else:
            self._queue.put(entry)

    async def flush(self) -> None:
        """Return when everything queued so far has been written or given up."""
        done: Future[None] = Future()
        self._queue.put(done)
        await asyncio.wrap_future(done)

    async def close(self) -> None:
        """Write what is queued and end the thread; cancelled, it still ends, a moment later."""
        if self._thread is not None:
            ended: Future[None] = Future()
            self._queue.put(ended)
            self._queue.put(None)
            await asyncio.shield(asyncio.wrap_future(ended))
            self._thread.join()  # it has nothing left to do but return

    def _run(self, opened: Future[Found], time_ns: int) -> None:
        try:
            self._begin()
            found = self._store.open(time_ns)
        except BaseException as error:
            opened.set_exception(error)
            self._refuse()
            return
        opened.set_result(found)
        while True:
            batch, waiting, more = self._next()
            self._write(batch)
            if not more:
                self._store.close()
            for future in waiting:
                future.set_result(None)
            if not more:
                return

    def _next(self) -> tuple[list[Entry], list[Future[None]], bool]:
        """Everything in the queue, at least one thing; False when it was the last."""
        batch: list[Entry] = []
        waiting: list[Future[None]] = []
        item = self._queue.get()
        while True:
            if item is None:
                return batch, waiting, False
            if isinstance(item, Entry):
                batch.append(item)
            elif item.set_running_or_notify_cancel():
                waiting.append(item)
            try:
                item = self._queue.get_nowait()
            except Empty:
                return batch, waiting, True

    def _write(self, batch: list[Entry]) -> None:
        try:
            if batch:
                self._store.write(batch)
                self.trouble = ""
        except Exception as error:  # whatever it was, the thread must live to let waiters go
            self.dropped += len(batch)
            if not self.trouble:
                _log.error("%s", error, exc_info=None if isinstance(error, MapekError) else error)
            self.trouble = str(error)

    def _refuse(self) -> None:
        """The store did not open: there is nothing to write, only waiters to let go."""
        while (item := self._queue.get()) is not None:
            if isinstance(item, Future) and item.set_running_or_notify_cancel():
                item.set_result(None)
