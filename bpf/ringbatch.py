"""Ring buffers in batches: all records that lie in the ring become one numpy array, without a call per record.

For streams of records of one size, beyond what `RingBuffer` stands (a callback each: 0.3 M/s). The ring is
mapped, the headers of a whole batch are looked at together, and the kernel gets its room back in one store.
That needs a machine whose loads and stores keep their order (x86-64): on any other the records come through
libbpf, one call each, into the same arrays. Whoever wants few wake-ups lets the program decide: it submits
with BPF_RB_NO_WAKEUP until enough lies there and with BPF_RB_FORCE_WAKEUP then; a tick fetches the rest.
"""

from __future__ import annotations

import asyncio
import mmap
import platform
import select
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from mapek.bpf.maps import Map
from mapek.bpf.ringbuf import RingBuffer
from mapek.bpf.syscall import explain
from mapek.errors import ObjectError

Records = npt.NDArray[np.void]
Bytes = npt.NDArray[np.uint8]
_HEADER: Final = 8
_BUSY: Final = 1 << 31
_DISCARDED: Final = 1 << 30
_ORDERED: Final = ("x86_64", "AMD64")
_MOST: Final = 1 << 16


def reads_directly() -> bool:
    """Whether this machine keeps the order of loads and stores that reading a mapped ring relies on."""
    return platform.machine() in _ORDERED and struct.calcsize("P") == 8


@dataclass(frozen=True, slots=True)
class Batch:
    """What lay between two positions of a ring.

    Args:
        position: up to which everything was taken.
        records: copies of the records of the wanted size, in order.
        discarded: records that their program took back.
        foreign: records of another size, which were passed over.
    """

    position: int
    records: Records
    discarded: int = 0
    foreign: int = 0


class Layout:
    """Where the records of one type lie: a header of 8 bytes, the record, padding to 8 bytes."""

    def __init__(self, record: npt.DTypeLike) -> None:
        self.record = np.dtype(record)
        if not 0 < self.record.itemsize < _DISCARDED:
            raise ValueError(f"a record of {self.record.itemsize} bytes does not fit a ring")
        self.stride = _HEADER + (self.record.itemsize + 7 & ~7)
        self._slot = np.dtype(
            {
                "names": ["length", "record"],
                "formats": ["u4", self.record],
                "offsets": [0, _HEADER],
                "itemsize": self.stride,
            }
        )

    def batch(self, ring: Bytes, consumer: int, producer: int, most: int = _MOST) -> Batch:
        """The records from position `consumer` on: up to `producer`, the first that is still being written, or
        about `most` of them.

        `ring` is the data area twice in a row, as the kernel maps it, so that nothing wraps.
        """
        mask, wanted = len(ring) // 2 - 1, self.record.itemsize
        parts: list[Records] = []
        taken = discarded = foreign = 0
        while producer - consumer >= _HEADER and taken + foreign < most:
            start = consumer & mask
            room = min((producer - consumer) // self.stride, most - taken)
            slots = ring[start : start + room * self.stride].view(self._slot)
            # Headers before records: whoever wrote a header as done has written its record before.
            lengths = slots["length"].copy()
            kept = lengths == wanted
            known = kept if kept.all() else (lengths & ~np.uint32(_DISCARDED)) == wanted
            good = room if known.all() else int(known.argmin())
            if good:
                copied = slots[:good].copy()["record"]
                live = int(np.count_nonzero(kept[:good]))
                parts.append(copied if live == good else copied[kept[:good]])
                discarded += good - live
                taken += good
                consumer += good * self.stride
            if good < room or not room:
                length = int(ring[consumer & mask :][:4].view(np.uint32)[0])
                step = _HEADER + ((length & ~_DISCARDED) + 7 & ~7)
                if length & _BUSY or step > producer - consumer:
                    break
                # One of the wanted size was finished while we looked: its turn comes in the next round.
                if length & ~_DISCARDED != wanted:
                    foreign += 1
                    consumer += step
        records = parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0, self.record)])
        return Batch(consumer, records, discarded, foreign)


class _Mapped:
    """The ring's pages in our memory."""

    def __init__(self, ring: Map, layout: Layout, most: int) -> None:
        page, size = mmap.PAGESIZE, ring.max_entries
        try:
            self._head = mmap.mmap(ring.fd, page)
            self._tail = mmap.mmap(ring.fd, page + 2 * size, prot=mmap.PROT_READ, offset=page)
        except OSError as error:
            code = error.errno or 0
            raise explain(code, "map ring buffer", ring.name, needs="ring buffers, kernel 5.8") from error
        # Aligned words through numpy are one load or store each; the struct module copies byte by byte.
        self._consumer = np.frombuffer(self._head, np.uint64, 1)
        self._producer = np.frombuffer(self._tail, np.uint64, 1)
        self._data = np.frombuffer(self._tail, np.uint8, 2 * size, page)
        self._layout, self._most = layout, most

    def take(self) -> Batch:
        """What lies there; all records are copied out before the store that gives their room back."""
        consumer, producer = int(self._consumer[0]), int(self._producer[0])
        found = self._layout.batch(self._data, consumer, producer, self._most)
        if found.position != consumer:
            self._consumer[0] = found.position
        return found

    def close(self) -> None:
        """Give up the views, which hold the mapping, then the mapping."""
        self._consumer = self._producer = np.empty(0, np.uint64)
        self._data = np.empty(0, np.uint8)
        self._head.close()
        self._tail.close()


