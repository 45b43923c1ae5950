"""threshold: a metric of a sensor, or a counter's rate, beyond a limit for long enough.

The plainest analyzer there is, for what has a known limit. Two limits and two hold times keep it from
flapping; a reading that is unknown is no evidence either way and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mapek.config.options import error, take, take_strings
from mapek.contracts import Analyzer, Options
from mapek.knowledge.history import columns_of
from mapek.model import Entity, Finding, Frame, Symptom

if TYPE_CHECKING:
    from mapek.knowledge import Knowledge


@dataclass(slots=True)
class _State:
    ill: bool = False
    since_ns: int = 0
    """First reading on the other side of the limit; 0: the last one was on this side."""
    last_ns: int = 0
    """Last known reading: the limit was crossed after it."""
    error_ns: int = 0


class Threshold(Analyzer):
    """Analyzer `threshold`.

    Options:
        sensor: whose frames to look at.
        metric: a column as `mapek.knowledge.column_name` has it; without its labels, all that differ
            in these only, added up. Counters are judged by their rate per second.
        above, below: the limit; one of them.
        clear: the limit on the way back; by default the same.
        hold_s: how long it must be beyond before it is a symptom.
        clear_hold_s: how long it must be back; by default `hold_s`.
        entities: names of the entities to watch; by default all.
        symptom: kind of the symptom.

    The onset is the first reading beyond the limit; the crossing may be as old as the reading before it: that
    is the onset's error.
    """

    name: ClassVar[str] = "threshold"

    def __init__(self, options: Options) -> None:
        self._sensor = take(options, "sensor", str, required=True, minimum=1)
        self._metric = take(options, "metric", str, required=True, minimum=1)
        above = take(options, "above", float) if "above" in options else None
        below = take(options, "below", float) if "below" in options else None
        if (above is None) == (below is None):
            raise error(options, "above", "set either above or below", "write one of them")
        self._sign = 1.0 if above is not None else -1.0
        self._limit = above if above is not None else below if below is not None else 0.0
        self._clear = take(options, "clear", float, self._limit)
        if self._sign * (self._clear - self._limit) > 0:
            beyond = "above" if self._sign > 0 else "below"
            raise error(options, "clear", f"is {self._clear:g}, {beyond} the limit", "write a milder value")
        hold_s = take(options, "hold_s", float, 0.0, minimum=0.0)
        self._hold_ns = int(hold_s * 1e9)
        self._clear_hold_ns = int(take(options, "clear_hold_s", float, hold_s, minimum=0.0) * 1e9)
        self._only = frozenset(take_strings(options, "entities"))
        self._kind = take(options, "symptom", str, "threshold", minimum=1)
        self._columns: tuple[object, list[int]] = (None, [])
        self._states: dict[Entity, _State] = {}

    def on_frame(self, frame: Frame, knowledge: Knowledge) -> Iterable[Finding]:
        """Symptoms of the entities whose reading crossed the limit for long enough."""
        if frame.schema.sensor != self._sensor:
            return ()
        if frame.schema is not self._columns[0]:
            self._columns = (frame.schema, columns_of(frame.schema, self._metric))
        if not self._columns[1]:
            return ()
        return self._judge(frame, knowledge)

    def _judge(self, frame: Frame, knowledge: Knowledge) -> Iterator[Finding]:
        counters = len(frame.schema.counters)
        readings = np.zeros(len(frame.entities))
        for column in self._columns[1]:
            if column < counters:
                readings = readings + knowledge.rates[self._sensor][:, column]
            else:
                readings = readings + frame.gauges[:, column - counters]
        readings[~frame.valid] = np.nan
        for entity, reading in zip(frame.entities, readings.tolist(), strict=True):
            if reading != reading or (self._only and entity.name not in self._only):
                continue
            state = self._states.get(entity)
            if state is None:
                state = self._states[entity] = _State(last_ns=frame.time_ns)
            yield from self._read(entity, state, reading, frame.time_ns)
        if len(self._states) > 4 * len(frame.entities) + 1024:
            present = set(frame.entities)
            self._states = {one: state for one, state in self._states.items() if state.ill or one in present}

    def _read(self, entity: Entity, state: _State, reading: float, time_ns: int) -> Iterator[Finding]:
        beyond = self._sign * (reading - (self._clear if state.ill else self._limit)) > 0
        if beyond == state.ill:
            state.since_ns = 0
        else:
            if not state.since_ns:
                state.since_ns, state.error_ns = time_ns, time_ns - state.last_ns
            hold_ns = self._clear_hold_ns if state.ill else self._hold_ns
            if time_ns - state.since_ns >= hold_ns:
                state.ill = not state.ill
                yield Symptom(
                    entity,
                    self._kind,
                    self._sign * (reading - self._limit),
                    time_ns,
                    state.since_ns,
                    state.error_ns,
                    {"sensor": self._sensor, "metric": self._metric, "value": reading, "limit": self._limit},
                    cleared=not state.ill,
                )
                state.since_ns = 0
        state.last_ns = time_ns
