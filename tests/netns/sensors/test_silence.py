"""link_watch against a neighbour that is nothing but a reflector: silence, gaps, inquiries, and its own faults."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from itertools import pairwise

import numpy as np
import pytest

from mapek.model import Entity, Event, Inquiry
from mapek.sensors import link_watch_paths
from mapek.sensors.link_watch import ALARM_BURST, LinkWatch
from tests.netns.sensors.neighbour import Node, neighbour, topology
from tests.netns.sensors.wires import run
from tests.support.machine import patience

L0, L1 = "b/l0", "b/l1"


@pytest.fixture
def other(space, spec, request):
    with neighbour(space, spec, getattr(request, "param", "IPv4")) as found:
        yield found


@asynccontextmanager
async def watching(other, *, measure=True, **options):
    """The touchpoint, open, with both paths answered."""
    node = Node(topology(other.family))
    watch = LinkWatch({"interval_ms": patience(2.0), "pin": "no", **options})
    try:
        await watch.open(node.surroundings)
        await node.until(lambda: (other.states[:2]["reflected"] >= 32).all())
        await node.until(lambda: watch.status().counts["answered"] >= 64)
        if measure:
            watch.read()  # from here on it goes by the round trips that it saw
        yield watch, node
    finally:
        await node.close(watch)


TIMERS = pytest.mark.parametrize(
    "timer", [pytest.param("auto", marks=pytest.mark.needs("bpf_timer")), "user"]
)


@TIMERS
@pytest.mark.parametrize("other", ["IPv4", "link-local"], indirect=True)
@pytest.mark.kernel
async def test_silence_is_told_once_and_so_is_its_end(other, timer):
    async with watching(other, timer=timer) as (watch, node):
        assert ("from user space" in " ".join(watch.status().degraded)) == (timer == "user")
        began = time.monotonic_ns()
        other.hush(0)
        silent = await node.heard("path.silent")
        await node.until(lambda: watch.status().counts["sent"] >= silent.fields["seq"] * 2 + 40)
        assert (silent.entity, node.kinds()) == (Entity("path", L0), ["path.silent"])
        assert silent.time_ns > began
        # the newest answered probe was sent before the silence, at most an interval and a pass of the scheduler ago
        assert began - 100_000_000 < silent.fields["onset_ns"] < silent.time_ns
        assert silent.fields["outstanding"] >= 1
        frame = watch.read()
        names = [metric.name for metric in frame.schema.gauges]
        assert frame.gauges[:, names.index("silent")].tolist() == [1, 0]
        other.speak(0)
        back = await node.heard("path.back")
        sent = watch.status().counts["sent"]
        await node.until(lambda: watch.status().counts["sent"] >= sent + 40)
        assert node.kinds() == ["path.silent", "path.back"]
        assert silent.time_ns < back.fields["sent_ns"] < back.time_ns
        assert watch.read().gauges[:, names.index("silent")].tolist() == [0, 0]


@TIMERS
async def test_a_sender_that_stands_still_suspects_nobody(other, timer):
    async with watching(other, timer=timer) as (watch, node):
        watch._prober.keep_probing([])
        sent = watch.status().counts["sent"]
        other.hush(0, 1)
        await asyncio.sleep(0.3)  # 150 intervals, and far beyond every limit: time is what is tested
        assert watch.status().counts["sent"] <= sent + 2
        assert node.kinds() in ([], ["path.silent"], ["path.silent"] * 2)  # of probes that were under way
        told = len(node.events)
        await asyncio.sleep(0.2)
        assert len(node.events) == told
        if watch.status().counts["sent"] == watch.status().counts["answered"]:
            assert node.events == []


async def test_a_gap_is_told_on_the_active_path_only(other, monkeypatch):
    # an answer that fails to come must not be silence before the next one shows the gap
    monkeypatch.setattr(link_watch_paths, "UNKNOWN_SILENCE_NS", 3_000_000_000)
    async with watching(other, measure=False) as (watch, node):
        node.knowledge.facts["active_path/b"] = L0
        watch.on_event(Event(1, Entity("path", L0), "path.active"))
        for times in (1, 2):
            row = other.states[0]
            seen = int(row["reflected"])
            other.hush(0, 1)
            sent = watch.status().counts["sent"]
            await node.until(lambda sent=sent: watch.status().counts["sent"] >= sent + 2)
            other.speak(0, 1)
            missing = await node.heard("path.missing", times)
            assert missing.entity.name == L0
            assert missing.fields["count"] >= 1
            assert missing.fields["onset_ns"] < missing.time_ns
            await node.until(lambda seen=seen, row=row: row["reflected"] >= seen + 4)
        assert node.kinds(L1).count("path.missing") == 0
        assert node.kinds(L0).count("path.missing") == 2
        assert watch.status().counts["forward_lost"] >= 2


async def test_a_flapping_path_is_muted_and_its_state_still_told(other):
    async with watching(other) as (watch, node):
        for cycle in range(1, ALARM_BURST + 1):
            other.hush(1)
            await node.heard("path.silent", cycle)
            other.speak(1)
            await node.until(
                lambda cycle=cycle: cycle == ALARM_BURST or node.kinds().count("path.back") == cycle
            )
        answered = watch.status().counts["answered"]
        await node.until(lambda: watch.status().counts["answered"] >= answered + 20)
        other.hush(1)
        told = node.kinds().count("path.silent")
        sent = watch.status().counts["sent"]
        await node.until(lambda: watch.status().counts["sent"] >= sent + 60)
        assert told == node.kinds().count("path.silent") == ALARM_BURST
        watch.read()  # a second later: alarms are given back, and what was missed is said, once
        assert node.kinds(L1)[-1] == "path.silent"
        sent = watch.status().counts["sent"]
        await node.until(lambda: watch.status().counts["sent"] >= sent + 60)
        states = [kind for kind in node.kinds(L1) if kind in ("path.silent", "path.back")]
        assert all(one != two for one, two in pairwise(states)), states
        other.speak(1)
        await node.until(lambda: node.kinds(L1)[-1] == "path.back")
        assert node.kinds(L0) == []


async def test_what_the_neighbour_says(other):
    async with watching(other) as (watch, node):
        other.probe(0, 1)
        other.probe(0, 2, state=1)
        other.probe(0, 3, state=1)
        other.probe(0, 1, epoch=2)
        other.probe(1, 1)
        await node.heard("path.peer_restarted")
        await node.until(lambda: watch.status().counts["reflected"] == 5)
        assert node.kinds(L0) == ["path.peer_admin_down", "path.peer_restarted", "path.peer_up"]
        other.probe(0, 1, epoch=2)
        other.probe(0, 9)
        await node.until(lambda: watch.status().counts["replayed"] == 2)
        assert watch.status().counts["reflected"] == 5


@pytest.mark.kernel
async def test_a_stop_is_announced_and_a_restart_known(other):
    async with watching(other):
        other.alarms()
    assert other.states[:2]["peer_state"].tolist() == [1, 1]
    assert {(alarm.kind, alarm.path, alarm.count) for alarm in other.alarms()} == {(5, 0, 1), (5, 1, 1)}
    before = other.states[:2]["peer_epoch"].tolist()
    async with watching(other):
        assert other.states[:2]["peer_state"].tolist() == [0, 0]
        assert all(new > old for new, old in zip(other.states[:2]["peer_epoch"], before, strict=True))
        assert {(alarm.kind, alarm.path) for alarm in other.alarms()} == {(5, 0), (5, 1), (6, 0), (6, 1)}


@pytest.mark.kernel
async def test_an_inquiry_on_all_paths(other):
    async with watching(other) as (watch, node):
        other.hush(1)
        assert watch.ask(Inquiry("x:1", Entity("peer", "b"), "probe_paths", 30_000_000, {"count": 8}))
        answer = (await node.heard("inquiry.answer")).fields
        assert answer["id"] == "x:1"
        assert answer["paths"] == (L0, L1)
        assert all(sent >= 8 for sent in answer["sent"])
        assert answer["answered"][0] >= 8
        assert answer["answered"][1] == 0
        assert answer["ever"] == (True, True)
        assert answer["last_answer_ns"][1] < answer["asked_ns"] < answer["last_answer_ns"][0]
        assert not watch.ask(Inquiry("x:2", Entity("peer", "stranger"), "probe_paths", 1))


async def test_an_inquiry_on_the_route_goes_where_the_route_goes(other):
    async with watching(other) as (watch, node):
        run("ip route add 10.1.0.2 via 10.0.1.2 src 10.1.0.1")
        with other.space.entered():
            run("ip route add 10.1.0.1 via 10.0.1.1 src 10.1.0.2")
        assert watch.ask(Inquiry("x:1", Entity("peer", "b"), "probe_route", 2_000_000_000))
        answer = (await node.heard("inquiry.answer")).fields
        assert answer["ok"] is True
        assert other.states[2]["reflected"] >= 1
        other.hush(2)
        assert watch.ask(Inquiry("x:2", Entity("peer", "b"), "probe_route", 50_000_000))
        answer = (await node.heard("inquiry.answer", 2)).fields
        assert (answer["id"], answer["ok"]) == ("x:2", False)
        assert answer["sent"] > 10


async def test_a_long_interval_does_not_hold_up_the_close(other):
    node = Node(topology())
    watch = LinkWatch({"interval_ms": 60_000.0, "pin": "no"})
    await watch.open(node.surroundings)
    began = time.monotonic()
    await node.close(watch)
    assert time.monotonic() - began < 5


async def test_what_was_sent_before_the_peer_came_is_no_loss(other):
    other.hush(0)
    node, watch = Node(topology()), LinkWatch({"interval_ms": 2.0, "pin": "no"})
    try:
        await watch.open(node.surroundings)
        await node.until(lambda: watch.status().counts["sent"] > 200)
        names = [metric.name for metric in watch.schema().gauges]
        loss = names.index("window_loss")
        assert np.isnan(watch.read().gauges[0, loss])
        other.speak(0)
        seen = int(other.states[0]["reflected"])
        await node.until(lambda: other.states[0]["reflected"] > seen + 50)
        assert watch.read().gauges[0, loss] < 0.1
        lost = watch.read().counters[0, [metric.name for metric in watch.schema().counters].index("lost")]
        assert lost > 0  # the counter has them
    finally:
        await node.close(watch)
