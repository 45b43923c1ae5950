"""What path_health remembers of a path and of a peer, and how it reads an answer to its inquiries.

Apart from the judging, so that the rules stand alone; the states are mutable and belong to one analyzer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from mapek.analyzers.sequential import BurstTest, SlowTest
from mapek.model import Entity, Event

State = Literal["unknown", "well", "dead", "gray"]

FRAMES: Final = 9
"""Frames whose round trips the grace goes by."""


@dataclass(slots=True)
class PathState:
    """One path. Times are those of the loop's clock, in nanoseconds; 0 is "not yet"."""

    entity: Entity
    state: State = "unknown"
    silent: bool = False
    onset_ns: int = 0
    """Of the present silence: send time of the last answered probe."""
    rtt_p99_ns: int = 0
    """Median of the last frames: one second of a machine that stalls must not slow the next verdicts."""
    rtts_ns: deque[int] = field(default_factory=lambda: deque(maxlen=FRAMES))
    loss_since_ns: int = 0
    """First missing probe of the loss that is being looked into."""
    slow_since_ns: int = 0
    """The last frame at which the slow test had nothing against this path."""
    test: BurstTest | None = None
    slow: SlowTest | None = None
    lossy: bool = False
    """A gap was seen and is being looked into."""
    quiet: int = 0
    clean: int = 0
    counted: tuple[int, int] | None = None
    answered: int = 0
    ever: bool = False
    """There was an answer once."""
    suspected: bool = False
    unanswered_ns: int = 0
    """When the first of the inquiries in a row was asked that found no answer here, while another path answered."""
    missed: float = 0.0
    """Share of probes lost in the last bursts (`lost`: of the steady ones, in the last seconds): it chooses
    whom a path is compared with. The present counts must not: the luckiest of several is better than any."""
    lost: float = 0.0


@dataclass(slots=True)
class PeerState:
    """One peer and the inquiry about it that is under way."""

    entity: Entity
    paths: dict[str, PathState]
    asking: str = ""
    due_ns: int = 0
    """When the answer must have come; later it never will."""
    bursts_ns: int = 0
    """When an inquiry last led to another at once."""
    repeats: int = 0
    credit: float = 0.0
    paid_ns: int = 0
    """Inquiries that may follow another without a pause, and when they were last counted."""
    gone: bool = False
    said: str = ""
    """The symptom that told of its absence."""
    admin_down: bool = False
    first_ns: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """An event "inquiry.answer" of kind "probe_paths", by path name."""

    asked_ns: int
    late_ns: int
    sent: Mapping[str, int] = field(default_factory=dict)
    answered: Mapping[str, int] = field(default_factory=dict)
    last_answer_ns: Mapping[str, int] = field(default_factory=dict)
    round_trip_ns: Mapping[str, int] = field(default_factory=dict)
    ever: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, event: Event) -> Answer:
        """Raises KeyError or ValueError for an event that is none."""

        def numbers(name: str) -> Sequence[int]:
            value = event.fields[name]
            return [int(one) for one in value] if isinstance(value, tuple) else []

        value = event.fields["paths"]
        names = [str(one) for one in value] if isinstance(value, tuple) else []

        def table(name: str) -> dict[str, int]:
            return dict(zip(names, numbers(name), strict=True))

        asked, late = number(event, "asked_ns"), number(event, "late_ns")
        tables = (table(name) for name in ("sent", "answered", "last_answer_ns", "round_trip_ns", "ever"))
        return cls(asked, late, *tables)

    def missing(self, name: str) -> int:
        """Probes on this path without an answer."""
        return self.sent.get(name, 0) - self.answered.get(name, 0)

    def alive(self, name: str) -> bool:
        """Did anything come back on this path since the first probe of the burst?"""
        return self.answered.get(name, 0) > 0 or self.last_answer_ns.get(name, 0) >= self.asked_ns


def number(event: Event, name: str) -> int:
    """A whole number of an event's fields; 0 if it is something else."""
    value = event.fields[name]
    return value if isinstance(value, int) else 0
