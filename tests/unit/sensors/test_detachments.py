"""How often what somebody takes off is put back, and what is said of it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from mapek.clock import VirtualClock
from mapek.contracts import Surroundings
from mapek.knowledge import Knowledge
from mapek.model import Entity, Event
from mapek.sensors.detachments import FIRST_NS, LAST_NS, MOST, WINDOW_NS, Detachments
from mapek.testing import some_topology

SECOND = 1_000_000_000
L0 = Entity("link", "l0", 7)


class Bench:
    """A sensor whose every attempt to attach is noted; with `works` it does attach."""

    def __init__(self, *, reattach: bool = True, works: bool = True) -> None:
        self.clock = VirtualClock()
        self.events: list[Event] = []
        self.tried: list[int] = []
        self.works = works
        self.it = Detachments("sensor", "count on", reattach, self.again)
        self.it.open(
            Surroundings(
                self.events.append,
                self.clock,
                Knowledge(some_topology()),
                lambda work: asyncio.run(work),  # type: ignore[arg-type]
            )
        )

    async def again(self, link: Entity) -> None:
        self.tried.append(self.clock.now_ns())
        if self.works:
            self.it.back(link)
        else:
            self.it.failed(link)

    def advance(self, ns: int) -> None:
        self.clock.advance_to(self.clock.now_ns() + ns)

    def kinds(self) -> list[str]:
        return [one.kind for one in self.events]


def test_put_back_at_once_then_later_then_never():
    bench = Bench()
    waited = []
    for _ in range(MOST):
        begun = bench.clock.now_ns()
        bench.it.lost(L0, "its link was detached by force")
        bench.advance(20 * SECOND)
        waited.append((bench.tried[-1] - begun) // SECOND)
    assert waited == [0, 1, 2, 4, 8]
    assert bench.it.counts() == {"detached": MOST, "reattached": MOST}
    assert not bench.it.stays_off(L0)
    why = bench.it.lost(L0, "its link was detached by force")
    assert str(why) == (
        "count on l0: somebody took our program off: its link was detached by force; the 6th time in 10 min, so it "
        "stays off: find who does it, and restart the agent"
    )
    bench.advance(WINDOW_NS * 2)
    assert len(bench.tried) == MOST
    assert bench.it.stays_off(L0)
    assert bench.it.counts() == {"detached": MOST + 1, "reattached": MOST}
    assert bench.kinds() == ["sensor.detached", "sensor.reattached"] * MOST + ["sensor.detached"]
    assert bench.events[1].fields == {"sensor": "sensor", "after_ns": 0}
    # Another interface of that name is not the one that was given up.
    bench.it.back(Entity("link", "l0", 8))
    assert bench.it.counts()["reattached"] == MOST


def test_seldom_is_for_ever():
    bench = Bench()
    for _ in range(4 * MOST):
        bench.it.lost(L0, "gone")
        bench.advance(WINDOW_NS // MOST + SECOND)
    assert bench.it.counts() == {"detached": 4 * MOST, "reattached": 4 * MOST}


def test_what_cannot_be_put_back_is_tried_with_a_back_off():
    bench = Bench(works=False)
    bench.it.lost(L0, "gone")
    bench.advance(600 * SECOND)
    gaps = [b - a for a, b in zip(bench.tried, bench.tried[1:], strict=False)]
    assert gaps[:8] == [min(FIRST_NS << k, LAST_NS) for k in range(8)]
    bench.works = True
    bench.advance(61 * SECOND)
    assert bench.kinds() == ["sensor.detached", "sensor.reattached"]
    tries = len(bench.tried)
    bench.advance(600 * SECOND)
    assert len(bench.tried) == tries


def test_not_where_it_was_said(caplog: pytest.LogCaptureFixture):
    bench = Bench(reattach=False)
    with caplog.at_level(logging.WARNING):
        why = bench.it.lost(L0, "its filter is gone")
    assert [one.getMessage() for one in caplog.records] == [str(why)]
    bench.advance(WINDOW_NS)
    assert bench.tried == []
    assert bench.it.stays_off(L0)


def test_nothing_happens_after_it_was_closed():
    bench = Bench()
    bench.it.lost(L0, "gone")
    bench.it.close()
    bench.it.close()
    bench.advance(WINDOW_NS)
    assert bench.tried == []