class _Called:
    """libbpf's consumer, which has the barriers; it does not tell of discarded records."""

    def __init__(self, ring: Map, layout: Layout, most: int) -> None:
        self._found: list[bytes] = []
        self._record = layout.record
        self._reader = RingBuffer(ring, self._found.append, slice_size=most)

    def take(self) -> Batch:
        """One slice."""
        self._reader.consume()
        good = [data for data in self._found if len(data) == self._record.itemsize]
        foreign = len(self._found) - len(good)
        self._found.clear()
        return Batch(0, np.frombuffer(b"".join(good), self._record), 0, foreign)

    def close(self) -> None:
        """Free libbpf's ring."""
        self._reader.close()


class RingBatches:
    """The consumer of one ring buffer map, in batches. Give it a callback, then `start` it on a loop, or
    `take` by hand.

    `records`, `discarded` and `foreign` count what came: delivered, taken back by the program (0 where libbpf
    reads), passed over because of another size. What found no room only the program can count.
    """

    def __init__(
        self,
        ring: Map,
        record: npt.DTypeLike,
        callback: Callable[[Records], None] | None = None,
        *,
        most: int = _MOST,
        direct: bool | None = None,
    ) -> None:
        """Map the ring. One consumer a ring: two would take each other's records.

        Args:
            record: the dtype of every record, in native byte order.
            callback: called with each batch that is not empty: records in order, an array of its own. What it
                raises goes to the loop's exception handler, and that batch is lost to nobody else.
            most: records a batch at most, so that a flood cannot hold the loop.
            direct: False: through libbpf. By default as the machine allows; True on a machine that reorders
                loads raises ValueError.

        Raises ObjectError if it is not a ring buffer, FeatureError below kernel 5.8.
        """
        if ring.type != "ringbuf":
            why = f"it is a map of type {ring.type}"
            raise ObjectError("read ring buffer", ring.name, why, "give the ringbuf map")
        if direct and not reads_directly():
            raise ValueError(f"{platform.machine()} reorders loads: a mapped ring is not to be read directly")
        if most < 1:
            raise ValueError("a batch of no records")
        self.records = self.discarded = self.foreign = 0
        self.direct = reads_directly() if direct is None else direct
        layout = Layout(record)
        self._reader: _Mapped | _Called | None = (_Mapped if self.direct else _Called)(ring, layout, most)
        self._empty = np.empty(0, layout.record)
        self._callback, self._most = callback, most
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tick_s = 0.0
        self._timer: asyncio.Handle | None = None
        self._again: asyncio.Handle | None = None
        # Edge-triggered: a ring that is written to all the time is always readable, and a level-triggered
        # reader would be called for every few records instead of when the program says so.
        self._edge = select.epoll()
        self._edge.register(ring.fd, select.EPOLLIN | select.EPOLLET)

    def take(self) -> Records:
        """What lies in the ring, at most one batch, in order; empty when there is nothing or it is closed."""
        if self._reader is None:
            return self._empty
        found = self._reader.take()
        self.records += len(found.records)
        self.discarded += found.discarded
        self.foreign += found.foreign
        return found.records

    def start(self, loop: asyncio.AbstractEventLoop | None = None, *, tick_s: float = 0.0) -> None:
        """Deliver batches on `loop` (default: the running one) when the program wakes us.

        Args:
            tick_s: 0: after a wake-up, until nothing lies there, which a program that submits with default flags
                needs and a flood pays for with small batches. Else a wake-up brings what lies there then, and
                a tick every so many seconds the rest: large batches, for programs that decide about wake-ups;
                with default flags a record may come as late as the tick.
        """
        self.stop()
        self._loop = loop or asyncio.get_running_loop()
        self._tick_s = tick_s
        self._loop.add_reader(self._edge.fileno(), self._woken)
        if tick_s > 0:
            self._timer = self._loop.call_later(tick_s, self._tick, self._loop.time() + tick_s)

    def stop(self) -> None:
        """Stop delivering; records stay in the ring."""
        if self._loop is not None:
            self._loop.remove_reader(self._edge.fileno())
            self._loop = None
        for handle in (self._timer, self._again):
            if handle is not None:
                handle.cancel()
        self._timer = self._again = None

    def close(self) -> None:
        """Stop and unmap; twice is fine."""
        self.stop()
        if self._reader is not None:
            self._reader.close()
            self._reader = None
            self._edge.close()

    def _woken(self) -> None:
        self._edge.poll(0)
        self._deliver()

    def _tick(self, due: float) -> None:
        if self._loop is not None:
            # From when it was due, not from now: late ticks must not add up.
            following = max(due + self._tick_s, self._loop.time())
            self._timer = self._loop.call_at(following, self._tick, following)
            self._deliver()

    def _deliver(self) -> None:
        loop = self._loop
        if loop is None:
            return
        if self._again is not None:
            self._again.cancel()
            self._again = None
        before = self.records + self.discarded + self.foreign
        try:
            found = self.take()
            passed = self.records + self.discarded + self.foreign - before
            # By default flags the kernel wakes only a reader that has caught up, and a record that is done
            # between our look and our store finds one that has not.
            if passed >= (self._most if self._tick_s > 0 else 1):
                self._again = loop.call_soon(self._deliver)
            if len(found) and self._callback is not None:
                self._callback(found)
        except Exception as error:
            loop.call_exception_handler({"message": "ring buffer callback failed", "exception": error})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
