"""What the bench of the kernel side makes of its numbers: which reads count, what is summed, when the worst is told."""

from __future__ import annotations

import numpy as np
import pytest

from mapek.contracts import Touchpoint
from mapek.errors import TemporaryError
from mapek.model import Entity, Frame, Schema
from mapek.simulations.bench import beside, startup
from mapek.simulations.bench.bpftrace import patience
from mapek.simulations.bench.reads_child import WARM_UP, timed
from mapek.simulations.bench.together import reads_rows

SCHEMA = Schema("sometimes", "node")


class Sometimes(Touchpoint):
    """Gives something at every `every`-th read."""

    name = "sometimes"

    def __init__(self, every):
        self.every, self.reads = every, 0

    def schema(self):
        return SCHEMA

    def read(self):
        self.reads += 1
        if self.reads % self.every:
            return None
        rows = (Entity("node", "a"),)
        return Frame(1, SCHEMA, rows, np.zeros((1, 0), np.uint64), np.zeros((1, 0)), np.ones(1, np.bool_))


async def test_only_reads_that_gave_something_are_timed():
    always, seldom, never = Sometimes(1), Sometimes(10), Sometimes(10**9)
    found = await timed({"always": always, "seldom": seldom, "never": never}, 0.5, 0.005)
    turns = always.reads
    assert len(found["always"]) == turns - WARM_UP
    assert len(found["seldom"]) == turns // 10 - WARM_UP // 10
    assert found["never"] == []


def test_the_sum_of_the_medians_is_held_against_the_target():
    alone = {"fast": [90_000, 100_000, 900_000], "slow": [150_000] * 7}
    (row,) = reads_rows("all", alone, "one interface", 0.3, each=False)
    assert (row.measured, row.verdict) == (0.25, "met")
    assert "n = 3 or more; one interface" in row.note
    names = [one.what for one in reads_rows("all", alone, "")]
    assert names == ["all", "read of slow", "read of fast"]


def test_a_sensor_that_gave_nothing_is_named_and_keeps_no_promise():
    alone = {"fast": [100_000] * 5, "idle": []}
    (promised,) = reads_rows("all", alone, "", 0.3, each=False)
    assert (promised.verdict, promised.note) == ("not measured", "gave nothing: idle")
    told, *rest = reads_rows("all", alone, "")
    assert told.measured == 0.1
    assert told.note.endswith("gave nothing: idle")
    assert [row.what for row in rest] == ["read of fast"]
    assert reads_rows("all", {}, "", 0.3)[0].verdict == "not measured"


def test_never_blocked_is_judged_by_the_worst_and_time_by_the_median():
    def part(load, gap):
        times = {"sensors_ms": load, "opening_gap_ms": gap, "gap_ms": gap, "loop_ms": load, "block_ms": gap}
        return {**times, "block": "open", "failed": []}

    parts = [[part(100.0, 1.0), part(90.0, 1.0)], [part(100.0, 7.0), part(90.0, 2.0)], [part(400.0, 1.0)] * 2]
    rows = {row.what: row for row in startup.rows_of("default set", [200.0], parts, "", promised=True)}
    assert rows["default set: load and attach, first"].measured == 100.0
    blocked = rows["default set: event loop blocked meanwhile, first"]
    assert (blocked.measured, blocked.target, blocked.verdict) == (7.0, 5.0, "missed")
    assert "median 1.0, n = 3" in blocked.note
    assert rows["default set: event loop blocked meanwhile, again"].verdict == "met"
    assert rows["default set: event loop blocked while the loop is built, first"].measured == 7.0


async def test_a_bpftrace_that_does_not_answer_is_told_in_a_line():
    import asyncio

    with pytest.raises(TemporaryError, match=r"start bpftrace: not done after 0\.01 s"):
        async with patience("start", 0.01):
            await asyncio.sleep(10)


async def test_a_rival_that_does_not_answer_leaves_the_other_jobs_their_rows(monkeypatch):
    async def counters():
        raise TemporaryError("start", "bpftrace", "not done after 60 s", "leave it the cores")

    async def nothing():
        return []

    monkeypatch.setattr(beside, "_counters", counters)
    for name in ("_histogram", "_events"):
        monkeypatch.setattr(beside, name, nothing)
    (row,) = await beside.measure(beside.Budget())
    assert (row.what, row.measured) == ("counters: beside others", None)
    assert "not done after 60 s" in row.note
