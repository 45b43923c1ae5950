"""The suites catch what they are for: each broken plugin here fails with the reason named."""

import asyncio
import os
import random
import threading
import time
from datetime import datetime
from time import monotonic_ns

import numpy as np
import pytest

from mapek.contracts import Analyzer, Policy, Status, Touchpoint
from mapek.errors import AttachError, PermanentError
from mapek.model import Applied, Entity, Event, Frame, Inquiry, Metric, Plan, Schema, Step, Suspicion, Symptom
from mapek.testing import check_analyzer, check_policy, check_touchpoint

NODE = Entity("node", "a")
INPUTS = [Event(5, NODE, "tick"), Event(7, NODE, "tock")]


def analyzer(on_event=None, on_frame=None, name="odd"):
    class Odd(Analyzer):
        def on_event(self, event, knowledge):
            return on_event(self, event) if on_event else ()

        def on_frame(self, frame, knowledge):
            return on_frame(self, frame) if on_frame else ()

    Odd.name = name
    return Odd


count = iter(range(10**9))


def nothing(_):
    return ()


BAD_ANALYZERS = {
    "a clock": (lambda s, e: [Suspicion(time.monotonic_ns(), NODE, "x")], "no clock.*monotonic_ns at"),
    "a clock by its own name": (lambda s, e: nothing(monotonic_ns()), "no clock.*monotonic_ns at"),
    "a date": (lambda s, e: nothing(datetime.now()), "no clock.*now at"),
    "sleep": (lambda s, e: nothing(time.sleep(0)), "no clock.*sleep at"),
    "chance": (lambda s, e: nothing(random.random()), "no chance.*random at"),
    "numpy's chance": (
        lambda s, e: [Suspicion(int(np.random.default_rng().integers(1 << 60)), NODE, "x")],
        "no chance.*urandom at",
    ),
    "the system's chance": (lambda s, e: nothing(os.urandom(1)), "urandom at"),
    "memory across instances": (
        lambda s, e: [Suspicion(next(count), NODE, "x")],
        "other things in the same inputs",
    ),
    "no finding": (lambda s, e: ["ill"], "which is no finding"),
    "the same id twice": (lambda s, e: [Inquiry("odd:1", NODE, "k", 5)], "asked twice under the id odd:1"),
    "a foreign id": (lambda s, e: [Inquiry(f"x:{e.time_ns}", NODE, "k", 5)], "should begin with odd:"),
    "no time to answer": (lambda s, e: [Inquiry(f"odd:{e.time_ns}", NODE, "k", 0)], "in no time"),
    "detected before it began": (lambda s, e: [Symptom(NODE, "k", 1.0, 5, 6)], "detected before it began"),
    "what cannot be recorded": (
        lambda s, e: [Symptom(NODE, "k", 1.0, 5, 5, evidence={"x": [{}]})],
        "is not a number",
    ),
    "a crash": (lambda s, e: 1 / 0, "division by zero"),
}


@pytest.mark.parametrize("case", BAD_ANALYZERS)
def test_a_broken_analyzer_is_named(case):
    on_event, why = BAD_ANALYZERS[case]
    with pytest.raises((AssertionError, ArithmeticError, TypeError, ValueError), match=why):
        check_analyzer(analyzer(on_event), INPUTS)


def test_inputs_must_be_left_alone():
    def scribble(self, frame):
        frame.gauges[:] = 0
        return ()

    with pytest.raises(ValueError, match="read-only"):
        check_analyzer(analyzer(on_frame=scribble))


def test_a_name_is_needed_and_so_is_a_finding_where_it_is_asked_for():
    with pytest.raises(AssertionError, match="has a name"):
        check_analyzer(analyzer(name=""))
    with pytest.raises(AssertionError, match="odd found nothing"):
        check_analyzer(analyzer(), INPUTS, finds=True)
    check_analyzer(analyzer(lambda s, e: [Suspicion(e.time_ns, e.entity, "x")]), INPUTS, finds=True)


def policy(plan):
    class Odd(Policy):
        name = "odd"

        def plan(self, symptom, knowledge):
            return plan(symptom)

    return Odd


def some(**changes):
    fields = {"policy": "odd", "entity": NODE, "steps": (Step("t", "a"),), "expect": None, "settle_ns": 0}
    return Plan(**{**fields, **changes})


BAD_POLICIES = {
    "a clock": (lambda s: nothing(time.time()) or None, "no clock"),
    "memory": (lambda s: some(reason=str(next(count))), "planned otherwise"),
    "no plan": (lambda s: "do something", "which is no plan"),
    "another's name": (lambda s: some(policy="x"), "says that it is of x"),
    "nameless steps": (lambda s: some(steps=(Step("t", ""),)), "has no action"),
    "expecting at once": (lambda s: some(expect=Inquiry("", NODE, "k", 1)), "in no time"),
}


@pytest.mark.parametrize("case", BAD_POLICIES)
def test_a_broken_policy_is_named(case):
    plan, why = BAD_POLICIES[case]
    with pytest.raises(AssertionError, match=why):
        check_policy(policy(plan))


