"""What every sensor keeps to, beyond what every touchpoint does: see `check_sensor`.

Each part is a check of its own too, so that a test can name the one that failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mapek.contracts import Status, Touchpoint
from mapek.errors import FeatureError, MapekError, PrivilegeError
from mapek.knowledge import Topology, check_frame
from mapek.model import Entity, Event, Frame, Step
from mapek.testing.around import Around, one_line, until
from mapek.testing.child import become_nobody, in_child
from mapek.testing.inputs import some_topology
from mapek.testing.links import LinkMaker
from mapek.testing.touchpoints import check_touchpoint

PATIENCE_S = 10.0
"""For a sensor to notice what happens to its interface, and to count what it should."""

NOTICED_S = 1.0
"""For a sensor to notice that somebody took its program off."""

Make = Callable[[], Touchpoint]


@dataclass(frozen=True, slots=True)
class Crowd:
    """More than a sensor has room for.

    Args:
        make: makes one with little room; None: as all others.
        come: lets them come, a part of them at a time; called until they are counted. Blocks.
        count: the counter of `Status.counts` that must show those without room.
    """

    come: Callable[[], None]
    count: str
    make: Make | None = None


async def check_sensor(
    make: Make,
    topology: Topology | None = None,
    *,
    step: Step | None = None,
    links: LinkMaker | None = None,
    interface: str = "l0",
    keeps: bool = True,
    deny: Callable[[str], None] | None = None,
    lacks: Mapping[str, Callable[[], None]] | None = None,
    crowd: Crowd | None = None,
    detach: Callable[[str], int] | None = None,
) -> None:
    """Raise AssertionError if the sensors that `make` makes break the contract, in any of the parts below.

    Its interfaces must be there, in a network namespace of the caller's own (`unshare --net`).

    Args:
        make: makes a new one.
        topology: whom it watches.
        step: one of its actions, for `check_touchpoint`.
        links: what `interface` was made with; None for a sensor that has nothing to do with interfaces.
        interface: one of those that it watches; is taken away, and is there again afterwards.
        keeps: counts go on when an interface is made again; False where they are the kernel's, which starts anew.
        deny: makes a feature probe answer no, such as `mapek.bpf.features.deny`, for the needs of its variants.
        lacks: other features by name, and what takes them away from a process that is root.
        crowd: more than it has room for; None for a sensor that has room for all that can come.
        detach: takes what the sensor has attached off an interface, as others may do (`mapek.bpf.force.force_off`);
            None for a sensor that attaches nothing to interfaces.
    """
    await check_touchpoint(make, topology, step=step)
    if links is not None:
        await check_interface(make, links, interface, topology, keeps=keeps)
        if detach is not None:
            await check_detached(make, detach, links, interface, topology)
    check_unprivileged(make, topology)
    check_without(make, topology, deny=deny, lacks=lacks)
    if crowd is not None:
        await check_full(crowd.make or make, crowd, topology)


async def check_interface(
    make: Make,
    links: LinkMaker,
    interface: str = "l0",
    topology: Topology | None = None,
    *,
    keeps: bool = True,
) -> None:
    """The interface vanishes and comes back, changes its name and has it back, and is gone when the sensor closes.

    Meanwhile `read` does not fail, no counter of an entity goes backwards, `status` says what is missing (for a change
    of name it may go on), and afterwards all is as before and counts again. Link events are handed to `on_event`, as
    a loop would that has the netlink touchpoint. Arguments: see `check_sensor`.
    """
    touchpoint, around, counted = make(), Around(topology or some_topology()), _Counted(keeps)
    name, other = touchpoint.name, f"{interface[:8]}x"

    def look() -> Frame | None:
        assert not (errors := around.failures()), f"{name} failed over {interface}: {errors[0]!r}"
        frame = touchpoint.read()
        counted.take(name, frame)
        return frame

    async def grows(when: str) -> None:
        schema = touchpoint.schema()
        if schema is None or not schema.counters:
            look()
            return
        start = counted.total

        def more() -> bool:
            links.send(interface)
            look()
            return counted.total > start

        await until(
            more, PATIENCE_S, lambda: f"{name} counts nothing on {interface} {when}: {touchpoint.status()}"
        )

    async def whole_again(when: str) -> None:
        def same() -> bool:
            look()
            return _said(touchpoint.status()) == before

        await until(
            same,
            PATIENCE_S,
            lambda: f"{name} is not as before after {interface} {when}: {touchpoint.status()}",
        )
        await grows(f"after it {when}")

    def tell(link: str, ifindex: int, *kinds: str) -> None:
        for kind in kinds:
            touchpoint.on_event(Event(around.clock.now_ns(), Entity("link", link, ifindex), kind))

    there, called = True, interface
    try:
        await touchpoint.open(around.surroundings())
        look()
        await grows("at first")
        before = _said(touchpoint.status())
        links.remove(interface)
        there = False
        tell(interface, 0, "link.gone")
        missing = lambda: _notices(touchpoint.status(), before, look(), interface)  # noqa: E731
        await until(missing, PATIENCE_S, lambda: f"{name} does not say that {interface} is gone")
        index = links.add(interface)
        there = True
        tell(interface, index, "link.new", "link.up", "address.new")
        await whole_again("came back")
        links.rename(interface, other)
        called = other
        tell(other, index, "link.renamed", "link.up")
        for _ in range(20):
            look()
            await asyncio.sleep(0.005)
        links.rename(other, interface)
        called = interface
        tell(interface, index, "link.renamed", "link.up", "address.new")
        await whole_again("had its name again")
        links.remove(interface)
        there = False
        tell(interface, index, "link.gone")
        look()
    finally:
        await touchpoint.close()
        await touchpoint.close()
        await around.end()
        if not there:
            links.add(interface)
        elif called != interface:
            links.rename(called, interface)


async def check_detached(
    make: Make,
    detach: Callable[[str], int],
    links: LinkMaker,
    interface: str = "l0",
    topology: Topology | None = None,
    *,
    within_s: float = NOTICED_S,
) -> None:
    """What it has attached to the interface is taken off behind its back, while packets arrive.

    Within a second it says so by an event "sensor.detached" and in `status`, puts it back, says "sensor.reattached",
    and is then as before and counts on. Arguments: see `check_sensor`.
    """
    touchpoint, around, counted = make(), Around(topology or some_topology()), _Counted(True)
    name, clock = touchpoint.name, around.clock

    def look() -> None:
        links.send(interface)
        assert not (errors := around.failures()), f"{name} failed over {interface}: {errors[0]!r}"
        counted.take(name, touchpoint.read())

    def told(kind: str) -> list[Event]:
        return [one for one in around.events if one.kind == kind and one.entity.name == interface]

    async def grows(when: str) -> None:
        start = counted.total

        def more() -> bool:
            look()
            return counted.total > start

        await until(more, PATIENCE_S, lambda: f"{name} counts nothing on {interface} {when}")

    def back() -> bool:
        look()
        status = touchpoint.status()
        return bool(told("sensor.reattached")) and _said(status) == before and status.counts["reattached"] > 0

    try:
        await touchpoint.open(around.surroundings())
        await grows("at first")
        before = _said(touchpoint.status())
        assert detach(interface), f"{name} has nothing attached to {interface}"
        begun = clock.now_ns()
        await until(
            lambda: told("sensor.detached"),
            PATIENCE_S,
            lambda: f"{name} does not notice: {touchpoint.status()}",
        )
        noticed_s = (told("sensor.detached")[0].time_ns - begun) / 1e9
        assert noticed_s <= within_s, (
            f"{name} noticed after {noticed_s:.2f} s that it was taken off {interface}"
        )
        assert touchpoint.status().counts["detached"] > 0, f"{name} does not count that it was taken off"
        await until(
            back, PATIENCE_S, lambda: f"{name} is not as before on {interface}: {touchpoint.status()}"
        )
        await grows("after it was put back")
    finally:
        await touchpoint.close()
        await around.end()


def check_unprivileged(make: Make, topology: Topology | None = None) -> None:
    """As nobody without any capability, in a child process: it works, or raises a PrivilegeError of one line."""
    touchpoint = make().name

    def work() -> None:
        # Once as it is: nobody may not be able to read what is imported on the way.
        before = asyncio.run(_tried(make, topology))
        become_nobody()
        answer = asyncio.run(_tried(make, topology))
        if isinstance(answer, MapekError):
            one_line(touchpoint, answer)
            if type(answer) is type(before):
                return  # whoever asks, this machine lacks what it needs
            assert isinstance(answer, PrivilegeError), f"{type(answer).__name__}: {answer}"

    in_child(work, f"{touchpoint} without privileges")


def check_without(
    make: Make,
    topology: Topology | None = None,
    *,
    deny: Callable[[str], None] | None = None,
    lacks: Mapping[str, Callable[[], None]] | None = None,
) -> None:
    """Without a feature it raises a FeatureError of one line, or works and says in `status` that it does with less.

    Tried for each feature that its best variant needs, if there is `deny`, and for each of `lacks`. Each in a child
    process. Arguments: see `check_sensor`.
    """
    touchpoint = make()
    best = touchpoint.variants[0] if touchpoint.variants else None
    ways = dict(lacks or {})
    if best is not None and deny is not None:
        for need in best.needs:
            if not need.startswith("CAP_"):
                ways.setdefault(need, _denier(deny, need))
    for feature, take_away in ways.items():

        def work(feature: str = feature, take_away: Callable[[], None] = take_away) -> None:
            before = asyncio.run(_tried(make, topology))
            take_away()
            after = asyncio.run(_tried(make, topology))
            if isinstance(after, MapekError):
                one_line(touchpoint.name, after)
                assert isinstance(after, FeatureError), f"{type(after).__name__}: {after}"
                return
            if isinstance(before, MapekError) or (
                best and any(f"not {best.name}:" in w for w in before.degraded)
            ):
                return  # this machine lacks what the best variant needs
            assert set(after.degraded) - set(before.degraded), (
                f"it does not say that {feature} is missing: {after}"
            )

        in_child(work, f"{touchpoint.name} without {feature}")


async def check_full(make: Make, crowd: Crowd, topology: Topology | None = None) -> None:
    """When there is no room for more, it counts what it has no room for and goes on; no counter goes backwards."""
    touchpoint, around, counted = make(), Around(topology or some_topology()), _Counted(True)
    name = touchpoint.name
    start = touchpoint.status().counts.get(crowd.count, 0)
    try:
        await touchpoint.open(around.surroundings())

        def counts() -> bool:
            crowd.come()
            assert not (errors := around.failures()), f"{name} failed in a crowd: {errors[0]!r}"
            counted.take(name, touchpoint.read())
            return touchpoint.status().counts.get(crowd.count, 0) > start

        await until(counts, PATIENCE_S, lambda: f"{name} does not count {crowd.count}: {touchpoint.status()}")
        assert touchpoint.status().up, f"{name} is not up when it is full: {touchpoint.status()}"
        counted.take(name, touchpoint.read())
    finally:
        await touchpoint.close()
        await around.end()


@dataclass(slots=True)
class _Counted:
    """The counters of each entity, none of which may go backwards."""

    keeps: bool
    total: int = 0
    seen: dict[tuple[str, int, str, tuple[tuple[str, str], ...]], int] = field(default_factory=dict)

    def take(self, name: str, frame: Frame | None) -> None:
        if frame is None:
            return
        check_frame(frame)
        for row, entity in enumerate(frame.entities):
            if not frame.valid[row]:
                continue
            generation = 0 if self.keeps else entity.generation
            for metric, value in zip(frame.schema.counters, frame.counters[row].tolist(), strict=True):
                key = (entity.name, generation, f"{metric.name} {metric.unit}", metric.labels)
                before = self.seen.get(key, 0)
                assert value >= before, f"{name}: {metric.name} of {entity} went from {before} to {value}"
                self.seen[key] = value
                self.total += value - before


def _said(status: Status) -> tuple[bool, Mapping[str, str], tuple[str, ...]]:
    return status.up, status.attached, tuple(sorted(status.degraded))


def _notices(
    status: Status,
    before: tuple[bool, Mapping[str, str], tuple[str, ...]],
    frame: Frame | None,
    interface: str,
) -> bool:
    """Is anything said of an interface that is not there?"""
    gone = frame is not None and not any(
        frame.valid[row] for row, entity in enumerate(frame.entities) if entity.name == interface
    )
    return _said(status) != before or gone


async def _tried(make: Make, topology: Topology | None) -> Status | MapekError:
    """Open, read and close one: what it says of itself while open, or why it does not open."""
    touchpoint, around = make(), Around(topology or some_topology())
    try:
        await touchpoint.open(around.surroundings())
        frame = touchpoint.read()
        if frame is not None:
            check_frame(frame)
        return touchpoint.status()
    except MapekError as error:
        return error
    finally:
        await touchpoint.close()
        await around.end()


def _denier(deny: Callable[[str], None], feature: str) -> Callable[[], None]:
    return lambda: deny(feature)
