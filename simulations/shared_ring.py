"""The lab's side of `child.ring`: makes the shared memory and reads whole records from it as numpy arrays."""

from __future__ import annotations

import mmap
import os
import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mapek.simulations.child.ring import ARRIVED, HEADER, SENT, STALLED

Records = NDArray[np.void]

SENT_TYPE: Final = np.dtype([("sent_ns", "<u8"), ("late_ns", "<u4"), ("errno", "<u4")])
ARRIVED_TYPE: Final = np.dtype(
    [("number", "<u8"), ("sent_ns", "<u8"), ("arrived_ns", "<u8"), ("read_us", "<u4"), ("ifindex", "<u4")]
)
STALLED_TYPE: Final = np.dtype([("due_ns", "<u8"), ("late_ns", "<u8")])

for _form, _type in ((SENT, SENT_TYPE), (ARRIVED, ARRIVED_TYPE), (STALLED, STALLED_TYPE)):
    if _form.size != _type.itemsize:
        raise AssertionError("child.ring and shared_ring disagree")


class SharedRing:
    """`capacity` records in a memfd; the newest overwrite the oldest."""

    def __init__(self, name: str, kind: np.dtype[np.void], capacity: int) -> None:
        self.kind, self.capacity = kind, capacity
        self.fd = os.memfd_create(f"mapek-{name}", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, HEADER + capacity * kind.itemsize)
        self._memory: mmap.mmap | None = mmap.mmap(self.fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)

    @property
    def count(self) -> int:
        """Records ever written."""
        assert self._memory is not None
        (count,) = struct.unpack_from("<Q", self._memory, 0)
        return int(count)

    def records(self, first: int, last: int) -> Records:
        """A copy of the records numbered first..last-1, as far as they are written and still there."""
        assert self._memory is not None
        count = self.count
        first, last = max(first, count - self.capacity, 0), min(last, count)
        if first >= last:
            return np.empty(0, self.kind)
        size = self.kind.itemsize
        start, stop = first % self.capacity, (last - 1) % self.capacity + 1
        spans = [(start, stop)] if start < stop else [(start, self.capacity), (0, stop)]
        raw = b"".join(self._memory[HEADER + low * size : HEADER + high * size] for low, high in spans)
        return np.frombuffer(raw, self.kind)

    def since(self, field: str, time_ns: int) -> Records:
        """The newest records from the first one whose `field` is >= `time_ns` on; `field` must only grow."""
        count, take = self.count, 256
        while True:
            found = self.records(count - take, count)
            if take >= min(count, self.capacity) or (len(found) and int(found[field][0]) < time_ns):
                return found[found[field] >= time_ns]
            take *= 4

    def close(self) -> None:
        """Let the memory go; closing twice is fine."""
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()
            os.close(self.fd)
