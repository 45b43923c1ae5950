"""Ring buffers on the event loop: the kernel's wake-up calls a reader, which hands each record to a callback.

libbpf consumes the ring, since a consumer of one's own needs memory barriers that Python has not. One
wake-up and one callback per record suits sparse alarms (11-30 microseconds from kernel to callback); a flood
is taken in slices, so that it cannot hold the loop. Records that found the ring full are counted by the
program itself, not here.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
from collections.abc import Callable
from typing import Final, Self

from mapek.bpf import libbpf
from mapek.bpf.maps import Map
from mapek.bpf.syscall import explain
from mapek.errors import ObjectError

_STOP: Final = -errno.ECANCELED


class RingBuffer:
    """A consumer of one ring buffer map. Give it a callback, then `start` it on a loop or `consume` by
    hand."""

    def __init__(self, ring: Map, callback: Callable[[bytes], None], *, slice_size: int = 4096) -> None:
        """Map the ring.

        Args:
            callback: called with each record as bytes; what it raises goes to the loop's exception handler
                and the next
                record is still delivered.
            slice_size: records taken per wake-up at most.
        """
        if ring.type != "ringbuf":
            raise ObjectError(
                "read ring buffer", ring.name, f"it is a map of type {ring.type}", "give the ringbuf map"
            )
        self.records = 0
        self._callback, self._slice, self._taken = callback, slice_size, 0
        self._errors: list[Exception] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sample = libbpf.SAMPLE_FN(self._on_sample)
        self._lib = libbpf.library()
        # A duplicate: asyncio knows one reader per fd number, and the map's number may be watched elsewhere.
        self._fd = os.dup(ring.fd)
        self._ring: int | None = self._lib.ring_buffer__new(ring.fd, self._sample, None, None)
        if not self._ring:
            code = ctypes.get_errno()
            os.close(self._fd)
            self._fd = -1
            raise explain(code, "map ring buffer", ring.name, needs="ring buffers, kernel 5.8")

    def _on_sample(self, _context: int | None, data: int, size: int) -> int:
        self._taken += 1
        try:
            self._callback(ctypes.string_at(data, size))
        except Exception as error:
            self._errors.append(error)
        return _STOP if self._taken >= self._slice else 0

    def consume(self) -> int:
        """Deliver what is there, at most one slice; returns the number of records. Raises the callback's
        first error, afterwards."""
        if self._ring is None:
            return 0
        self._taken = 0
        result = self._lib.ring_buffer__consume(self._ring)
        self.records += self._taken
        if self._errors:
            errors, self._errors = self._errors, []
            raise errors[0]
        if result < 0 and result != _STOP:
            raise explain(-result, "read ring buffer", "fd", wanted=())
        return self._taken

    def _ready(self) -> None:
        try:
            self.consume()
        except Exception as error:
            assert self._loop is not None
            self._loop.call_exception_handler({"message": "ring buffer callback failed", "exception": error})

    def start(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Deliver records as they come, on `loop` (default: the running one)."""
        self._loop = loop or asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._ready)

    def stop(self) -> None:
        """Stop delivering; records stay in the ring."""
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
            self._loop = None

    def close(self) -> None:
        """Stop and unmap; twice is fine. Not from within the callback."""
        self.stop()
        if self._ring is not None:
            self._lib.ring_buffer__free(self._ring)
            self._ring = None
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
