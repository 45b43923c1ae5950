"""What flows through the loop: small frozen types without behaviour.

Times are nanoseconds of CLOCK_MONOTONIC (the clock of `bpf_ktime_get_ns`), as int. Everything that
enters the loop is a `Frame` or an `Event`; everything that a plugin decides is a `Finding` or a `Plan`.
They hold plain values only, so that a recording can keep them and a replay can compare them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Scalar = int | float | str | bool
Value = Scalar | tuple[Scalar, ...]
Fields = Mapping[str, Value]

EntityKind = Literal["node", "peer", "link", "path", "service", "identity"]


@dataclass(frozen=True, slots=True, order=True)
class Entity:
    """What can fall ill and be healed.

    Args:
        kind: one of `EntityKind`.
        name: for people and for labels, unique within its kind: "b" (peer), "b/wlan0" (path), "wlan0" (link).
        generation: tells a link from an older one of the same name (its ifindex); 0 where names are never reused.
    """

    kind: EntityKind
    name: str
    generation: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Metric:
    """One column of a schema.

    Args:
        name: Prometheus form without prefix and suffix ("received_packets"); counters get `_total`.
        unit: "packets", "bytes", "seconds", ...; empty for a plain number.
        help: one line for people.
        bounds: upper bucket bounds in `unit`, for histograms only; the last bucket (+Inf) is implied.
        labels: (name, value) pairs that tell columns of one name apart ("family", "ipv4").
        sum: for a histogram, the name of the counter of the same labels that adds up what the histogram sorts, in the
            same unit or in nanoseconds; empty where the kernel counts buckets only.
    """

    name: str
    unit: str = ""
    help: str = ""
    bounds: tuple[float, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    sum: str = ""


@dataclass(frozen=True, slots=True)
class Schema:
    """The columns of a sensor's frames. `labels` name the dimension that tells entities apart."""

    sensor: str
    entity: EntityKind
    counters: tuple[Metric, ...] = ()
    gauges: tuple[Metric, ...] = ()
    histograms: tuple[Metric, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """What one sensor saw at one moment.

    Args:
        time_ns: when the kernel's values were read.
        schema: the columns.
        entities: n entities, the rows.
        counters: uint64 (n, len(schema.counters)), raw: Monitor derives rates.
        gauges: float64 (n, len(schema.gauges)).
        histograms: one uint64 (n, buckets + 1) per schema.histograms, not cumulative.
        valid: bool (n,): False for a row that could not be read.
    """

    time_ns: int
    schema: Schema
    entities: tuple[Entity, ...]
    counters: npt.NDArray[np.uint64]
    gauges: npt.NDArray[np.float64]
    valid: npt.NDArray[np.bool_]
    histograms: tuple[npt.NDArray[np.uint64], ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """An alarm of a ring buffer, a netlink message, an answer to an inquiry, a timer that came due.

    Args:
        time_ns: when it happened, by the kernel where the kernel says so.
        entity: whom it concerns.
        kind: dotted, source first: "path.silent", "link.down", "inquiry.answer", "timer".
        fields: what else is known.
    """

    time_ns: int
    entity: Entity
    kind: str
    fields: Fields = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Inquiry:
    """A question of an analyzer, answered by a touchpoint with an event "inquiry.answer" of the same id.

    Args:
        id: unique in a run and counted, not random, so that a replay asks the same.
        entity: about whom.
        kind: what to do: "probe_paths" (a burst on every path of a peer), "probe_route" (as any packet would go).
        within_ns: when the answer is due at the latest, from the moment of asking.
        fields: what the touchpoint needs to know.
    """

    id: str
    entity: Entity
    kind: str
    within_ns: int
    fields: Fields = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Something looks wrong and is being looked into; not yet a symptom, or no longer one (`cleared`)."""

    time_ns: int
    entity: Entity
    kind: str
    cleared: bool = False


@dataclass(frozen=True, slots=True)
class Symptom:
    """A verdict: this entity is ill.

    Args:
        entity: who.
        kind: "path_dead", "path_gray", "peer_gone", "peer_never_seen", or an analyzer's own.
        score: how sure, in the analyzer's own terms (a likelihood ratio's logarithm, a z-score, ...).
        detected_ns: time of the evidence that decided.
        onset_ns: when it began: for silence the send time of the last probe that came back, for loss that
            of the first missing one, otherwise an estimate with `onset_error_ns`.
        evidence: the numbers behind it.
        cleared: True when the entity is well again; ends the symptom of the same kind.
    """

    entity: Entity
    kind: str
    score: float
    detected_ns: int
    onset_ns: int
    onset_error_ns: int = 0
    evidence: Fields = field(default_factory=dict)
    cleared: bool = False


Finding = Inquiry | Suspicion | Symptom


@dataclass(frozen=True, slots=True)
class Step:
    """One action of a plan: `touchpoint` owns the handle, `action` is its verb there.

    `undo` is what restores the state before, in the same terms; None when undoing would harm more than keep.
    """

    touchpoint: str
    action: str
    fields: Fields = field(default_factory=dict)
    undo: Step | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a policy wants done about a symptom.

    Args:
        policy: its name.
        entity: whom it heals.
        steps: in order; the plan stops and is undone at the first that fails.
        expect: the inquiry whose good answer, asked after the last acknowledgement, proves the repair.
        settle_ns: how long the proof may take before the incident counts as unrecovered.
        touches: entities that no other plan may touch meanwhile.
        reason: one line for people.
        urgent: False for a voluntary move (fail-back), which starts no incident.
    """

    policy: str
    entity: Entity
    steps: tuple[Step, ...]
    expect: Inquiry | None
    settle_ns: int
    touches: tuple[Entity, ...] = ()
    reason: str = ""
    urgent: bool = True


@dataclass(frozen=True, slots=True)
class Applied:
    """What an action did: `changed` is read from the kernel's answer, so a no-op is not taken for a success."""

    acked_ns: int
    changed: bool
    detail: str = ""


IncidentState = Literal["detected", "planned", "acted", "recovered", "unrecovered"]


@dataclass(frozen=True, slots=True)
class Incident:
    """One symptom from onset to recovery; a time is 0 as long as it has not come.

    MTTR is `recovered_ns - onset_ns`, and only a recovered incident has one.
    """

    id: int
    entity: Entity
    kind: str
    state: IncidentState
    onset_ns: int
    detected_ns: int
    planned_ns: int = 0
    acted_ns: int = 0
    recovered_ns: int = 0
    policy: str = ""
    reason: str = ""


Input = Frame | Event
