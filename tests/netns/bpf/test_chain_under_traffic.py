"""All XDP programs of the repository on one interface, while numbered packets arrive: each replaced, taken off, put on.

The receiver is a UDP socket behind the chain, so a packet that any of them lost has a number that is missing.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager

import pytest

from mapek.bpf import (
    Dispatcher,
    LoadedObject,
    ObjectSpec,
    PerCpuArrayMap,
    attach_xdp,
    load,
    load_async,
    object_path,
    read_xdp,
)
from mapek.bpf.dispatcher import SLOTS
from mapek.errors import AttachError
from tests.netns.bpf.wires import run
from tests.netns.sensors.wires import Space

pytestmark = pytest.mark.kernel

PORT = 4321
PROGRAMS = object_path("empty").parent
MEMBERS = tuple(slot for slot in SLOTS if (PROGRAMS / f"{slot}.bpf.c").exists())
"""Programs of ours that have a slot; whatever is added comes under this test by itself."""


class Stream:
    """Numbered datagrams from the far end to a socket on the near one, until left."""

    def __init__(self, near: Space, far: Space) -> None:
        self.sent = 0
        self.arrived: list[int] = []
        self._over = threading.Event()
        with near.entered():
            self._in = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._in.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
            self._in.bind(("10.7.0.1", PORT))
            self._in.settimeout(0.05)
        with far.entered():
            self._out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._out.connect(("10.7.0.1", PORT))
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]

    def _send(self) -> None:
        while not self._over.is_set():
            for _ in range(8):
                self._out.send(struct.pack("!I", self.sent))
                self.sent += 1
            time.sleep(0.0005)  # pace: a full queue of the veth would lose packets before any program

    def _receive(self) -> None:
        while True:
            try:
                self.arrived.append(struct.unpack("!I", self._in.recv(16))[0])
            except TimeoutError:
                if self._over.is_set():
                    return

    async def more(self, count: int = 40) -> None:
        """Until so many more have arrived."""
        goal = len(self.arrived) + count
        async with asyncio.timeout(20):
            while len(self.arrived) < goal:  # noqa: ASYNC110 - they come by threads
                await asyncio.sleep(0.001)

    def __enter__(self) -> Stream:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._in.close()
        self._out.close()


@pytest.fixture
def ends() -> Iterator[tuple[Space, Space]]:
    """Two namespaces with an addressed veth between them; the test runs in the near one."""
    near, far = Space.new(), Space.new()
    try:
        with near.entered():
            run("ip link add near address 02:00:00:00:00:01 type veth peer name far")
            run(f"ip link set far netns /proc/{os.getpid()}/fd/{far.fd}")
            run("ip addr add 10.7.0.1/24 dev near")
            run("ip link set near up")
            with far.entered():
                run("ip addr add 10.7.0.2/24 dev far")
                run("ip link set far up")
                # no datagram waits for ARP, whose queue is short
                run("ip neigh add 10.7.0.1 lladdr 02:00:00:00:00:01 dev far")
            yield near, far
    finally:
        near.close()
        far.close()


class Members:
    """One dispatcher with programs in it, their maps kept when a program is loaded anew."""

    def __init__(self, chain: Dispatcher) -> None:
        self.chain = chain
        self.loaded: dict[str, LoadedObject] = {}
        self._life = ExitStack()

    async def load(self, name: str) -> LoadedObject:
        """Load a program again, with the maps of the former one."""
        former, options = self.loaded.get(name), self.chain.options(name)
        kept = {} if former is None else {k: one for k, one in former.maps.items() if ".rodata" not in k}
        spec = ObjectSpec.read(object_path(name))
        now = await load_async(spec, programs={name}, rodata=options.rodata, reuse={**kept, **options.reuse})
        self.loaded[name] = self._life.enter_context(now)
        return now

    async def put(self, name: str) -> None:
        """In its slot, instead of what is there."""
        loaded = await self.load(name)
        await self.chain.set(name, loaded.programs[name])

    def counted(self) -> int:
        """UDP over IPv4, as xdp_counter has counted it."""
        return int(self.loaded["xdp_counter"].map("counters", PerCpuArrayMap).summed()[1][2][0])

    def close(self) -> None:
        self._life.close()


@asynccontextmanager
async def full(ifindex: int) -> AsyncIterator[Members]:
    """A dispatcher with every program of ours."""
    async with Dispatcher.attach(ifindex, "native") as chain:
        members = Members(chain)
        try:
            for name in MEMBERS:
                await members.put(name)
            yield members
        finally:
            members.close()


@pytest.mark.host
def test_the_programs_are_those_of_the_repository():
    assert {"mesh_filter", "xdp_counter", "batadv", "link_watch"} <= set(MEMBERS)


async def test_each_is_replaced_under_traffic_and_nothing_is_lost(ends: tuple[Space, Space]):
    async with full(socket.if_nametoindex("near")) as members:
        assert list(members.chain.slots()) == [name for name in SLOTS if name in MEMBERS]
        with Stream(*ends) as stream:
            await stream.more()
            for _ in range(3):
                for name in MEMBERS:
                    before = members.chain.slots()[name]
                    await members.put(name)
                    assert members.chain.slots()[name] != before
                    await stream.more()
        assert stream.arrived == list(range(stream.sent))
        # the counter was replaced three times, and its counts are those of all packets all the same
        assert members.counted() == stream.sent
        assert stream.sent >= 40 * (3 * len(MEMBERS) + 1)


@pytest.mark.host
async def test_each_is_taken_off_and_put_on_under_traffic(ends: tuple[Space, Space]):
    async with full(socket.if_nametoindex("near")) as members:
        with Stream(*ends) as stream:
            for name in MEMBERS:
                await stream.more()
                counted = members.counted()
                assert await members.chain.remove(name)
                await stream.more()
                if name != "xdp_counter":
                    assert members.counted() >= counted + 40
                await members.put(name)
            await stream.more()
        assert stream.arrived == list(range(stream.sent))
        assert 0 < members.counted() < stream.sent


@pytest.mark.parametrize("name", MEMBERS)
async def test_each_works_alone(ends: tuple[Space, Space], name: str):
    async with Dispatcher.attach(socket.if_nametoindex("near"), "native") as chain:
        members = Members(chain)
        await members.put(name)
        assert list(chain.slots()) == [name]
        with Stream(*ends) as stream:
            await stream.more(200)
        assert stream.arrived == list(range(stream.sent))
        members.close()


@pytest.mark.needs("live_rename")
async def test_the_chain_runs_on_under_another_name(ends: tuple[Space, Space]):
    async with full(socket.if_nametoindex("near")) as members:
        with Stream(*ends) as stream:
            await stream.more()
            run("ip link set near name other")
            await stream.more()
            await members.put("xdp_counter")
            await stream.more()
            assert members.chain.alive
        assert stream.arrived == list(range(stream.sent))
        assert members.counted() == stream.sent


async def test_the_interface_goes_under_traffic_and_the_counts_stay(ends: tuple[Space, Space]):
    async with full(socket.if_nametoindex("near")) as members:
        with Stream(*ends) as stream:
            await stream.more(100)
            stream._over.set()
            for thread in stream._threads:
                thread.join()
            run("ip link del near")
            assert not members.chain.alive
        assert members.counted() == stream.sent >= 100
        await members.put("batadv")  # without an interface it is loaded and set as before, and runs nowhere


def test_a_foreign_program_in_the_way_is_named_and_stays(ends: tuple[Space, Space]):
    ifindex = socket.if_nametoindex("near")

    async def join() -> None:
        async with full(ifindex):
            pass

    with (
        load(ObjectSpec.read(object_path("empty"))) as foreign,
        attach_xdp(foreign.programs["empty"], ifindex) as held,
    ):
        with pytest.raises(
            AttachError, match=rf"'empty' \(id {held.program_id}\) is there already.*tc"
        ) as caught:
            asyncio.run(join())
        assert "\n" not in str(caught.value)
        state = read_xdp(ifindex)
        assert state is not None
        assert state.program_id == held.program_id
        with Stream(*ends) as stream:
            asyncio.run(stream.more())
        assert stream.arrived == list(range(stream.sent))
