"""Inquiries of link_watch while they run: probes go out now, the answer is an event when it is due.

A burst goes out in rounds, since a machine that stands still for a moment can hide the reflections of one
round on one link; two rounds half a grace apart are hidden together by a longer standstill only, and that shows
in `late_ns`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from mapek.contracts import Surroundings
from mapek.model import Entity, Event, Inquiry, Value
from mapek.sensors.link_watch_layout import Alarm
from mapek.sensors.link_watch_paths import PathTable
from mapek.sensors.prober import Batches, Prober

COUNT: Final = 8
ROUNDS: Final = 2
REPEAT_NS: Final = 1_000_000
"""A probe of the repaired route is repeated this often: the first may meet a neighbour entry still to be resolved."""

Forget = Callable[[str, None], object]


def rounds_of(inquiry: Inquiry) -> tuple[int, int]:
    """(probes a round, rounds) that an inquiry asks for."""
    rounds = max(int(inquiry.fields.get("rounds", ROUNDS)), 1)  # type: ignore[arg-type]
    return max(int(inquiry.fields.get("count", COUNT)) // rounds, 1), rounds  # type: ignore[arg-type]


class PathInquiry:
    """ "probe_paths": `count` probes on every path of a peer at once; answered when `within_ns` is over.

    The answer's tuples run over the paths of the peer: names, probes sent and answered, when the last answer came
    (any answer, 0: never), how long the newest took, and whether there ever was one. `late_ns` is by how much we
    were late ourselves.
    """

    def __init__(
        self,
        inquiry: Inquiry,
        entities: Sequence[Entity],
        indices: Sequence[int],
        batches: Batches,
        table: PathTable,
        prober: Prober,
        around: Surroundings,
        forget: Forget,
    ) -> None:
        self._inquiry, self._entities, self._table = inquiry, entities, table
        self._prober, self._around, self._forget = prober, around, forget
        self._indices, self._batches = indices, batches
        self._rounds = rounds_of(inquiry)[1]
        self._delay_ns = int(inquiry.fields.get("delay_ns", 0))  # type: ignore[arg-type]
        self._first: list[int] = []
        self._ends: list[tuple[int, list[int]]] = []
        self._asked_ns = self._due_ns = 0
        self._cancelled = False

    def begin(self) -> None:
        clock = self._around.clock
        if self._delay_ns:
            clock.call_at(clock.now_ns() + self._delay_ns, self._send_first)
        else:
            self._send_first()

    def _send_first(self) -> None:
        if self._cancelled:
            return
        clock, within = self._around.clock, self._inquiry.within_ns
        self._first = [self._table.next_seq(index) for index in self._indices]
        self._asked_ns = clock.now_ns()
        self._due_ns = self._asked_ns + within
        for number in range(1, self._rounds):
            clock.call_at(self._asked_ns + within * number // self._rounds, self._send)
        clock.call_at(self._due_ns, self._answer)
        self._send()

    def _send(self) -> None:
        if not self._cancelled:
            self._prober.send(self._batches)
            now = self._around.clock.now_ns()
            self._ends.append((now, [self._table.next_seq(index) for index in self._indices]))

    def _answer(self) -> None:
        if self._cancelled:
            return
        table, now = self._table, self._around.clock.now_ns()
        # a round that we sent too late, or a steady probe of just now, is on its way and not missing
        old_enough = now - self._inquiry.within_ns // (2 * self._rounds)
        ends = next((ends for sent_ns, ends in reversed(self._ends) if sent_ns <= old_enough), self._first)
        answered = [
            table.answered_between(index, first, end)
            for index, first, end in zip(self._indices, self._first, ends, strict=True)
        ]
        fields: dict[str, Value] = {
            "id": self._inquiry.id,
            "kind": self._inquiry.kind,
            "asked_ns": self._asked_ns,
            "late_ns": max(now - self._due_ns, 0),
            "paths": tuple(self._entities[index].name for index in self._indices),
            "sent": tuple(end - first for first, end in zip(self._first, ends, strict=True)),
            "answered": tuple(answered),
            "last_answer_ns": tuple(table.last_answer_ns(index) for index in self._indices),
            "round_trip_ns": tuple(table.round_trip_ns(index) for index in self._indices),
            "ever": tuple(table.ever_answered(index) for index in self._indices),
        }
        self._forget(self._inquiry.id, None)
        self._around.emit(Event(now, self._inquiry.entity, "inquiry.answer", fields))

    def answered(self, alarm: Alarm) -> None:
        """Single answers do not matter here."""

    def cancel(self) -> None:
        self._cancelled = True


class RouteInquiry:
    """ "probe_route": probes to the peer's own addresses, routed like any packet, until each is answered.

    Only a probe that was sent after the inquiry began counts, so what is proved is the way of now.
    """

    def __init__(
        self,
        inquiry: Inquiry,
        indices: Sequence[int],
        batches: Batches,
        prober: Prober,
        around: Surroundings,
        forget: Forget,
    ) -> None:
        self._inquiry, self._prober, self._around, self._forget = inquiry, prober, around, forget
        self._batches = batches
        self._waiting = set(indices)
        self._asked_ns = self._due_ns = 0
        self._sent = 0
        self._ended = False

    def begin(self) -> None:
        self._asked_ns = self._around.clock.now_ns()
        self._due_ns = self._asked_ns + self._inquiry.within_ns
        self._send()

    def _send(self) -> None:
        clock = self._around.clock
        if self._ended:
            return
        if clock.now_ns() >= self._due_ns:
            self._end(clock.now_ns(), ok=False)
            return
        self._sent += self._prober.send(self._batches)
        clock.call_at(min(clock.now_ns() + REPEAT_NS, self._due_ns), self._send)

    def answered(self, alarm: Alarm) -> None:
        """An answer came on a routed path; the last one that was missing proves the route."""
        if self._ended or alarm.path not in self._waiting or alarm.onset_ns < self._asked_ns:
            return
        self._waiting.discard(alarm.path)
        if not self._waiting:
            self._end(alarm.time_ns, ok=True)

    def _end(self, time_ns: int, *, ok: bool) -> None:
        self._ended = True
        self._forget(self._inquiry.id, None)
        fields: dict[str, Value] = {
            "id": self._inquiry.id,
            "kind": self._inquiry.kind,
            "asked_ns": self._asked_ns,
            "ok": ok,
            "sent": self._sent,
        }
        self._around.emit(Event(time_ns, self._inquiry.entity, "inquiry.answer", fields))

    def cancel(self) -> None:
        self._ended = True
