"""Touchpoints are opened in order, retried for ever, closed in reverse, and leave nothing when cancelled."""

import asyncio

import numpy as np
import pytest

from mapek.contracts import Status, Touchpoint
from mapek.errors import AttachError, MapekError, PermanentError
from mapek.model import Entity, Event, Frame, Metric, Schema
from tests.unit.core.fakes import MS, SECOND, START, B, Node, counted, settle

LOG: list[str] = []


@pytest.fixture(autouse=True)
def _forget():
    LOG.clear()


class Logged(Touchpoint):
    """Writes its life down; `fails` is raised by each open, `hangs` never lets it end."""

    name = "one"
    period_ns = 0

    def __init__(self, name="one", fails=None, hangs=False, close_fails=None, close_hangs=False, after=()):
        self.name, self.opens_after = name, after
        self.fails, self.hangs = fails, hangs
        self.close_fails, self.close_hangs = close_fails, close_hangs
        self.opened_at = []

    async def open(self, surroundings):
        self.opened_at.append(surroundings.clock.now_ns())
        LOG.append(f"open {self.name}")
        self.around = surroundings
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(0)
        if self.fails:
            raise self.fails

    async def close(self):
        LOG.append(f"close {self.name}")
        if self.close_hangs:
            self.close_hangs = False
            await asyncio.get_running_loop().create_future()
        if self.close_fails:
            raise self.close_fails


async def test_opened_in_order_and_closed_in_reverse_whatever_one_raises():
    touchpoints = [Logged("a"), Logged("b", close_fails=OSError("stuck")), Logged("c")]
    async with Node(touchpoints) as node:
        assert LOG == ["open a", "open b", "open c"]
    assert LOG[3:] == ["close c", "close b", "close a"]
    assert counted(node.loop, "plugin_failures") == {"b": 1}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            AttachError("attach", "wlan0", "it is down", "bring it up"),
            "attach wlan0: it is down; bring it up",
        ),
        (PermanentError("attach", "wlan0", "never"), "attach wlan0: never"),
        (KeyError("x"), "open bad: KeyError: 'x'; see the log"),
    ],
)
async def test_what_cannot_open_is_retried_for_ever_with_a_back_off_that_doubles(error, said):
    bad, good = Logged("bad", fails=error), Logged("good")
    async with Node([bad, good]) as node:
        failed = node.loop.failed_at_start
        assert {name: str(one) for name, one in failed.items()} == {"bad": said}
        assert isinstance(failed["bad"], MapekError)
        watched = node.loop.monitor.watched
        assert watched["bad"].status() == Status(up=False, degraded=(said,))
        assert watched["good"].status().up
        await node.run(400 * SECOND)
        gaps = [(b - a) / SECOND for a, b in zip(bad.opened_at, bad.opened_at[1:], strict=False)]
        assert gaps == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60]
        assert LOG.count("close bad") == len(bad.opened_at)
        bad.fails = None
        await node.run(60 * SECOND)
        assert watched["bad"].status().up
        assert "bad" not in node.loop.supervision.failures
        opened = len(bad.opened_at)
        await node.run(200 * SECOND)
        assert len(bad.opened_at) == opened
    assert LOG.count("close bad") == opened
    assert node.clock.next_ns() is None


async def test_a_retry_that_hangs_is_cancelled_at_the_end():
    bad = Logged("bad", fails=OSError("no"))
    async with Node([bad]) as node:
        bad.hangs = True
        await node.run(SECOND)
        assert LOG == ["open bad", "close bad", "open bad"]
    assert LOG[-1] == "close bad"
    assert len(asyncio.all_tasks()) == 1


async def test_a_retry_that_was_just_about_to_begin_leaves_no_warning():
    bad = Logged("bad", fails=OSError("no"))
    async with Node([bad]) as node:
        node.clock.advance_to(START + 500 * MS)  # the task is made and has not run yet
    assert LOG == ["open bad", "close bad", "close bad"]


async def test_a_retry_that_comes_through_in_spite_of_its_cancellation_is_closed():
    class Stubborn(Logged):
        async def open(self, surroundings):
            try:
                await super().open(surroundings)
            except asyncio.CancelledError:
                LOG.append("opened in spite of it")

    bad = Stubborn("bad", fails=OSError("no"))
    bad.period_ns = SECOND
    async with Node([bad]) as node:
        bad.hangs = True
        await node.run(SECOND)
    assert LOG[-2:] == ["opened in spite of it", "close bad"]
    assert not node.loop.monitor.watched["bad"].open
    assert node.clock.next_ns() is None


