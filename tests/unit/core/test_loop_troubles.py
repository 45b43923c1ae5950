"""What plugins, subscribers and inputs do wrong is counted against them, and the loop goes on."""

import asyncio
import logging
import time

import numpy as np
import pytest

from mapek.clock import RealClock
from mapek.contracts import Analyzer, Policy, Touchpoint
from mapek.errors import DegradedError, PluginError
from mapek.knowledge import Knowledge
from mapek.loop import QUEUE, Loop
from mapek.model import Event, Frame, Metric, Schema, Symptom
from tests.unit.core.fakes import (
    MS,
    SECOND,
    START,
    B,
    Effector,
    Heal,
    Node,
    Words,
    counted,
    settle,
    step,
    topology,
)


class Broken(Analyzer):
    name = "broken"

    def start(self, knowledge):
        raise DegradedError("start", "broken", "it always does", "")

    def on_event(self, event, knowledge):
        yield Symptom(B, "never seen: the generator fails before its end", 1.0, 0, 0)
        raise KeyError("no such key")


class BrokenPolicy(Policy):
    name = "broken_policy"

    def plan(self, symptom, knowledge):
        raise ValueError("no plan")

    def on_event(self, event, knowledge):
        raise ValueError("no event")


class BrokenEar(Touchpoint):
    name = "broken_ear"
    period_ns = 0

    def on_event(self, event):
        raise RuntimeError("too loud")

    def ask(self, inquiry):
        raise RuntimeError("do not ask")


async def test_plugins_that_raise_are_counted_and_the_others_heal():
    effector = Effector()
    policies = [BrokenPolicy(), Heal(step("move"))]
    async with Node([BrokenEar(), effector], [Broken(), Words()], policies) as node:
        node.say("ill")
        await node.run(100 * MS)
        assert node.incident().state == "recovered"
        assert node.incident().kind == "sick"
        failures = counted(node.loop, "plugin_failures")
        assert set(failures) == {"broken", "broken_policy", "broken_ear"}
        assert min(failures.values()) >= 3
        assert node.loop.supervision.failures["broken"] == "KeyError: 'no such key'"


@pytest.mark.parametrize(
    "event",
    [
        Event(START, B, "inquiry.answer", {}),
        Event(START, B, "plan.acted", {}),
        Event(START, B, "plan.overdue", {"ok": True}),
    ],
    ids=lambda event: event.kind,
)
async def test_an_event_that_breaks_its_contract_takes_no_other_along(event):
    class Emits(Touchpoint):
        name = "emits"
        period_ns = 0

        async def open(self, surroundings):
            self.emit = surroundings.emit

        def on_event(self, heard):
            if heard.kind == "begin":
                self.emit(event)
                self.emit(Event(START, B, "ill"))

    async with Node([Emits(), Effector()], [Words()], [Heal(step("move"))]) as node:
        node.say("begin")
        await node.run(100 * MS)
        assert node.incident().state == "recovered"
        assert counted(node.loop, "plugin_failures") == {"loop": 1}


async def test_a_frame_that_breaks_its_schema_reaches_nobody():
    class Sees(Analyzer):
        name = "sees"

        def __init__(self):
            self.frames = []

        def on_frame(self, frame, knowledge):
            self.frames.append(frame)
            return ()

    def frame(rows):
        valid = np.ones(1, np.bool_)
        return Frame(START, schema, (B,), np.zeros((1, 0), np.uint64), np.zeros((rows, 1)), valid)

    schema, sees = Schema("gauge", "peer", gauges=(Metric("height"),)), Sees()
    async with Node([], [sees]) as node:
        node.loop.feed(frame(2))
        assert (sees.frames, node.loop.knowledge.latest) == ([], {})
        assert counted(node.loop, "plugin_failures") == {"gauge": 1}
        good = frame(1)
        node.loop.feed(good)
        assert sees.frames == [good]


async def test_a_subscriber_that_raises_and_one_that_leaves():
    def bad(published):
        raise ValueError("no room")

    kept, left = [], []
    async with Node([Effector()], [Words()], [Heal(step("move"))]) as node:
        node.loop.subscribe(bad)
        node.loop.subscribe(kept.append)
        leave = node.loop.subscribe(left.append)
        node.say("suspect")
        assert kept == []  # publishing waits until the actions are under way
        await settle()
        leave()
        leave()
        node.say("ill")
        await node.run(100 * MS)
    assert len(left) == 1
    assert [type(one).__name__ for one in kept[:4]] == ["Suspicion", "Symptom", "Plan", "Incident"]
    assert kept[-1].state == "recovered"
    assert counted(node.loop, "plugin_failures") == {"subscriber": len(kept)}


async def test_what_is_decided_last_is_published_before_the_end():
    heard = []
    async with Node([], [Words()]) as node:
        node.loop.subscribe(heard.append)
        node.say("suspect")
    assert len(heard) == 1


