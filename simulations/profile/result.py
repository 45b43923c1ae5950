"""What an A/B has measured, and what it says: rounds of trials, and the comparisons that are made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mapek.simulations.paired import Comparison, compare
from mapek.simulations.profile.loads import CallsLoad, FlowLoad, Metric
from mapek.simulations.profile.subjects import EMPTY, OTHERS, WITH, WITHOUT, Subject

if TYPE_CHECKING:
    from mapek.simulations.profile.switch import Share
    from mapek.simulations.report import Json


@dataclass(frozen=True, slots=True)
class Told:
    """A comparison with its place: of which metric, of which settings."""

    metric: str
    a: str
    b: str
    found: Comparison


@dataclass(slots=True)
class Result:
    """Grows while it is measured.

    Attributes:
        rounds: by setting, then by metric; each round has all settings.
        shares: what the sensor's programs run for, by bpf_stats.
        complete: the time was up; else it was cut short.
    """

    subject: Subject
    seed: int
    rounds: list[dict[str, dict[str, float]]] = field(default_factory=list)
    shares: list[Share] = field(default_factory=list)
    seconds: float = 0.0
    complete: bool = False

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Of its load."""
        return FlowLoad.metrics if self.subject.load == "flow" else CallsLoad.metrics

    def values(self, setting: str, metric: str) -> list[float]:
        """By round, in ns."""
        return [one[setting][metric] for one in self.rounds]

    def comparisons(self) -> list[Told]:
        """With and without; then beside empty programs, and of other processes than those watched."""
        if not self.rounds:
            return []
        settings, found = self.subject.settings, []
        for metric in self.metrics:
            found.append(self.compare(metric, WITHOUT, WITH))
            if metric == next(iter(self.metrics)):
                found += [self.compare(metric, WITHOUT, OTHERS)] if OTHERS in settings else []
                found += [self.compare(metric, EMPTY, WITH)] if EMPTY in settings else []
        return found

    def compare(self, metric: str, a: str, b: str) -> Told:
        """Two settings by one metric."""
        decides = self.metrics[metric].decides
        return Told(metric, a, b, compare(self.values(a, metric), self.values(b, metric), decides))

    def json(self) -> dict[str, Json]:
        """As the command's document has it (docs/PROFILE.md)."""
        return {
            "sensor": self.subject.sensor,
            "load": self.subject.load,
            "options": {name: str(value) for name, value in self.subject.options.items()},
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
            "interrupted": not self.complete,
            "programs": [
                {
                    "name": one.program,
                    "runs_each": round(one.each, 4),
                    "runs": one.runs.count,
                    "ns_per_run": None if one.runs.mean_ns is None else round(one.runs.mean_ns, 2),
                }
                for one in self.shares
            ],
            "comparisons": [_document(one) for one in self.comparisons()],
            "samples": {
                setting: {metric: self.values(setting, metric) for metric in self.metrics}
                for setting in self.subject.settings
            },
        }


def _document(told: Told) -> dict[str, Json]:
    found = told.found
    return {
        "metric": told.metric,
        "a": told.a,
        "b": told.b,
        "pairs": found.pairs,
        "a_median": found.a,
        "a_p5_p95": list(found.a_spread),
        "b_median": found.b,
        "b_p5_p95": list(found.b_spread),
        "verdict": found.verdict,
        "difference": found.difference,
        "interval": None if found.interval is None else list(found.interval),
        "decides": found.decides,
    }
