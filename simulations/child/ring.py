"""A ring of fixed-size records in shared memory: one process writes, the lab reads at leisure.

The lab makes a memfd and hands it to the child, so that measuring costs the child one copy and the lab
nothing until it looks. The writer stores a record first and the count after it; a reader that takes the
count first sees whole records only (stores are not reordered on x86, and CPython's own calls separate them
elsewhere).
"""

from __future__ import annotations

import mmap
import struct
from typing import Final

HEADER: Final = 64  # bytes; the u64 at 0 counts the records ever written

SENT: Final = struct.Struct("<QII")
"""Time of sending in ns, ns behind schedule, errno of sendto or 0; the n-th record is of number n."""

ARRIVED: Final = struct.Struct("<QQQII")
"""Number, time of sending, kernel's arrival time (both CLOCK_MONOTONIC ns), µs until read, ifindex."""

STALLED: Final = struct.Struct("<QQ")
"""When the timer was due, and by how many ns it was late."""


class RingWriter:
    """The child's side; `capacity` records of `form`'s size fit into the memory behind `fd`."""

    def __init__(self, fd: int, form: struct.Struct) -> None:
        self._memory = mmap.mmap(fd, 0)
        self._form = form
        self._capacity = (len(self._memory) - HEADER) // form.size
        self.count = 0

    def append(self, *values: int) -> None:
        """Write one record."""
        self._form.pack_into(self._memory, HEADER + self.count % self._capacity * self._form.size, *values)
        self.count += 1
        self._memory[:8] = self.count.to_bytes(8, "little")
