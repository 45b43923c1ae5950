"""Several programs on one interface, added, replaced and removed under traffic, restarted and taken over."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from mapek.bpf import (
    Dispatcher,
    LoadedObject,
    ObjectSpec,
    PerCpuArrayMap,
    attach_xdp,
    load,
    object_path,
    open_link,
    open_map,
    read_xdp,
)
from mapek.bpf.dispatcher import SLOTS
from mapek.bpf.worker import under_way
from mapek.errors import AttachError, ObjectError
from tests.netns.bpf.wires import Wire, counters, run, running, udp

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).parents[3]
COUNTER = ObjectSpec.read(object_path("xdp_counter"))
UDP4 = 2


def counted(loaded: LoadedObject) -> int:
    return int(counters(loaded)[UDP4][0])


class Traffic:
    """Sends frames from a thread of the wire's namespace until left; `sent` counts them."""

    def __init__(self, wire: Wire) -> None:
        self.sent = 0
        self._wire, self._stop = wire, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
            out.bind(("far", 0))
            frame = udp()
            while not self._stop.is_set():
                for _ in range(8):
                    out.send(frame)
                    self.sent += 1
                time.sleep(0.0002)  # pace: a full veth queue would drop frames before any program

    def beyond(self, count: int) -> bool:
        return self.sent > count

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


