"""Programs that somebody takes off behind a sensor's back, under traffic: noticed within a second, and put back."""

from __future__ import annotations

import asyncio
import importlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from mapek.bpf import LoadedObject, ObjectSpec, attach_xdp, load, object_path, syscall
from mapek.bpf.dispatcher import SLOTS
from mapek.bpf.force import force_off
from mapek.bpf.holders import holders
from mapek.cli.release import release
from mapek.contracts import Touchpoint
from mapek.sensors.hooks import Hooks
from mapek.sensors.xdp_counter import XdpCounter
from mapek.testing import VethLinks, some_topology
from mapek.testing.around import Around, until
from tests.netns.sensors.test_sensor_conformance import Neighbourly
from tests.netns.sensors.wires import run
from tests.support.machine import patience

Take = Callable[[str], None]


@pytest.fixture
def links(space) -> VethLinks:
    made = Neighbourly({"l0": ["10.0.0.1/24"], "l1": ["10.0.1.1/24"]})
    for name in ("l0", "l1"):
        made.add(name)
    for address in ("10.1.0.1/32", "fd00::1/128"):
        run(f"ip addr add {address} dev lo")
    return made


@contextmanager
def traffic(links: VethLinks) -> Iterator[None]:
    """Frames arrive on both interfaces all the time."""
    over = threading.Event()

    def send() -> None:
        while not over.wait(0.002):
            for name in ("l0", "l1"):
                links.send(name)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def link_on(interface: str, kind: int) -> int:
    """The id of this process's own link of that type on an interface."""
    index = socket.if_nametoindex(interface)
    for (what, ident), who in holders().items():
        if what != "link" or os.getpid() not in {one.pid for one in who}:
            continue
        fd = syscall.fd_by_id(30, ident)
        try:
            data = syscall.info(fd, 64)
        finally:
            os.close(fd)
        if (data[0], int.from_bytes(data[16:20], "little")) == (kind, index):
            return ident
    raise AssertionError(f"no link of type {kind} on {interface}")


def detach_link(kind: int) -> Take:
    return lambda interface: run(f"bpftool link detach id {link_on(interface, kind)}") and None  # type: ignore[return-value]


def by(command: str) -> Take:
    return lambda interface: run(command.format(interface)) and None  # type: ignore[return-value]


def chain_of(interface: str, around: Around) -> int:
    hooks = around.commons[Hooks]
    assert isinstance(hooks, Hooks)
    return hooks._hooks[socket.if_nametoindex(interface)].dispatcher.chain.id


def key_of(slot: str) -> str:
    return " ".join(str(one) for one in SLOTS.index(slot).to_bytes(4, "little"))


XDP, TCX = 6, 11
CLSACT = {"variant": "clsact"}
EMPTIED, REPLACED = "emptied", "replaced"
WAYS: list[tuple[str, Mapping[str, object], Take | str, str]] = [
    ("xdp_counter", {"interfaces": ["l0", "l1"]}, detach_link(XDP), "its link was detached by force"),
    (
        "xdp_counter",
        {"interfaces": ["l0", "l1"], "mode": "generic"},
        detach_link(XDP),
        "its link was detached",
    ),
    ("xdp_counter", {"interfaces": ["l0", "l1"]}, EMPTIED, "was emptied"),
    ("xdp_counter", {"interfaces": ["l0", "l1"]}, REPLACED, "was given program"),
    ("mesh_filter", {"interfaces": ["l0"]}, EMPTIED, "was emptied"),
    ("mesh_filter", {"interfaces": ["l0"], "mode": "tc"}, detach_link(TCX), "its link was detached by force"),
    ("batadv", {"interfaces": ["l0"]}, EMPTIED, "was emptied"),
    ("batadv", {"interfaces": ["l0"], "mode": "tc"}, detach_link(TCX), "its link was detached by force"),
    ("link_watch", {"pin": "no", "wait": True}, EMPTIED, "was emptied"),
    ("link_watch", {"pin": "no", "wait": True}, detach_link(XDP), "its link was detached by force"),
    ("link_watch", {"pin": "no", "wait": True}, detach_link(TCX), "its link was detached by force"),
    ("link_watch", {"pin": "auto", "wait": True}, detach_link(XDP), "its link was detached by force"),
    ("tc_classifier", {}, detach_link(TCX), "its link was detached by force"),
    ("tc_classifier", CLSACT, by("tc filter del dev {} ingress"), "its filter is gone"),
    ("tc_classifier", CLSACT, by("tc filter del dev {} egress prio 3055"), "its filter is gone"),
    ("tc_classifier", CLSACT, by("tc qdisc del dev {} clsact"), "its filter is gone"),
]


