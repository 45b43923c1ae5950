"""What the loop counts about itself: plain counters and histograms in memory, read by whoever exports them.

The core must not import an exporter, and counting happens on the hot path, so this is dicts and ints and
nothing else. The number of label sets of one name is bounded: past `MAX_SERIES` the rest shares the label
value "(other)", which loses detail instead of memory.

The names below are the contract between the loop, which counts, and the service, which exports. A name that
is not listed is exported too, without a help text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from mapek.model import Incident

Labels = tuple[tuple[str, str], ...]
"""Label names and values, sorted by name."""

MAX_SERIES: Final = 256
OTHER: Final = "(other)"

BOUNDS: Final = tuple(
    round(step * 10.0**exponent, 9) for exponent in range(-5, 2) for step in (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
)
"""Upper bounds in seconds, 10 µs to 70 s, six to a decade: 3 ms and 5 ms are told apart."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a name of the tally means; `labels` are the names that belong to it."""

    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str


KNOWN: Final[Mapping[str, Known]] = {
    "incidents": Known(
        "gauge", ("kind", "state"), "Incidents in each state; the ended ones since the start."
    ),
    "suspicions": Known("counter", ("kind",), "Suspicions raised."),
    "cleared_suspicions": Known("counter", ("kind",), "Suspicions that an inquiry found to be false."),
    "symptoms": Known("counter", ("kind",), "Verdicts: entities found ill."),
    "inquiries": Known("counter", ("kind",), "Questions asked before a verdict or to prove a repair."),
    "plans": Known("counter", ("policy", "outcome"), "Plans by what became of them."),
    "inputs": Known("counter", ("type",), "Frames and events that entered the loop."),
    "queue_drops": Known("counter", ("queue",), "Items dropped because a queue was full."),
    "plugin_failures": Known("counter", ("plugin",), "Errors of a plugin that the loop survived."),
    "blocked_loop": Known("counter", ("plugin",), "Times a plugin held the event loop too long."),
    "recovery_seconds": Known("histogram", ("policy",), "MTTR: onset to the first proof of recovery."),
    "recovery_stage_seconds": Known("histogram", ("policy", "stage"), "MTTR by stage."),
    "tick_lateness_seconds": Known("histogram", (), "How late the loop's timers ran."),
    "timer_lateness_seconds": Known("histogram", (), "How late the loop's timerfd woke it."),
    "blocked_loop_seconds": Known("histogram", ("plugin",), "How long a plugin held the event loop."),
}


@dataclass(slots=True)
class Histogram:
    """Counts per bucket of `BOUNDS` (not cumulative; the last is what lies above), and the sum in seconds."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    sum: float = 0.0

    def observe(self, seconds: float) -> None:
        """Add one value; a negative one counts as zero: stamps of two sources differ a little."""
        seconds = max(seconds, 0.0)
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds


class Tally:
    """Counters by name and labels. Not thread-safe: it belongs to the event loop's thread."""

    def __init__(self) -> None:
        self.counters: dict[str, dict[Labels, int]] = {}
        self.histograms: dict[str, dict[Labels, Histogram]] = {}
        self._state: dict[int, tuple[str, str]] = {}

    def count(self, name: str, labels: Mapping[str, str] | None = None, n: int = 1) -> None:
        """Add `n`; negative only for a gauge."""
        series = self.counters.setdefault(name, {})
        key = _key(labels, series)
        series[key] = series.get(key, 0) + n

    def observe(self, name: str, labels: Mapping[str, str] | None, seconds: float) -> None:
        """Add one value to a histogram."""
        series = self.histograms.setdefault(name, {})
        key = _key(labels, series)
        found = series.get(key)
        if found is None:
            found = series[key] = Histogram()
        found.observe(seconds)

    def total(self, name: str) -> int:
        """The sum of a counter over all of its labels."""
        return sum(self.counters.get(name, {}).values())

    def incident(self, incident: Incident) -> None:
        """Note that `incident` has changed its state: call it once for each change, beginning with detected.

        A recovered one adds its MTTR and its stages to the histograms; no other does.
        """
        before = self._state.pop(incident.id, None)
        if before is not None:
            self.count("incidents", {"state": before[0], "kind": before[1]}, -1)
        self.count("incidents", {"state": incident.state, "kind": incident.kind})
        if incident.state in ("recovered", "unrecovered"):
            if incident.state == "recovered":
                self._recovered(incident)
        else:
            self._state[incident.id] = (incident.state, incident.kind)

    def _recovered(self, incident: Incident) -> None:
        policy = incident.policy
        self.observe(
            "recovery_seconds", {"policy": policy}, (incident.recovered_ns - incident.onset_ns) / 1e9
        )
        for stage, seconds in stages(incident).items():
            self.observe("recovery_stage_seconds", {"policy": policy, "stage": stage}, seconds)


def stages(incident: Incident) -> dict[str, float]:
    """Seconds spent in each stage that `incident` has been through: detect, plan, act, verify."""
    stamps = (
        incident.onset_ns,
        incident.detected_ns,
        incident.planned_ns,
        incident.acted_ns,
        incident.recovered_ns,
    )
    names = ("detect", "plan", "act", "verify")
    pairs = zip(names, stamps, stamps[1:], strict=False)
    return {name: (end - begin) / 1e9 for name, begin, end in pairs if begin and end}


def _key(labels: Mapping[str, str] | None, series: Mapping[Labels, object]) -> Labels:
    if not labels:
        return ()
    key = tuple(sorted(labels.items()))
    if len(series) >= MAX_SERIES and key not in series:
        return tuple((name, OTHER) for name, _ in key)
    return key