def test_a_policy_without_plans_is_one_unless_plans_are_asked_for():
    check_policy(policy(lambda s: None))
    with pytest.raises(AssertionError, match="had no plan"):
        check_policy(policy(lambda s: None), [Symptom(NODE, "k", 1.0, 5, 5)], plans=True)
    check_policy(policy(lambda s: some()), [Symptom(NODE, "k", 1.0, 5, 5)], plans=True)


class Good(Touchpoint):
    """Owns a descriptor, a task and a thread's work; does one thing."""

    name = "good"
    metrics = Schema("good", "node", gauges=(Metric("load"),))

    def __init__(self):
        self.fd, self.done, self.around, self.clock_ns = -1, False, None, 0

    async def open(self, surroundings):
        self.around = surroundings
        await asyncio.sleep(0)
        self.fd = os.open("/dev/null", os.O_RDONLY)
        await asyncio.to_thread(time.sleep, 0.003)

    async def close(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def schema(self):
        return self.metrics

    def read(self):
        if self.fd < 0:
            return None
        now = self.around.clock.now_ns()
        return Frame(
            now, self.metrics, (NODE,), np.zeros((1, 0), np.uint64), np.ones((1, 1)), np.array([True])
        )

    async def act(self, step):
        if step.action != "do":
            raise PermanentError(step.action, self.name, "no such action", "known: do")
        changed, self.done = not self.done, True
        return Applied(self.around.clock.now_ns(), changed)


async def test_a_good_touchpoint_passes():
    await check_touchpoint(Good, step=Step("good", "do"))


class Leaks(Good):
    async def close(self):
        pass


class LeaksWhenCut(Good):
    async def open(self, surroundings):
        fd = os.open("/dev/null", os.O_RDONLY)
        await asyncio.sleep(0)
        self.fd = fd
        self.around = surroundings


class LeavesTasks(Good):
    async def open(self, surroundings):
        await super().open(surroundings)
        self.task = asyncio.ensure_future(asyncio.sleep(100))


class LeavesThreads(Good):
    async def open(self, surroundings):
        await super().open(surroundings)
        threading.Thread(target=time.sleep, args=(3,), daemon=True).start()


class ClosesOnce(Good):
    async def close(self):
        os.close(self.fd)
        self.fd = -1


class Curious(Good):
    def ask(self, inquiry):
        return True


class Eager(Good):
    async def act(self, step):
        return Applied(0, True)


class Restless(Good):
    async def act(self, step):
        await super().act(step)
        return Applied(0, True)


class Warps(Good):
    def read(self):
        frame = super().read()
        self.clock_ns -= 1
        return frame and Frame(
            self.clock_ns, frame.schema, frame.entities, frame.counters, frame.gauges, frame.valid
        )


class Misfits(Good):
    def read(self):
        frame = super().read()
        return frame and Frame(
            frame.time_ns, frame.schema, frame.entities, frame.counters, np.ones((1, 2)), frame.valid
        )


class Shy(Good):
    def status(self):
        return None if self.fd < 0 else Status(True)


class Refuses(Good):
    async def open(self, surroundings):
        raise AttachError("watch", "x", "there is\nno such interface")


BAD_TOUCHPOINTS = {
    Leaks: "left behind after it was opened, used and closed: 2 descriptors",
    LeaksWhenCut: "left behind after it was cancelled while it opened: 1 descriptors",
    LeavesTasks: "2 tasks",
    LeavesThreads: "2 threads",
    ClosesOnce: "Bad file descriptor",
    Curious: "took a question that it does not know",
    Eager: "did what nobody has heard of",
    Restless: "changed something the second time",
    Warps: "went back in time",
    Misfits: "gauges are float64",
    Shy: "says nothing of itself",
    Refuses: "did not open",
}


@pytest.mark.parametrize("kind", BAD_TOUCHPOINTS)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_a_broken_touchpoint_is_named(kind, monkeypatch):
    monkeypatch.setattr("mapek.testing.touchpoints.PATIENCE_S", 0.1)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(Exception, match=BAD_TOUCHPOINTS[kind]):
        await check_touchpoint(kind, step=Step("good", "do"))
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    for fd in set(os.listdir("/proc/self/fd")) - before:
        if os.path.exists(f"/proc/self/fd/{fd}") and os.readlink(f"/proc/self/fd/{fd}") == "/dev/null":
            os.close(int(fd))


async def test_what_cannot_open_here_must_say_so_in_one_line():
    class Lacks(Refuses):
        async def open(self, surroundings):
            raise AttachError("watch", "x", "there is no such interface", "make one")

    await check_touchpoint(Lacks, opens=False)
    with pytest.raises(AssertionError, match="over several lines"):
        await check_touchpoint(Refuses, opens=False)
    with pytest.raises(AssertionError, match="opened where it should not"):
        await check_touchpoint(Good, opens=False)