def takes_tcx(sensor: str, options: Mapping[str, object]) -> bool:
    by_tc = "tc" in options.values() or sensor in ("link_watch", "tc_classifier")
    return by_tc and options != CLSACT


def make(sensor: str, options: Mapping[str, object]) -> Touchpoint:
    module = importlib.import_module(f"mapek.sensors.{sensor}")
    kind: type[Touchpoint] = getattr(module, "".join(word.title() for word in sensor.split("_")))
    return kind(options)  # type: ignore[call-arg]


def totals(touchpoint: Touchpoint) -> dict[tuple[str, str, object], int]:
    frame = touchpoint.read()
    assert frame is not None
    return {
        (entity.name, metric.name + metric.unit, metric.labels): int(value)
        for row, entity in enumerate(frame.entities)
        for metric, value in zip(frame.schema.counters, frame.counters[row], strict=True)
    }


@pytest.fixture
def stranger(links) -> Iterator[LoadedObject]:
    with load(ObjectSpec.read(object_path("empty"))) as loaded:
        yield loaded


@pytest.mark.kernel
@pytest.mark.needs("bpftool", "bpffs")
@pytest.mark.parametrize(
    ("sensor", "options", "take", "how"),
    [pytest.param(*way, marks=pytest.mark.needs("tcx") if takes_tcx(*way[:2]) else ()) for way in WAYS],
)
async def test_noticed_within_a_second_and_put_back(links, stranger, sensor, options, take, how):
    around, touchpoint = Around(some_topology()), make(sensor, options)
    pin = Path(f"/sys/fs/bpf/mapek-test-{os.getpid()}-s")
    try:
        await touchpoint.open(around.surroundings())
        with traffic(links):
            await asyncio.sleep(0.1)
            before, was = touchpoint.status(), totals(touchpoint)
            assert before.counts["detached"] == 0
            if take == EMPTIED:
                run(f"bpftool map delete id {chain_of('l0', around)} key {key_of(sensor)}")
            elif take == REPLACED:
                syscall.pin(stranger.programs["empty"].fd, pin)
                run(f"bpftool map update id {chain_of('l0', around)} key {key_of(sensor)} value pinned {pin}")
            else:
                assert callable(take)
                take("l0")
            begun = around.clock.now_ns()

            def told(kind):
                return [one for one in around.events if one.kind == kind]

            await until(
                lambda: told("sensor.detached"), patience(5), lambda: f"not noticed: {touchpoint.status()}"
            )
            (event,) = told("sensor.detached")
            took = (event.time_ns - begun) / 1e9
            print(f"{sensor} {how}: noticed after {took * 1e3:.0f} ms")
            assert took <= patience(1.0)
            assert (event.entity.name, event.fields["sensor"]) == ("l0", sensor)
            assert how in str(event.fields["how"])
            await until(
                lambda: told("sensor.reattached"), patience(5), lambda: f"not put back: {touchpoint.status()}"
            )
            now = touchpoint.status()
            assert (now.counts["detached"], now.counts["reattached"]) == (1, 1)
            assert (now.attached, now.degraded) == (before.attached, before.degraded)
            middle = totals(touchpoint)
            assert all(middle.get(key, 0) >= value for key, value in was.items())

            # Of l0, or of the one interface that it has at all.
            alone = options.get("interfaces") == ["l0"]

            def counts_on():
                return any(
                    v > middle.get(k, 0) for k, v in totals(touchpoint).items() if alone or "l0" in k[0]
                )

            await until(counts_on, patience(5), lambda: "it does not count on")
            # Nothing more is found to be wrong.
            await asyncio.sleep(1.0)
            assert len(told("sensor.detached")) == 1
            assert not around.failures()
    finally:
        await touchpoint.close()
        await around.end()
        pin.unlink(missing_ok=True)
        release(Path(f"/sys/fs/bpf/mapek/{os.stat('/proc/thread-self/ns/net').st_ino}"))


