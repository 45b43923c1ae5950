"""What each variant of each sensor says that it needs, as nobody: with it, it works; without any part, it says which.

In a child process each, for what is given up does not come back; the parent stays root and lets packets arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import io
import json
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mapek.cli import main
from mapek.clock import RealClock
from mapek.contracts import Status, Touchpoint, Variant
from mapek.errors import DegradedError, MapekError
from mapek.knowledge import Knowledge
from mapek.loop import Loop
from mapek.sensors.netlink import Netlink
from mapek.service.privileges import Privileges
from mapek.testing.child import in_child
from mapek.testing.inputs import some_topology
from tests.netns.sensors.test_sensor_conformance import CASES, SENSORS, Neighbourly
from tests.netns.sensors.wires import run
from tests.support import machine, sandbox

_CLONE_NEWNS = 0x20000
FEATURE = {"kprobe": "kprobes", "genetlink": "batman_adv", "tcx": "tcx"}
"""What a variant needs of the machine, by the names of tests/support/machine.py."""


def options_for(sensor: str, variant: str) -> dict[str, object]:
    """Options that force a variant."""
    if sensor == "link_watch":
        return {"timer": "user"} if variant == "user" else {}
    if sensor == "netlink":
        return {"nexthops": "no"} if variant == "routes" else {}
    if sensor in ("batadv", "mesh_filter"):
        return {"mode": "tc" if variant == "tc" else "native"}
    return {"variant": variant} if sensor in ("syscall_latency", "net_events", "tc_classifier") else {}


@dataclass(frozen=True)
class Way:
    """One variant of one sensor, forced."""

    sensor: str
    variant: Variant
    options: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.sensor}-{self.variant.name}"

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(need for need in self.variant.needs if need.startswith("CAP_"))

    def make(self) -> Touchpoint:
        module, _, kind = SENSORS[self.sensor].partition(":")
        made: Touchpoint = getattr(importlib.import_module(module), kind)(dict(self.options))
        return made


def _class(sensor: str) -> type[Touchpoint]:
    module, _, kind = SENSORS[sensor].partition(":")
    found: type[Touchpoint] = getattr(importlib.import_module(module), kind)
    return found


WAYS = [
    Way(name, one, {**CASES[name].options, **options_for(name, one.name)})
    for name in SENSORS
    for one in (_class(name).variants or (Variant("only"),))
]


def marked(way: Way, *more: object) -> object:
    feature = FEATURE.get(way.variant.name)
    marks = [pytest.mark.needs(feature)] if feature else []
    return pytest.param(way, *more, id="-".join(map(str, (way, *more))), marks=marks)


@pytest.fixture
def links(space) -> Neighbourly:
    made = Neighbourly({"l0": ["10.0.0.1/24"], "l1": ["10.0.1.1/24"]})
    for name in ("l0", "l1"):
        made.add(name)
    for address in ("10.1.0.1/32", "fd00::1/128"):
        run(f"ip addr add {address} dev lo")
    return made


@contextmanager
def traffic(links: Neighbourly, renewals: int) -> Iterator[None]:
    """Packets arrive on l0 meanwhile; for each byte from the pipe `renewals` it is deleted and made again."""
    netns = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    stop = threading.Event()

    def work() -> None:
        assert ctypes.CDLL(None).setns(netns, 0x40000000) == 0
        while not stop.wait(0.02):
            with contextlib.suppress(BlockingIOError):
                if os.read(renewals, 1):
                    links.remove("l0")
                    links.add("l0")
            links.send("l0")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        os.close(netns)


def become(names: list[str]) -> None:
    """Nobody with these capabilities; what is imported on the way was imported by root."""
    sandbox.become_nobody(names)


def open_tracefs() -> None:
    """In a mount namespace of this process's own."""
    assert ctypes.CDLL(None).unshare(_CLONE_NEWNS) == 0
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    if not Path("/sys/kernel/tracing/events").is_dir():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", "/sys/kernel/tracing"], check=True)


@contextlib.asynccontextmanager
async def running(way: Way, with_others: bool = True):
    clock, touchpoint = RealClock(), way.make()
    # It hears of its interfaces from netlink, whose need is one of its own.
    others = [Netlink({})] if way.sensor == "link_watch" and with_others else []
    try:
        async with Loop(Knowledge(some_topology()), clock, [touchpoint, *others]) as loop:
            yield loop, touchpoint
    finally:
        clock.close()


def said(status: Status) -> tuple[bool, Mapping[str, str], tuple[str, ...]]:
    return status.up, status.attached, tuple(sorted(status.degraded))


