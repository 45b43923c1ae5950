"""The suite of sensors catches what it is for: each broken sensor here fails the part that is for it."""

from __future__ import annotations

import asyncio
import os
from typing import ClassVar

import numpy as np
import pytest

from mapek.contracts import Status, Touchpoint, Variant
from mapek.errors import AttachError, FeatureError, PrivilegeError
from mapek.model import Entity, Frame, Metric, Schema
from mapek.testing import Crowd, check_full, check_interface, check_sensor, check_unprivileged, check_without

SCHEMA = Schema("good", "link", counters=(Metric("seen", "packets"), Metric("seen", "bytes")))


class World:
    """Interfaces, packets and features as a set of facts; what the sensors below look at."""

    def __init__(self):
        self.links, self.sent, self.denied, self.indexes = {"l0": 5}, 0, set(), iter(range(6, 1000))

    def add(self, name):
        self.links[name] = next(self.indexes)
        return self.links[name]

    def remove(self, name):
        del self.links[name]

    def rename(self, name, to):
        self.links[to] = self.links.pop(name)

    def send(self, name):
        self.sent += 1


world = World()


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr("mapek.testing.sensors.PATIENCE_S", 0.3)
    world.__init__()


class Good(Touchpoint):
    """Counts the packets of the world on l0, as long as that is there."""

    name = "good"
    variants = (Variant("best", ("CAP_BPF", "speed")), Variant("other"))
    counted: ClassVar = {"map_full": "Packets that found no room.", "lost": "Packets lost."}
    around = None

    def lesser(self):
        return "speed" in world.denied

    async def open(self, surroundings):
        self.around, self.full = surroundings, 0
        await asyncio.sleep(0)

    async def close(self):
        self.around = None

    def schema(self):
        return SCHEMA

    def count(self):
        return world.sent

    def read(self):
        if self.around is None:
            return None
        here = "l0" in world.links
        counters = np.array([[self.count(), 60 * self.count()]], np.uint64)
        entities = (Entity("link", "l0", world.links.get("l0", 0)),)
        now = self.around.clock.now_ns()
        return Frame(now, SCHEMA, entities, counters, np.zeros((1, 0)), np.array([here]))

    def status(self):
        words = () if "l0" in world.links else ("l0 is gone",)
        words += ("other, not best: no speed",) if self.lesser() else ()
        counts = {"map_full": max(world.sent - 3, 0)}
        return Status(self.around is not None, {"l0": "well"} if not words else {}, words, counts)


def crowd(count="map_full"):
    return Crowd(lambda: world.send("l0"), count)


async def test_a_good_sensor_passes():
    await check_sensor(
        Good,
        links=world,
        deny=world.denied.add,
        lacks={"light": lambda: world.denied.add("speed")},
        crowd=crowd(),
    )


class Blind(Good):
    def status(self):
        return Status(True, {"l0": "well"})

    def read(self):
        frame = super().read()
        return frame and Frame(
            frame.time_ns, SCHEMA, frame.entities, frame.counters, frame.gauges, np.array([True])
        )


class Stumbles(Good):
    def read(self):
        if self.around is not None and "l0" not in world.links:
            raise OSError("no such device")
        return super().read()


class StaysAway(Good):
    def status(self):
        found = super().status()
        return found if world.links.get("l0") == 5 else Status(True, {}, ("l0 is gone",))


class StartsAnew(Good):
    base = 0

    def on_event(self, event):
        if event.kind == "link.new":
            self.base = world.sent

    def count(self):
        return world.sent - self.base


class CountsNothing(Good):
    def count(self):
        return 7


class CountsNoMore(Good):
    def count(self):
        return world.sent if world.links.get("l0") in (5, None) else 100_000


class FailsBehind(Good):
    def on_event(self, event):
        async def work():
            raise ValueError("behind the scenes")

        self.around.spawn(work())


class LosesItsName(Good):
    lost = False

    def on_event(self, event):
        self.lost = self.lost or event.entity.name == "l0x"

    def status(self):
        return Status(True, {}, ("renamed",)) if self.lost else super().status()


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Blind, "good does not say that l0 is gone"),
        (Stumbles, "no such device"),
        (StaysAway, "good is not as before after l0 came back"),
        (StartsAnew, "seen of link l0 went from"),
        (CountsNothing, "counts nothing on l0 at first"),
        (CountsNoMore, "counts nothing on l0 after it came back"),
        (FailsBehind, "good failed over l0: ValueError"),
        (LosesItsName, "good is not as before after l0 had its name again"),
    ],
)
async def test_interface(kind, why):
    with pytest.raises((AssertionError, OSError), match=why):
        await check_interface(kind, world)
    assert "l0" in world.links


async def test_counts_may_start_anew_where_they_are_the_kernels():
    await check_interface(StartsAnew, world, keeps=False)


def opening(error, when=lambda: True):
    class Refuses(Good):
        async def open(self, surroundings):
            if when():
                raise error
            await super().open(surroundings)

    return Refuses


def nobody():
    return os.geteuid() != 0


def denied():
    return bool(world.denied)


@pytest.mark.netns
@pytest.mark.parametrize(
    ("error", "why"),
    [
        (PrivilegeError("open", "x", "CAP_BPF is missing"), None),
        (PrivilegeError("open", "x", "CAP_BPF\nis missing"), "complains over several lines"),
        (AttachError("open", "x", "Operation not permitted"), "AttachError: open x"),
        (OSError(1, "Operation not permitted"), "Operation not permitted"),
    ],
)
def test_privilege(error, why):
    kind = opening(error, nobody)
    if why is None:
        check_unprivileged(kind)
        return
    with pytest.raises(AssertionError, match=f"good without privileges: (?s:.*){why}"):
        check_unprivileged(kind)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (FeatureError("open", "x", "no speed"), None),
        (FeatureError("open", "x", "no\nspeed"), "complains over several lines"),
        (PrivilegeError("open", "x", "CAP_BPF is missing"), "PrivilegeError"),
        (OSError(95, "not supported"), "not supported"),
    ],
)
def test_feature(error, why):
    kind = opening(error, denied)
    if why is None:
        check_without(kind, deny=world.denied.add)
        return
    with pytest.raises(AssertionError, match=f"good without speed: (?s:.*){why}"):
        check_without(kind, deny=world.denied.add)
    assert not world.denied, "what a child denies is denied there only"


def test_a_lesser_variant_must_be_said():
    class Silent(Good):
        def lesser(self):
            return False

    with pytest.raises(AssertionError, match="does not say that speed is missing"):
        check_without(Silent, deny=world.denied.add)


def test_a_child_that_ends_badly_is_told():
    class Dies(Good):
        async def open(self, surroundings):
            os.kill(os.getpid(), 9)

    with pytest.raises(AssertionError, match="the child ended with -9"):
        check_without(Dies, lacks={"anything": lambda: None})


async def test_full():
    await check_full(Good, crowd())
    with pytest.raises(AssertionError, match="does not count drops"):
        await check_full(Good, crowd("drops"))


async def test_full_is_not_fatal():
    class GivesUp(Good):
        def status(self):
            found = super().status()
            return Status(not found.counts["map_full"], found.attached, found.degraded, found.counts)

    with pytest.raises(AssertionError, match="is not up when it is full"):
        await check_full(GivesUp, crowd())
