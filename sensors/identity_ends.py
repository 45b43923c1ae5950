"""When the entries of a registry end: a heap of times, in step with a clock that also goes on while the machine sleeps.

CLOCK_MONOTONIC, and every timer with it, stands still then, and the certificate behind an entry does not.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

from mapek.clock import asleep_ns
from mapek.sensors.identity_claims import Key

NAP_NS: Final = 1_000_000_000
"""Clocks that drift apart by less were read with a pause in between."""
STALE: Final = 32
"""Entries of the heap that may be of no use, beside as many as are of some."""


class Ends:
    """The end of each entry that has one; `asleep` tells for how long the machine has slept."""

    def __init__(self, asleep: Callable[[], int] = asleep_ns) -> None:
        self._asleep = asleep
        self._slept_ns = asleep()
        self._ends: dict[Key, int] = {}
        self._heap: list[tuple[int, Key]] = []
        """The same, and what was so before."""

    def __len__(self) -> int:
        """How much room they take."""
        return len(self._heap)

    def wake(self) -> bool:
        """Did the machine sleep since the last call?"""
        slept_ns = self._asleep()
        if abs(slept_ns - self._slept_ns) <= NAP_NS:
            return False
        self._slept_ns = slept_ns
        return True

    def set(self, key: Key, expires_ns: int | None) -> None:
        """It ends then, by CLOCK_MONOTONIC as it goes now; None: not by itself."""
        self.wake()
        before = self._ends.pop(key, None)
        if expires_ns is not None:
            end_ns = self._ends[key] = expires_ns + self._slept_ns
            if end_ns != before:
                heapq.heappush(self._heap, (end_ns, key))
        if len(self._heap) > 2 * len(self._ends) + STALE:
            # Renewed or removed before their time, as most are.
            self._heap = [(end_ns, key) for key, end_ns in self._ends.items()]
            heapq.heapify(self._heap)

    def next_ns(self) -> int | None:
        """When to look again; nothing ends before."""
        return self._heap[0][0] - self._slept_ns if self._heap else None

    def pop(self, now_ns: int) -> Key | None:
        """One that has ended, and is forgotten here."""
        while self._heap and self._heap[0][0] <= now_ns + self._slept_ns:
            end_ns, key = heapq.heappop(self._heap)
            # A later entry of the same name has another time.
            if self._ends.get(key) == end_ns:
                del self._ends[key]
                return key
        return None