async def as_root(way: Way) -> tuple[bool, Mapping[str, str], tuple[str, ...]]:
    async with running(way) as (loop, touchpoint):
        assert loop.failed_at_start == {}
        await asyncio.sleep(0.3)
        return said(touchpoint.status())


async def until(true: Callable[[], object], what: Callable[[], object]) -> None:
    deadline = time.monotonic() + machine.patience(8)
    while not true():
        assert time.monotonic() < deadline, what()
        await asyncio.sleep(0.02)


def total(loop: Loop, name: str) -> int:
    frame = loop.knowledge.latest.get(name)
    return 0 if frame is None else int(frame.counters[frame.valid].sum())


@pytest.mark.parametrize("way", [marked(way) for way in WAYS])
def test_what_it_needs_is_enough(way, links):
    case = CASES[way.sensor]
    renewals, renew = os.pipe2(os.O_NONBLOCK)

    def work() -> None:
        if "tracefs" in way.variant.needs:
            open_tracefs()
        before = asyncio.run(as_root(way))
        become(list(way.needs))
        asyncio.run(life(before))

    async def life(before: tuple[bool, Mapping[str, str], tuple[str, ...]]) -> None:
        async with running(way) as (loop, touchpoint):
            assert loop.failed_at_start == {}, loop.failed_at_start
            counting = touchpoint.schema() is not None and way.sensor not in ("psi", "netlink")
            rights = Privileges()
            rights.after(loop)
            rights.stop()
            # From here on with no more than what it says that it needs to go on.
            assert rights.held == touchpoint.capabilities(True) & set(way.needs)
            await until(lambda: said(touchpoint.status()) == before, lambda: (touchpoint.status(), before))
            if case.step is not None and way.sensor == "netlink":
                await touchpoint.act(case.step)
                before = said(touchpoint.status())
            if counting:
                await counts(loop)
            if case.links:
                os.write(renew, b"x")
                await until(
                    lambda: touchpoint.status().degraded or touchpoint.name == "netlink", touchpoint.status
                )
                await until(
                    lambda: said(touchpoint.status()) == before, lambda: (touchpoint.status(), before)
                )
                if counting:
                    await counts(loop)
            assert not loop.supervision.failures, loop.supervision.failures

    async def counts(loop: Loop) -> None:
        start = total(loop, way.sensor)
        await until(
            lambda: total(loop, way.sensor) != start, lambda: f"it counts nothing: {loop.monitor.watched}"
        )

    try:
        with traffic(links, renewals):
            in_child(work, f"{way} with {', '.join(way.needs) or 'nothing'}")
    finally:
        os.close(renewals)
        os.close(renew)


def doctors_words(way: Way) -> str:
    """What `mapek doctor` says of that sensor, configured so."""
    lines = [
        f"{key} = {json.dumps(value)}" for key, value in way.options.items() if not isinstance(value, dict)
    ]
    out = io.StringIO()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        file = Path(folder, "node.toml")
        file.write_text("\n".join(['[node]\nname = "a"', f"[sensors.{way.sensor}]", *lines]))
        with contextlib.redirect_stdout(out):
            assert main(["doctor", "--json", "-c", str(file)]) == 1
    return " ".join(json.loads(out.getvalue())["sensors"][way.sensor]["missing"])


def capabilities_in(words: str) -> set[str]:
    return set(re.findall(r"CAP_\w+", words))


@pytest.mark.parametrize(("way", "missing"), [marked(way, need) for way in WAYS for need in way.needs])
def test_without_any_of_them_it_says_which(way, missing, links):
    def work() -> None:
        if "tracefs" in way.variant.needs:
            open_tracefs()
        before = asyncio.run(as_root(way))
        assert before[0]
        with contextlib.redirect_stdout(io.StringIO()):
            main(["doctor", "--json"])  # so that all is imported
        become([need for need in way.needs if need != missing])
        asyncio.run(life())

    async def life() -> None:
        async with running(way, with_others=False) as (loop, _):
            (error,) = loop.failed_at_start.values()
            assert isinstance(error, MapekError)
            assert isinstance(error, DegradedError), repr(error)
            assert capabilities_in(str(error)) == {missing}, error
            status = loop.monitor.watched[way.sensor].status()
            assert (status.up, status.degraded) == (False, (str(error),))
            assert capabilities_in(doctors_words(way)) == {missing}
            # The agent lives on.
            await until(lambda: loop.ticked_ns, lambda: "no tick came")

    in_child(work, f"{way} without {missing}")