async def test_one_that_hangs_keeps_only_those_that_open_after_it():
    """And nobody waits for one that comes later in the order, or is not there."""
    touchpoints = [
        Logged("early", after=("slow",)),
        Logged("slow", hangs=True),
        Logged("free", after=("nobody",)),
        Logged("late", after=("slow", "free")),
    ]
    task = asyncio.create_task(Node(touchpoints).__aenter__())
    await settle()
    assert LOG == ["open early", "open slow", "open free"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_one_opens_after_another_that_failed():
    async with Node([Logged("first", fails=OSError("no")), Logged("second", after=("first",))]):
        assert LOG == ["open first", "close first", "open second"]


async def test_cancelled_while_opening_leaves_nothing():
    touchpoints = [Logged("a"), Logged("slow", hangs=True), Logged("never", after=("slow",))]
    node = Node(touchpoints)
    task = asyncio.create_task(node.__aenter__())
    await settle()
    assert LOG == ["open a", "open slow"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert set(LOG[2:]) == {"close slow", "close a", "close never"}
    assert LOG.index("close slow") < LOG.index("close a")
    assert len(asyncio.all_tasks()) == 1
    assert node.clock.next_ns() is None


async def test_a_close_that_fails_does_not_hide_the_cancellation():
    node = Node([Logged("slow", hangs=True, close_fails=OSError("stuck"))])
    task = asyncio.create_task(node.__aenter__())
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert counted(node.loop, "plugin_failures")["slow"] >= 1


async def test_cancelled_while_closing_closes_everything():
    touchpoints = [Logged("a"), Logged("slow", close_hangs=True), Logged("c")]
    node = Node(touchpoints)
    await node.__aenter__()
    task = asyncio.create_task(node.__aexit__())
    await settle()
    assert LOG[-2:] == ["close c", "close slow"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert LOG[-2:] == ["close slow", "close a"]


async def test_tasks_of_a_touchpoint_end_with_it_and_their_errors_are_counted():
    class Spawns(Logged):
        async def open(self, surroundings):
            await super().open(surroundings)
            surroundings.spawn(self.forever())
            surroundings.spawn(self.fails_later())

        async def forever(self):
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                LOG.append("task ended")

        async def fails_later(self):
            await asyncio.sleep(0)
            raise ValueError("in a task")

    async with Node([Spawns("a")]) as node:
        await settle()
        assert counted(node.loop, "plugin_failures") == {"a": 1}
    assert LOG == ["open a", "task ended", "close a"]


SCHEMA = Schema("sensor", "peer", gauges=(Metric("value"),))


class Sensor(Touchpoint):
    name = "sensor"
    period_ns = SECOND

    def __init__(self):
        self.reads = []
        self.stall_ns = 0
        self.clock = None

    async def open(self, surroundings):
        self.clock = surroundings.clock

    def read(self):
        now = self.clock.now_ns()
        self.reads.append((now - START) // MS)
        if len(self.reads) == 2:
            raise ValueError("this once")
        if len(self.reads) == 4:
            return None
        return Frame(now, SCHEMA, (B,), np.zeros((1, 0), np.uint64), np.zeros((1, 1)), np.ones(1, np.bool_))


async def test_a_sensor_is_read_on_time_whatever_it_raises():
    sensor = Sensor()
    async with Node([sensor]) as node:
        await node.run(5 * SECOND)
        assert sensor.reads == [200, 1200, 2200, 3200, 4200]
        assert node.loop.monitor.watched["sensor"].frames == 3
        assert counted(node.loop, "inputs")["frame"] == 3
        assert node.loop.knowledge.latest["sensor"].time_ns == START + 4200 * MS
    assert node.clock.next_ns() is None


async def test_missed_reads_are_left_out_not_made_up_for():
    class Stalls(Sensor):
        def read(self):
            frame = super().read()
            if len(self.reads) == 1:
                self.clock._now_ns += 3500 * MS  # the machine stood still
            return frame

    sensor = Stalls()
    async with Node([sensor]) as node:
        await node.run(6 * SECOND)
    assert sensor.reads == [200, 4200, 5200]


async def test_what_touchpoints_share_is_made_once():
    class Shared:
        pass

    one, two = Logged("one"), Logged("two")
    async with Node([one, two]):
        assert one.around.shared(Shared) is two.around.shared(Shared)
        assert isinstance(one.around.shared(list), list)


async def test_a_touchpoint_that_is_not_open_hears_and_answers_nothing():
    class Ears(Logged):
        def on_event(self, event):
            LOG.append(f"heard {event.kind}")

        def ask(self, inquiry):
            LOG.append("asked")
            return True

    shut, ears = Ears("shut", fails=OSError("no")), Ears("ears")
    async with Node([shut, ears]) as node:
        LOG.clear()
        node.loop.feed(Event(START, Entity("link", "l0"), "link.up"))
        assert LOG == ["heard link.up"]


async def test_no_plan_is_begun_once_the_loop_is_closing():
    from tests.unit.core.fakes import Effector, Heal, Words, step

    class Again(Heal):
        def on_event(self, event, knowledge):
            from mapek.model import Symptom

            return self.plan(Symptom(B, "", 0, 0, 0), knowledge) if event.kind == "plan.failed" else None

    effector = Effector()
    effector.takes_ns = 10 * MS
    effector.fails["move"] = OSError("no")
    node = Node([effector], [Words()], [Again(step("move"))])
    await node.__aenter__()
    node.say("ill")
    await settle()
    leaving = asyncio.create_task(node.__aexit__())
    await node.run(50 * MS)
    await leaving
    failed = [item for _, item in node.log if isinstance(item, Event) and item.kind == "plan.failed"]
    assert len(failed) == 1
    assert len(asyncio.all_tasks()) == 1