async def test_it_stays_off_where_it_was_said(links, caplog):
    around, touchpoint = Around(some_topology()), XdpCounter({"interfaces": ["l0", "l1"], "reattach": False})
    try:
        await touchpoint.open(around.surroundings())
        force_off("l0")
        await until(lambda: around.events, patience(5), lambda: "not noticed")
        # Whatever else the kernel says of this interface.
        run("ip link set l0 down")
        run("ip link set l0 up")
        await asyncio.sleep(1.2)
        assert [one.kind for one in around.events] == ["sensor.detached"]
        status = touchpoint.status()
        assert status.up
        assert list(status.attached) == ["l1"]
        (word,) = status.degraded
        assert word == (
            "count on l0: somebody took our program off: its link was detached by force; it stays off, as "
            "reattach = false says: find who did it, and restart the agent"
        )
        assert [one.getMessage() for one in caplog.records] == [word]
        # Another interface of this name is another matter.
        links.remove("l0")
        links.add("l0")
        await until(
            lambda: "l0" in touchpoint.status().attached, patience(5), lambda: str(touchpoint.status())
        )
        assert touchpoint.status().degraded == ()
    finally:
        await touchpoint.close()
        await around.end()


async def test_a_stranger_has_the_hook_by_then(links, stranger):
    around, touchpoint = Around(some_topology()), XdpCounter({"interfaces": ["l0"]})
    try:
        await touchpoint.open(around.surroundings())
        force_off("l0")
        with attach_xdp(stranger.programs["empty"], socket.if_nametoindex("l0")):
            await until(
                lambda: "program 'empty'" in str(touchpoint.status().degraded),
                patience(5),
                lambda: str(touchpoint.status()),
            )
            assert touchpoint.status().attached == {}
        await until(lambda: touchpoint.status().attached, patience(10), lambda: str(touchpoint.status()))
        assert touchpoint.status().counts["reattached"] == 1
    finally:
        await touchpoint.close()
        await around.end()


async def test_all_of_one_hook_notice_and_come_back(links):
    around = Around(some_topology())
    sensors = [
        make("link_watch", {"pin": "no", "wait": True}),
        make("xdp_counter", {"interfaces": ["l0", "l1"]}),
        make("mesh_filter", {}),
        make("batadv", {}),
    ]
    try:
        for one in sensors:
            await one.open(around.surroundings())
        before = [one.status().attached for one in sensors]
        run(f"bpftool link detach id {link_on('l0', XDP)}")

        def back():
            return [one.status().attached for one in sensors] == before and all(
                one.status().counts["reattached"] == 1 for one in sensors
            )

        await until(back, patience(10), lambda: str([one.status() for one in sensors]))
        hooks = around.commons[Hooks]
        assert isinstance(hooks, Hooks)
        dispatcher = hooks._hooks[socket.if_nametoindex("l0")].dispatcher
        assert set(dispatcher.slots()) == {"link_watch", "xdp_counter", "mesh_filter", "batadv"}
        assert not around.failures()
    finally:
        for one in reversed(sensors):
            await one.close()
        await around.end()


async def test_an_interface_that_goes_is_not_taken_off(links):
    around = Around(some_topology())
    sensors = [make("xdp_counter", {"interfaces": ["l0"]}), make("tc_classifier", {"interfaces": ["l0"]})]
    try:
        for one in sensors:
            await one.open(around.surroundings())
        for _ in range(4):
            # With the same number: who only looks at that would think that it stood all the time.
            index = socket.if_nametoindex("l0")
            links.remove("l0")
            run(f"ip link add l0 index {index} type veth peer name l0.far")
            run("ip link set l0 up")
            await asyncio.sleep(0.45)
        await until(
            lambda: all(one.status().attached for one in sensors),
            patience(20),
            lambda: str([one.status() for one in sensors]),
        )
        assert [one.kind for one in around.events if one.kind.startswith("sensor.")] == []
    finally:
        for one in sensors:
            await one.close()
        await around.end()


async def test_what_the_looks_cost(links):
    """CPU time of the whole process while nothing happens; docs/INVENTORY.md has the number."""
    around = Around(some_topology())
    sensors = [make("xdp_counter", {"interfaces": ["l0", "l1"]}), make("tc_classifier", CLSACT)]
    try:
        for one in sensors:
            await one.open(around.surroundings())
        await asyncio.sleep(0.5)
        begun = time.process_time()
        await asyncio.sleep(4)
        used = (time.process_time() - begun) / 4
        print(
            f"{used * 1e6:.0f} us of CPU a second for {sum(len(list(one._interfaces.held())) for one in sensors)}"
        )
        assert used < patience(0.01)
    finally:
        for one in sensors:
            await one.close()
        await around.end()