async def test_a_tap_that_raises_stops_no_repair():
    def tap(now, item):
        raise OSError("disk full")

    effector = Effector()
    async with Node([effector], [Words()], [Heal(step("move"))], tap=tap) as node:
        node.say("ill")
        await node.run(100 * MS)
        assert effector.done == ["move"]
        assert node.loop.incidents.ended[-1].state == "recovered"
        assert set(counted(node.loop, "plugin_failures")) == {"tap"}


async def test_the_queue_is_bounded_and_counts_what_it_drops():
    class Flood(Touchpoint):
        name = "flood"
        period_ns = 0

        async def open(self, surroundings):
            self.emit = surroundings.emit

        def on_event(self, event):
            if event.kind == "open the gates":
                for number in range(QUEUE + 100):
                    self.emit(Event(START, B, "drop", {"number": number}))

    async with Node([Flood()]) as node:
        node.say("open the gates")
        assert counted(node.loop, "queue_drops") == {"inputs": 100}
        numbers = [item.fields["number"] for _, item in node.log if item.kind == "drop"]
        assert numbers == list(range(QUEUE))
        node.say("after it")
        assert node.log[-1][1].kind == "after it"


async def test_what_an_input_causes_queues_behind_it():
    class Echo(Touchpoint):
        name = "echo"
        period_ns = 0

        async def open(self, surroundings):
            self.emit = surroundings.emit

        def ask(self, inquiry):
            self.emit(Event(START, B, "at once"))
            return True

    class Late(Analyzer):
        name = "late"

        def on_event(self, event, knowledge):
            if event.kind == "ask":
                yield Symptom(B, "judged before the answer", 1.0, START, START)

    async with Node([Echo()], [Words(), Late()]) as node:
        node.say("ask")
        kinds = [getattr(item, "kind", "") for _, item in node.log]
        assert kinds.index("at once") > kinds.index("judged before the answer")


async def test_ticks_come_every_second():
    async with Node() as node:
        await node.run(3 * SECOND)
        ticks = [(now, item.time_ns) for now, item in node.log if item.kind == "tick"]
        assert ticks == [(START + 250 * MS + k * SECOND,) * 2 for k in range(3)]
    assert node.clock.next_ns() is None


async def test_two_touchpoints_of_one_name():
    with pytest.raises(PluginError, match="start effector: two touchpoints of that name; rename one"):
        Node([Effector(), Effector()])


class Sleepy(Effector):
    """Blocks the event loop where it is told to."""

    name = "sleepy"

    def __init__(self, where):
        super().__init__()
        self.where = where

    def _sleep(self, where):
        if where == self.where:
            time.sleep(0.02)

    async def open(self, surroundings):
        await super().open(surroundings)
        await asyncio.sleep(0)
        self._sleep("open")

    def on_event(self, event):
        if event.kind == "ill":
            self._sleep("on_event")

    def ask(self, inquiry):
        self._sleep("ask")
        return super().ask(inquiry)

    def act_now(self, step):
        self._sleep("act_now")
        return None

    async def act(self, step):
        await asyncio.sleep(0)
        self._sleep("act")
        return self._do(step)


@pytest.mark.parametrize("where", ["open", "on_event", "ask", "act_now", "act"])
async def test_who_blocks_the_event_loop_is_named(where, caplog):
    caplog.set_level(logging.WARNING, "mapek")
    clock = RealClock()
    loop = Loop(
        Knowledge(topology()), clock, [Sleepy(where)], [Words()], [Heal(step("move", touchpoint="sleepy"))]
    )
    ended = asyncio.Event()
    loop.subscribe(lambda one: ended.set() if getattr(one, "state", "") == "recovered" else None)
    try:
        async with loop, asyncio.timeout(10):
            loop.feed(Event(clock.now_ns(), B, "ill"))
            await ended.wait()
    finally:
        clock.close()
    named = [record.getMessage() for record in caplog.records]
    assert counted(loop, "blocked_loop")["sleepy"] >= 1
    assert any(message.startswith("sleepy blocked the event loop for ") for message in named)
    assert loop.tally.histograms["blocked_loop_seconds"][(("plugin", "sleepy"),)].sum >= 0.02


async def test_time_spent_waiting_is_nobody_s_blocking():
    class Patient(Effector):
        async def open(self, surroundings):
            await super().open(surroundings)
            over = asyncio.get_running_loop().create_future()
            surroundings.clock.call_at(surroundings.clock.now_ns() + 30 * MS, lambda: over.set_result(None))
            await over

    clock = RealClock()
    try:
        async with Loop(Knowledge(topology()), clock, [Patient()]) as loop:
            assert loop.failed_at_start == {}
            slept = loop.tally.histograms.get("blocked_loop_seconds", {})
            assert sum(one.sum for one in slept.values()) < 0.03
    finally:
        clock.close()


async def test_subscribers_are_supervised_too(caplog):
    clock = RealClock()
    try:
        async with Loop(Knowledge(topology()), clock, [], [Words()]) as loop:
            loop.subscribe(lambda _: time.sleep(0.01))
            loop.feed(Event(clock.now_ns(), B, "suspect"))
            await settle()
            assert counted(loop, "blocked_loop")["subscriber"] == 1
    finally:
        clock.close()
    assert "subscriber blocked the event loop" in caplog.text
