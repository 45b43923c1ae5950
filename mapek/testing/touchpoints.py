"""What every touchpoint keeps to: see `check_touchpoint`."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Callable, Iterator
from typing import Final

from mapek.contracts import Status, Touchpoint
from mapek.errors import MapekError
from mapek.knowledge import Topology, check_frame
from mapek.model import Entity, Event, Inquiry, Step
from mapek.testing.around import Around, one_line
from mapek.testing.inputs import some_topology

_CLOSE_CUTS: Final = (0, 1, 2, 4, 10, 20)
PATIENCE_S = 2.0
"""For what a cancelled thread still holds to be let go."""


async def check_touchpoint(
    make: Callable[[], Touchpoint],
    topology: Topology | None = None,
    *,
    step: Step | None = None,
    opens: bool = True,
) -> None:
    """Raise AssertionError if the touchpoints that `make` makes break the contract.

    It says how it does at any time; opens, is used, closes, closes twice and opens again; survives a
    cancelled `open` and, when it is called again, a cancelled `close`, wherever they were cut; and leaves no
    descriptor, thread or task behind. Frames follow its schema and later ones have later times. What its status
    counts is explained by its class.
    It takes no question that is not its own, refuses an unknown action with a MapekError, and doing `step` twice
    changes nothing the second time.

    Args:
        make: makes a new one.
        topology: whom it watches.
        step: one of its actions.
        opens: False where this machine lacks what it needs: then `open` must raise a MapekError of one line.
    """
    topology = topology or some_topology()
    await _cycle(make(), topology, step, opens)
    before = _held()
    await _cycle(make(), topology, step, opens)
    await _same(before, "opened, used and closed")
    for steps in _cuts():
        if await _cut(make(), topology, steps):
            break
    await _same(before, "cancelled while it opened")
    for steps in _CLOSE_CUTS if opens else ():
        await _cut_close(make(), topology, steps)
    await _same(before, "cancelled while it closed, and closed again")


def _cuts() -> Iterator[int]:
    """Where to cut `open`: at each of the first steps, then at times that lie a tenth apart."""
    yield from range(40)
    at = 40.0
    while at < 1000:
        yield int(at)
        at *= 1.1


async def _cycle(touchpoint: Touchpoint, topology: Topology, step: Step | None, opens: bool) -> None:
    name = touchpoint.name
    assert isinstance(name, str), "a touchpoint has a name"
    assert name, "a touchpoint has a name"
    assert isinstance(touchpoint.status(), Status), f"{name} says nothing of itself before it is open"
    await touchpoint.close()  # of what was never opened
    around = Around(topology)
    try:
        for _ in range(2):
            if await _open(touchpoint, around, opens):
                await _use(touchpoint, topology, step)
            await touchpoint.close()
            await touchpoint.close()
            assert isinstance(touchpoint.status(), Status), f"{name} says nothing of itself when it is closed"
    finally:
        await around.end()


async def _open(touchpoint: Touchpoint, around: Around, opens: bool) -> bool:
    try:
        await touchpoint.open(around.surroundings())
    except MapekError as error:
        if opens:
            raise AssertionError(f"{touchpoint.name} did not open: {error}") from error
        one_line(touchpoint.name, error)
        return False
    assert opens, f"{touchpoint.name} opened where it should not"
    return True


async def _use(touchpoint: Touchpoint, topology: Topology, step: Step | None) -> None:
    name, schema = touchpoint.name, touchpoint.schema()
    first = touchpoint.read()
    await asyncio.sleep(0)
    second = touchpoint.read()
    for frame in (first, second):
        if frame is not None:
            assert schema is not None, f"{name} has frames but no schema"
            for metric in frame.schema.histograms:
                added = [(one.name, one.labels) for one in frame.schema.counters]
                assert not metric.sum or (metric.sum, metric.labels) in added, (
                    f"{metric.name} of {name} has its sum in {metric.sum!r}, which is no counter of the same labels"
                )
            # a schema may grow with what the sensor finds, and then says so
            assert frame.schema in (schema, touchpoint.schema()), (
                f"a frame of {name} has another schema than it says"
            )
            check_frame(frame)
    if first is not None and second is not None:
        assert first.time_ns <= second.time_ns, f"{name} went back in time"
    untold = set(touchpoint.status().counts) - set(touchpoint.counted)
    assert not untold, f"{name} counts {', '.join(sorted(untold))}, which its `counted` does not explain"
    stranger = Inquiry("conformance:1", Entity("node", topology.node), "conformance_unheard_of", 1_000_000)
    assert touchpoint.ask(stranger) is False, f"{name} took a question that it does not know"
    touchpoint.on_event(Event(1, Entity("link", "nobody", 9), "conformance.unheard_of"))
    await _refuses(touchpoint)
    if step is not None:
        await touchpoint.act(step)
        again = await touchpoint.act(step)
        assert not again.changed, f"{name} says that {step.action} changed something the second time"


async def _refuses(touchpoint: Touchpoint) -> None:
    unknown = Step(touchpoint.name, "conformance_unheard_of")
    try:
        await touchpoint.act(unknown)
    except NotImplementedError:
        assert type(touchpoint).act is Touchpoint.act, f"{touchpoint.name} should refuse with a MapekError"
    except MapekError as error:
        one_line(touchpoint.name, error)
    else:
        raise AssertionError(f"{touchpoint.name} did what nobody has heard of")


async def _cut(touchpoint: Touchpoint, topology: Topology, steps: int) -> bool:
    """Cancel `open` after it was resumed `steps` times; True if it had come to its end by then."""
    around = Around(topology)
    try:
        opening = asyncio.ensure_future(touchpoint.open(around.surroundings()))
        for _ in range(steps):
            if opening.done():
                break
            await asyncio.sleep(0 if steps < 20 else 0.001)  # later ones wait for a thread
        ended = opening.done()
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await touchpoint.close()
        return ended
    finally:
        await around.end()


async def _cut_close(touchpoint: Touchpoint, topology: Topology, steps: int) -> None:
    """Cancel `close` after it was resumed `steps` times, and call it again, as a loop that is cancelled does."""
    around = Around(topology)
    try:
        await touchpoint.open(around.surroundings())
        closing = asyncio.ensure_future(touchpoint.close())
        for _ in range(steps):
            if closing.done():
                break
            await asyncio.sleep(0 if steps < 10 else 0.001)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        await touchpoint.close()
    finally:
        await around.end()


def _held() -> tuple[int, int, int]:
    """How many descriptors, threads other than pooled ones, and tasks there are."""
    # Of those that `threading` did not start it does not know whether they run.
    threads = [
        one
        for one in threading.enumerate()
        if not one.name.startswith("asyncio_") and not isinstance(one, threading._DummyThread)
    ]
    return len(os.listdir("/proc/self/fd")), len(threads), len(asyncio.all_tasks())


async def _same(before: tuple[int, int, int], when: str) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + PATIENCE_S
    names = ("descriptors", "threads", "tasks")
    while left := [f"{b - a} {name}" for a, b, name in zip(before, _held(), names, strict=True) if b > a]:
        if loop.time() > until:
            break
        gc.collect()  # a cancelled task and its exception hold each other, and what they had opened
        await asyncio.sleep(0.02)
    assert not left, f"left behind after it was {when}: {', '.join(left)}"
