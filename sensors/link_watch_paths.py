"""The state of all paths in memory shared with the kernel's programs: what they count, what they are told.

Frames are read with numpy, all paths at once; the few scalars of the hot path through memoryviews. What is read
each second is read by word offsets: numpy's access to a field of a struct costs more than the arithmetic on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from mapek.bpf.maps import ArrayMap
from mapek.sensors.link_watch_layout import (
    ADMIN_DOWN,
    CONFIG,
    COUNTERS,
    IN_USE,
    MARK_MISSING,
    MARK_SILENT,
    RTT_BUCKETS,
    SILENT,
    STATE,
    WATCH,
    WINDOW,
    Alarm,
)

LEAST_SILENCE_NS: Final = 200_000
FRAMES: Final = 9
"""Frames whose round trips the patience goes by: one bad second of the machine changes nothing."""

SILENCE_SHARE: Final = 5
"""A probe may wait a fifth of the interval: a suspicion that an inquiry refutes costs 20 packets, not a failover."""

CLOCK_STEP_NS: Final = 10_000_000
"""A step of the wall clock that stamps follow: it makes the unauthenticated probes under way unrecognisable."""

UNKNOWN_SILENCE_NS: Final = 20_000_000
"""How long a probe may wait while the round trip is not known yet."""

_WORDS: Final = STATE.itemsize // 8
_HALVES: Final = STATE.itemsize // 4


def _u64(field: str, of: np.dtype[np.void] = STATE) -> int:
    return int(of.fields[field][1]) // 8  # type: ignore[index]


def _u32(field: str, of: np.dtype[np.void] = STATE) -> int:
    return int(of.fields[field][1]) // 4  # type: ignore[index]


_LAST_ANSWER, _LAST_ANSWERED_SENT = _u64("last_answer_ns"), _u64("last_answered_sent_ns")
_ANSWERED, _RTT_BUCKETS = _u64("answered"), _u64("rtt_buckets")
_NEXT_SEQ, _NEWEST, _MARKS = _u32("next_seq"), _u32("newest_answered"), _u32("marks")
_PEER_STATE = _u32("peer_state")
_SLOT_WORD, _SLOT_HALF = _u64("window"), _u32("window")
_SLOT_RTT: Final = _SLOT_HALF + 3
_CONFIG_WORDS, _CONFIG_HALVES = CONFIG.itemsize // 8, CONFIG.itemsize // 4
_FLAGS, _SILENCE = _u32("flags", CONFIG), _u64("silence_ns", CONFIG)

LEAST_ANSWERS: Final = 16
"""Fewer round trips have no 99th percentile that means anything."""


def _p99(ordered: npt.NDArray[np.uint32], count: int) -> float:
    """What `np.percentile(.., 99)` says of the last `count` of `ordered`, and takes a tenth of the time."""
    at = (count - 1) * 0.99
    below = int(at)
    share, first = at - below, len(ordered) - count + below
    low = int(ordered[first])
    step = int(ordered[first + 1]) - low
    return low + step * share if share < 0.5 else low + step - step * (1 - share)


def _first_answered(
    sent_ns: npt.NDArray[np.uint64], answered: npt.NDArray[np.bool_], next_seq: npt.NDArray[np.uint32]
) -> npt.NDArray[np.uint64]:
    """When the first answered probe of each path was sent, 0 where more were sent than are known.

    What was sent before is no loss: the peer's agent may have started after ours.
    """
    never = np.uint64(0xFFFFFFFFFFFFFFFF)
    first = np.where(answered, sent_ns, never).min(axis=1)
    return np.where(next_seq <= WINDOW, first, np.uint64(0))


class PathTable:
    """Views of the maps `configs` and `paths`. Valid as long as the maps are.

    Args:
        count: paths in use, the routed ones behind the watched ones.
        interval_ns: between two probes, which bounds how soon silence can be told.
    """

    def __init__(self, configs: ArrayMap, paths: ArrayMap, count: int, interval_ns: int) -> None:
        self.count = count
        self._interval_ns = interval_ns
        self._configs: npt.NDArray[np.void] = configs.view(CONFIG)
        self._states: npt.NDArray[np.void] = paths.view(STATE)
        flat, told = (rows.view(np.uint8).reshape(-1) for rows in (self._states, self._configs))
        self._rows: npt.NDArray[np.uint64] = flat.view(np.uint64).reshape(-1, _WORDS)
        self._words: memoryview[int] = flat.view(np.uint64).data.cast("B").cast("Q")
        self._halves: memoryview[int] = flat.view(np.uint32).data.cast("B").cast("I")
        self._config_words: memoryview[int] = told.view(np.uint64).data.cast("B").cast("Q")
        self._config_halves: memoryview[int] = told.view(np.uint32).data.cast("B").cast("I")
        self._rtts: list[deque[int]] = [deque(maxlen=FRAMES) for _ in range(count)]
        self._wall_ns = 0
        self._carried = np.zeros((count, len(COUNTERS)), np.uint64)
        self._carried_rtts = np.zeros((count, RTT_BUCKETS), np.uint64)
        """What was counted in the sessions before a restart: nobody's counter goes back for it."""
        self._silence = [UNKNOWN_SILENCE_NS + interval_ns] * count

    def configure(self, index: int, values: Mapping[str, object], flags: int) -> None:
        """Set a path up; `values` are fields of `struct path_config`."""
        row = self._configs[index]
        for name, value in values.items():
            row[name] = value
        row["silence_ns"] = self._silence[index]
        row["wall_ns"] = self._wall_ns
        row["flags"] = IN_USE | flags

    def set_clock(self, wall_ns: int) -> None:
        """CLOCK_REALTIME minus CLOCK_MONOTONIC, which the stamps of unauthenticated packets tell."""
        if abs(wall_ns - self._wall_ns) > CLOCK_STEP_NS:
            self._wall_ns = wall_ns
            self._configs["wall_ns"] = wall_ns

    def restart(self, index: int, epoch: int) -> None:
        """Begin to count a path anew: a new session, sequence numbers from 1; what was silent is until it answers."""
        silent = self._halves[index * _HALVES + _MARKS] & MARK_SILENT
        self._carried[index] += self._rows[index, : len(COUNTERS)]
        self._carried_rtts[index] += self._states[index]["rtt_buckets"]
        self._configs[index]["epoch"] = epoch
        self._states[index] = np.zeros((), STATE)
        self._halves[index * _HALVES + _MARKS] = silent
        self._halves[index * _HALVES + _NEXT_SEQ] = 1

    def set_flags(self, index: int, flags: int, mask: int) -> None:
        at, halves = index * _CONFIG_HALVES + _FLAGS, self._config_halves
        now = halves[at]
        if (now & mask) != flags:
            halves[at] = now & ~mask | flags

    def announce_admin_down(self) -> None:
        """From now on every probe says that this agent stops; nothing is watched any more."""
        for index in range(self.count):
            self.set_flags(index, ADMIN_DOWN, ADMIN_DOWN | WATCH)

    def next_seq(self, index: int) -> int:
        return self._halves[index * _HALVES + _NEXT_SEQ]

    def last_answer_ns(self, index: int) -> int:
        """When the last answer came; 0 before the first."""
        return self._words[index * _WORDS + _LAST_ANSWER]

    def last_answered_sent_ns(self, index: int) -> int:
        return self._words[index * _WORDS + _LAST_ANSWERED_SENT]

    def ever_answered(self, index: int) -> bool:
        return self._words[index * _WORDS + _ANSWERED] > 0

    def answered_between(self, index: int, first: int, end: int) -> int:
        """How many of the probes numbered first <= seq < end have an answer."""
        base, halves, found = index * _HALVES + _SLOT_HALF, self._halves, 0
        for seq in range(first, end):
            at = base + (seq & (WINDOW - 1)) * 4
            found += halves[at + 2] == seq & 0xFFFFFFFF and halves[at + 3] != 0
        return found

    def round_trip_ns(self, index: int) -> int:
        """Of the newest answered probe; 0 before the first answer."""
        base = index * _HALVES
        return self._halves[base + _SLOT_HALF + (self._halves[base + _NEWEST] & (WINDOW - 1)) * 4 + 3]

    def rearm_gaps(self, index: int) -> None:
        """Let the next gap of this path raise an alarm again."""
        at = index * _HALVES + _MARKS
        self._halves[at] &= ~MARK_MISSING & 0xFFFFFFFF

    def _oldest_waiting(self, index: int) -> tuple[int, int] | None:
        """(sequence number, send time) of the oldest probe after the newest answered one."""
        base = index * _HALVES
        oldest = (self._halves[base + _NEWEST] + 1) & 0xFFFFFFFF
        if oldest == self._halves[base + _NEXT_SEQ]:
            return None
        return oldest, self._words[index * _WORDS + _SLOT_WORD + (oldest & (WINDOW - 1)) * 2]

    def is_silent(self, index: int, now_ns: int) -> bool:
        """Has the oldest unanswered probe waited too long?"""
        waiting = self._oldest_waiting(index)
        return waiting is not None and now_ns - waiting[1] >= self._silence[index]

    def newly_silent(self, index: int, now_ns: int) -> Alarm | None:
        """For kernels without bpf_timer: the alarm that the watchdog would raise now, once."""
        at = index * _HALVES + _MARKS
        watched = self._config_halves[index * _CONFIG_HALVES + _FLAGS] & WATCH
        if not watched or self._halves[at] & MARK_SILENT or not self.is_silent(index, now_ns):
            return None
        waiting = self._oldest_waiting(index)
        if waiting is None:
            return None
        self._halves[at] |= MARK_SILENT
        outstanding = (self.next_seq(index) - waiting[0]) & 0xFFFFFFFF
        return Alarm(now_ns, self.last_answered_sent_ns(index), index, SILENT, waiting[0], outstanding)

    def totals(self, count: int) -> dict[str, int]:
        """Counters of the first `count` paths, summed."""
        sums = (self._rows[:count, : len(COUNTERS)] + self._carried[:count]).sum(axis=0)
        return dict(zip(COUNTERS, sums.tolist(), strict=True))

    def read(
        self, now_ns: int, count: int
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float64], npt.NDArray[np.uint64]]:
        """Counters, gauges and round-trip buckets of the first `count` paths; sets the silence limits anew."""
        words = self._rows[:count].copy()
        halves = words.view(np.uint32)
        sent_ns, rtts = words[:, _SLOT_WORD::2], halves[:, _SLOT_RTT::4]
        answered = rtts != 0
        settled = (sent_ns > 0) & (answered | (sent_ns + self._settled_ns(count)[:, None] < now_ns))
        if any(self.next_seq(index) <= WINDOW for index in range(count)):
            settled &= sent_ns >= _first_answered(sent_ns, answered, halves[:, _NEXT_SEQ])[:, None]
        last_ns = words[:, _LAST_ANSWER].astype(np.int64)
        gauges = np.full((count, 5), np.nan)
        gauges[:, 0] = (halves[:, _MARKS] & MARK_SILENT) != 0
        seen = last_ns > 0
        gauges[seen, 1] = (now_ns - last_ns[seen]) / 1e9
        # The unanswered come first, for their round trip is 0.
        ordered = np.sort(rtts, axis=1)
        for index, answers in enumerate(np.count_nonzero(answered, axis=1).tolist()):
            if answers >= LEAST_ANSWERS:
                p99 = _p99(ordered[index], answers)
                gauges[index, 2] = p99 / 1e9
                self._keep_patience(index, int(p99))
        total = np.count_nonzero(settled, axis=1)
        some = total > 0
        gauges[some, 3] = 1 - np.count_nonzero(settled & answered, axis=1)[some] / total[some]
        gauges[:, 4] = halves[:, _PEER_STATE]
        buckets = words[:, _RTT_BUCKETS : _RTT_BUCKETS + RTT_BUCKETS] + self._carried_rtts[:count]
        return words[:, : len(COUNTERS)] + self._carried[:count], gauges, buckets

    def _keep_patience(self, index: int, p99_ns: int) -> None:
        """How long a probe of this path may wait from now on."""
        rtts = self._rtts[index]
        rtts.append(p99_ns)
        usual = sorted(rtts)[(len(rtts) - 1) // 2]
        self._silence[index] = max(self._interval_ns // SILENCE_SHARE, 2 * usual, LEAST_SILENCE_NS)
        self._config_words[index * _CONFIG_WORDS + _SILENCE] = self._silence[index]

    def _settled_ns(self, count: int) -> npt.NDArray[np.uint64]:
        return np.array(self._silence[:count], dtype=np.uint64) * np.uint64(2)