async def until(condition: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not condition():  # noqa: ASYNC110 - the traffic is in a thread and in the kernel
            await asyncio.sleep(0)

    await asyncio.wait_for(poll(), 10)


async def test_programs_come_and_go_without_a_gap(wire: Wire):
    async with Dispatcher.attach(wire.near) as chain:
        assert chain.mode == "native"
        assert chain.alive
        assert chain.slots() == {}
        steady = await chain.load("xdp_counter", COUNTER)
        await chain.set("xdp_counter", steady.programs["xdp_counter"])
        a = await chain.load("user_a", COUNTER)
        b = await chain.load("user_a", COUNTER, reuse={"counters": a.maps["counters"]})
        last = await chain.load("link_watch", COUNTER)
        await chain.set("user_a", a.programs["xdp_counter"])
        await chain.set("link_watch", last.programs["xdp_counter"])
        with Traffic(wire) as traffic:
            for turn in range(20):
                step = traffic.sent
                await chain.set("user_a", (b if turn % 2 == 0 else a).programs["xdp_counter"])
                await until(partial(traffic.beyond, step + 20))
        # Nobody missed one frame: not the replaced program, not the ones before and after it.
        assert (counted(steady), counted(a), counted(last)) == (traffic.sent,) * 3
        before = traffic.sent
        with Traffic(wire) as traffic:
            for _ in range(10):
                step = traffic.sent
                assert await chain.remove("user_a") is True
                assert await chain.remove("user_a") is False
                await until(partial(traffic.beyond, step + 20))
                await chain.set("user_a", a.programs["xdp_counter"])
        assert (counted(steady), counted(last)) == (before + traffic.sent,) * 2
        assert before < counted(a) < before + traffic.sent
        for loaded in (steady, a, b, last):
            loaded.close()
    assert read_xdp(wire.near) is None
    assert not chain.alive


async def test_the_order_is_fixed_and_a_drop_ends_it(wire: Wire, tmp_path: Path):
    """Programs run in slot order, whatever the order they were set in; seen by who counts after a program
    that ends."""
    async with Dispatcher.attach(wire.near) as chain:
        last = await chain.load("link_watch", COUNTER)
        first = await chain.load("mesh_filter", COUNTER)
        await chain.set("link_watch", last.programs["xdp_counter"])
        await chain.set("mesh_filter", first.programs["xdp_counter"])
        assert list(chain.slots()) == ["mesh_filter", "link_watch"]
        wire.send(udp(), 4)
        assert (counted(first), counted(last)) == (4, 4)
        # A program that thinks it is last hands on to nobody.
        ends = await chain.load("link_watch", COUNTER)
        await chain.set("user_a", ends.programs["xdp_counter"])
        wire.send(udp(), 3)
        assert (counted(first), counted(ends), counted(last)) == (7, 3, 4)
        for loaded in (last, first, ends):
            loaded.close()


@pytest.mark.host
async def test_what_does_not_belong_is_refused(wire: Wire, empty: LoadedObject):
    async with Dispatcher.attach(wire.near) as chain:
        with pytest.raises(ObjectError, match="does not use this dispatcher's chain"):
            await chain.set("xdp_counter", empty.programs["empty"])
        await chain.set("link_watch", empty.programs["empty"])  # nothing comes after it
        with pytest.raises(ObjectError, match=f"slots are {', '.join(SLOTS)}"):
            await chain.remove("no such slot")
        with (
            load(ObjectSpec.read(object_path("empty_tc"))) as tc,
            pytest.raises(ObjectError, match="of type sched_cls"),
        ):
            await chain.set("user_a", tc.programs["empty_tc"])
        with pytest.raises(AttachError, match="not pinned"):
            await chain.release(keep=True)
        with pytest.raises(AttachError, match=f"the agent with pid {os.getpid()} has it"):
            await Dispatcher.attach(wire.near)
        assert chain.alive
    with pytest.raises(AttachError, match="not open"):
        chain.slots()
    await chain.release(keep=False)


async def test_a_foreign_program_is_named_and_tc_offered(wire: Wire, empty: LoadedObject):
    with attach_xdp(empty.programs["empty"], wire.near) as foreign:
        with pytest.raises(AttachError, match=rf"'empty' \(id {foreign.program_id}\) is there already.*tc"):
            async with Dispatcher.attach(wire.near):
                pass
        assert running(wire.near).program_id == foreign.program_id


async def test_the_interface_goes(wire: Wire):
    async with Dispatcher.attach(wire.near, "generic") as chain:
        assert chain.mode == "generic"
        run("ip link del near")
        assert not chain.alive


@pytest.mark.needs("bpffs")
async def test_restart_without_a_gap(wire: Wire, pins: Path):
    first = await Dispatcher.attach(wire.near, pin_dir=pins)
    assert not first.taken_over
    member = await first.load("link_watch", COUNTER)
    await first.set("link_watch", member.programs["xdp_counter"])
    held = member.programs["xdp_counter"].id
    with Traffic(wire) as traffic:
        await first.release(keep=True)
        await until(lambda: traffic.sent > 50)
        for _ in range(5):
            second = await Dispatcher.attach(wire.near, pin_dir=pins)
            assert second.taken_over
            assert second.mode == "native"
            assert second.slots() == {"link_watch": held}
            await second.release(keep=True)
        step = traffic.sent
        await until(lambda: traffic.sent > step + 50)
    assert counted(member) == traffic.sent
    async with Dispatcher.attach(wire.near, pin_dir=pins) as third:
        assert third.taken_over
    assert read_xdp(wire.near) is None
    assert not pins.exists()
    member.close()


async def test_a_take_over_that_fails_leaves_no_descriptor(
    wire: Wire, pins: Path, monkeypatch: pytest.MonkeyPatch
):
    await (await Dispatcher.attach(wire.near, pin_dir=pins)).release(keep=True)
    before = len(os.listdir("/proc/self/fd"))

    def fail(*_: object, **__: object) -> LoadedObject:
        raise AttachError("load", "dispatcher", "out of memory")

    with monkeypatch.context() as patched:
        patched.setattr("mapek.bpf.dispatcher.load", fail)
        for _ in range(5):
            with pytest.raises(AttachError, match="out of memory"):
                await Dispatcher.attach(wire.near, pin_dir=pins)
    assert len(os.listdir("/proc/self/fd")) == before
    await (await Dispatcher.attach(wire.near, pin_dir=pins)).release(keep=False)
    assert read_xdp(wire.near) is None


AGENT = """
import asyncio, sys
from mapek.bpf import Dispatcher, ObjectSpec, object_path
async def main():
    chain = await Dispatcher.attach(int(sys.argv[1]), pin_dir=sys.argv[2])
    member = await chain.load("link_watch", ObjectSpec.read(object_path("xdp_counter")))
    await chain.set("link_watch", member.programs["xdp_counter"])
    for slot in ("mesh_filter", "user_c"):
        other = await chain.load(slot, ObjectSpec.read(object_path("xdp_counter")))
        await chain.set(slot, other.programs["xdp_counter"])
    member.maps["counters"].pin(sys.argv[2] + "/counters")
    print("ready", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.host
@pytest.mark.needs("bpffs")
async def test_the_chain_outlives_a_killed_agent(wire: Wire, pins: Path):
    command = [sys.executable, "-c", AGENT, str(wire.near), str(pins)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "ready\n"
        agent.send_signal(signal.SIGKILL)
        agent.wait()
    wire.send(udp(), 25)
    with open_map(pins / "counters") as pinned:
        assert isinstance(pinned, PerCpuArrayMap)
        assert pinned.summed()[1][UDP4][0] == 25
    (pins / "counters").unlink()
    async with Dispatcher.attach(wire.near, pin_dir=pins) as chain:
        assert chain.taken_over
        # Who has no owner any more goes, but for the reflector, which misses nothing.
        assert list(chain.slots()) == ["link_watch"]
    assert read_xdp(wire.near) is None


@pytest.mark.needs("bpffs")
@pytest.mark.host
async def test_pins_of_another_interface_or_mode(wire: Wire, pins: Path):
    chain = await Dispatcher.attach(wire.near, pin_dir=pins)
    await chain.release(keep=True)
    with pytest.raises(AttachError, match="it holds a link to near"):
        await Dispatcher.attach(wire.far, pin_dir=pins)
    assert read_xdp(wire.near) is not None
    chain = await Dispatcher.attach(wire.near, "generic", pin_dir=pins)
    assert (chain.taken_over, chain.mode) == (False, "generic")
    await chain.release(keep=True)
    # The interface goes and another takes its place: the dead link is cleared away.
    run("ip link del near")
    run("ip link add near type veth peer name far")
    again = socket.if_nametoindex("near")
    async with Dispatcher.attach(again, pin_dir=pins) as chain:
        assert not chain.taken_over
        assert chain.alive


@pytest.mark.needs("bpffs")
@pytest.mark.host
async def test_a_lost_chain_pin_is_made_anew(wire: Wire, pins: Path):
    chain = await Dispatcher.attach(wire.near, pin_dir=pins)
    await chain.release(keep=True)
    (pins / "chain").unlink()
    async with Dispatcher.attach(wire.near, pin_dir=pins) as chain:
        assert chain.taken_over
        member = await chain.load("link_watch", COUNTER)
        await chain.set("link_watch", member.programs["xdp_counter"])
        wire.send(udp(), 2)
        assert counted(member) == 2
        with open_map(pins / "chain") as pinned:
            assert pinned.id == chain.chain.id
        member.close()


@pytest.mark.host
async def test_pins_need_a_bpffs_and_nothing_stays(wire: Wire, tmp_path: Path):
    with pytest.raises(AttachError, match="not on a bpffs"):
        await Dispatcher.attach(wire.near, pin_dir=tmp_path / "pins")
    assert read_xdp(wire.near) is None


@pytest.mark.needs("bpffs")
@pytest.mark.host
async def test_a_cancelled_open_leaves_nothing(wire: Wire, pins: Path):
    opening = asyncio.ensure_future(Dispatcher.attach(wire.near, pin_dir=pins).open())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    # The thread that undoes it begins when the one that did it has ended.
    await until(
        lambda: (
            not under_way
            and not any(t.name.startswith("mapek-bpf") for t in threading.enumerate())
            and read_xdp(wire.near) is None
        )
    )
    with pytest.raises(FileNotFoundError):
        open_link(pins / "link")
