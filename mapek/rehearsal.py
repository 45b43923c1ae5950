"""Goes through the motions once before it counts: cold code costs twice the time of warm code.

A repair is rare, so without this the interpreter meets its hot path for the first time in the very moment
that matters. The analyzers and policies of the configuration, in instances of their own, heal a few made-up
failures in virtual time; nothing outside is touched and nothing of it is kept.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mapek.clock import VirtualClock
from mapek.contracts import Analyzer, Policy
from mapek.knowledge import Knowledge, Peer, Topology
from mapek.loop import Loop
from mapek.model import Event, Frame, Inquiry, Metric, Plan, Schema, Value

ROUNDS = 12
"""The interpreter specialises a piece of code after eight runs."""


class _Stage:
    """Answers every inquiry by saying that all paths live but the first, and carries out every plan."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.loop: Loop | None = None

    def ask(self, inquiry: Inquiry) -> bool:
        if self.loop is None or (peer := self.loop.knowledge.topology.peer_of(inquiry.entity)) is None:
            return False
        names = tuple(path.entity.name for path in peer.paths)
        now = self._clock.now_ns()
        dead = self.loop.knowledge.facts.get(f"active_path/{peer.name}")
        answered = tuple(0 if name == dead else 8 for name in names)
        fields: dict[str, Value] = {
            "id": inquiry.id,
            "kind": inquiry.kind,
            "asked_ns": now,
            "late_ns": 0,
            "ok": True,
            "paths": names,
            "sent": tuple(8 for _ in names),
            "answered": answered,
            "last_answer_ns": tuple(now if some else 0 for some in answered),
            "round_trip_ns": tuple(100_000 for _ in names),
            "ever": tuple(True for _ in names),
        }
        self.loop.feed(Event(now, inquiry.entity, "inquiry.answer", fields))
        return True

    def carry_out(self, plan_id: str, plan: Plan) -> None:
        now = self._clock.now_ns()
        if self.loop is None:
            return
        fields: dict[str, Value] = {
            "id": plan_id,
            "planned_ns": now,
            "policy": plan.policy,
            "acked_ns": now,
            "changed": True,
            "detail": "",
        }
        self.loop.feed(Event(now, plan.entity, "plan.acted", fields))


_SEEN = Schema(
    "link_watch",
    "path",
    counters=(Metric("answered"), Metric("lost"), Metric("late")),
    gauges=(Metric("silent"), Metric("answer_age"), Metric("round_trip_p99"), Metric("window_loss")),
)
"""The columns of link_watch that the hot path reads."""


def _all_well(peer: Peer, now_ns: int) -> Frame:
    rows = len(peer.paths)
    return Frame(
        now_ns,
        _SEEN,
        tuple(path.entity for path in peer.paths),
        np.zeros((rows, len(_SEEN.counters)), np.uint64),
        np.tile([0.0, 0.001, 0.0001, 0.0], (rows, 1)),
        np.ones(rows, np.bool_),
    )


async def rehearse(topology: Topology, analyzers: Iterable[Analyzer], policies: Iterable[Policy]) -> int:
    """Let these plugins heal made-up failures of every peer's first path; returns how many incidents they healed."""
    clock = VirtualClock(1_000_000_000)
    stage = _Stage(clock)
    healed = 0
    for _ in range(ROUNDS):
        knowledge = Knowledge(topology)
        async with Loop(knowledge, clock, (), analyzers, policies, effects=stage, replay=True) as loop:
            stage.loop = loop
            for peer in topology.peers.values():
                loop.feed(_all_well(peer, clock.now_ns()))
                first = peer.paths[0].entity
                loop.feed(Event(clock.now_ns(), first, "path.active", {"peer": peer.name, "before": ""}))
                silence: dict[str, Value] = {"onset_ns": clock.now_ns(), "seq": 1, "outstanding": 1}
                clock.advance_to(clock.now_ns() + 1_000_000)
                loop.feed(Event(clock.now_ns(), first, "path.silent", silence))
            healed += sum(one.policy != "none" for one in loop.incidents.ended)
    return healed
