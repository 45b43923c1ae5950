"""XDP and tc attachments on a veth pair: whose they are, what outlives whom, and what is refused."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from mapek.bpf import (
    LoadedObject,
    ObjectSpec,
    Program,
    XdpLink,
    attach_tc,
    attach_tc_async,
    attach_xdp,
    attach_xdp_async,
    attach_xdp_netlink,
    attach_xdp_netlink_async,
    load,
    object_path,
    open_link,
    read_xdp,
)
from mapek.bpf.clsact import PRIORITY, ClsactFilter, attach_clsact, find_clsact
from mapek.bpf.tc import Direction, TcxLink, Way, open_tcx
from mapek.bpf.worker import under_way
from mapek.bpf.xdp import Mode
from mapek.bpf.xdp_netlink import with_iproute
from mapek.errors import AttachError, MapekError, PrivilegeError
from tests.netns.bpf.wires import Wire, counters, run, running, udp
from tests.support.machine import bpf_call

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).parents[3]
BPFTOOL = shutil.which("bpftool", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or "bpftool"
UDP4 = 2  # (ipv4 * 4 + udp) * 2 + untagged


@pytest.fixture
def empty_tc() -> Iterator[LoadedObject]:
    with load(ObjectSpec.read(object_path("empty_tc"))) as loaded:
        yield loaded


@pytest.fixture
def pin() -> Iterator[str]:
    path = f"/sys/fs/bpf/mapek-test-{os.getpid()}"
    yield path
    if os.path.exists(path):
        os.unlink(path)


async def worker_threads_end() -> None:
    while under_way or any(t.name.startswith("mapek-bpf") for t in threading.enumerate()):  # noqa: ASYNC110 - a thread
        await asyncio.sleep(0)


def counted(counter: LoadedObject) -> int:
    return int(counters(counter)[UDP4][0])


@pytest.mark.parametrize(
    ("mode", "results"), [("native", "native"), ("generic", "generic"), ("auto", "native")]
)
def test_link_sees_frames_in_the_mode_it_says(wire: Wire, counter: LoadedObject, mode: Mode, results: str):
    program = counter.programs["xdp_counter"]
    with attach_xdp(program, wire.near, mode) as link:
        assert link.mode == results
        assert link.ifindex == wire.near
        assert link.program_id == program.id
        state = read_xdp(wire.near)
        assert state is not None
        assert (state.mode, state.program_id) == (results, program.id)
        wire.send(udp(), 10)
        assert counted(counter) == 10
    assert read_xdp(wire.near) is None
    link.close()
    link.detach()


@pytest.mark.host
@pytest.mark.needs("bpftool")
def test_bpftool_sees_the_same_link(wire: Wire, empty: LoadedObject):
    with attach_xdp(empty.programs["empty"], wire.near) as link:
        told = json.loads(run(f"{BPFTOOL} -j link show id {link.id}"))
        assert (told["type"], told["prog_id"]) == ("xdp", empty.programs["empty"].id)


def test_auto_says_why_not_native(wire: Wire, empty: LoadedObject):
    plain = 1  # loopback
    with attach_xdp(empty.programs["empty"], plain, "auto") as link:
        assert link.mode == "generic"
        assert link.reason.startswith("native: ")
    with pytest.raises(Exception, match="no native XDP") as caught:
        attach_xdp(empty.programs["empty"], plain, "native")
    assert 'use mode="generic" or tc' in str(caught.value)


def test_a_foreign_program_is_named_and_left_alone(wire: Wire, empty: LoadedObject, counter: LoadedObject):
    foreign, ours = empty.programs["empty"], counter.programs["xdp_counter"]
    attempts: tuple[Callable[[], object], ...] = (
        lambda: attach_xdp(ours, wire.near),
        lambda: attach_xdp(ours, wire.near, "generic"),
        lambda: attach_xdp_netlink(ours, wire.near),
        lambda: attach_xdp_netlink(ours, wire.near, "generic"),
    )
    for attach in (attach_xdp, attach_xdp_netlink):
        held = attach(foreign, wire.near)
        for attempt in attempts:
            with pytest.raises(
                AttachError, match=rf"program 'empty' \(id {foreign.id}\) is there already"
            ) as caught:
                attempt()
            assert "tc" in str(caught.value)
        assert running(wire.near).program_id == foreign.id
        held.detach()
        assert read_xdp(wire.near) is None


@pytest.mark.parametrize("ifindex", [0, 999_999, 2**31 - 1])
@pytest.mark.host
def test_no_such_interface(wire: Wire, empty: LoadedObject, empty_tc: LoadedObject, ifindex: int):
    for attempt in (
        lambda: attach_xdp(empty.programs["empty"], ifindex),
        lambda: attach_xdp_netlink(empty.programs["empty"], ifindex),
        lambda: attach_tc(empty_tc.programs["empty_tc"], ifindex),
        lambda: attach_tc(empty_tc.programs["empty_tc"], ifindex, way="clsact"),
    ):
        with pytest.raises(AttachError, match="no such interface"):
            attempt()


@pytest.mark.host
def test_programs_of_the_wrong_type(wire: Wire, empty: LoadedObject, empty_tc: LoadedObject):
    with pytest.raises(AttachError, match="of type sched_cls; give an xdp program"):
        attach_xdp(empty_tc.programs["empty_tc"], wire.near)
    with pytest.raises(AttachError, match="of type xdp; give a tc program"):
        attach_tc(empty.programs["empty"], wire.near)
    with pytest.raises(ValueError, match="sideways"):
        attach_tc(empty_tc.programs["empty_tc"], wire.near, "sideways")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fast"):
        attach_xdp(empty.programs["empty"], wire.near, "fast")  # type: ignore[arg-type]


def test_update_loses_no_frame(wire: Wire):
    spec = ObjectSpec.read(object_path("xdp_counter"))
    with (
        load(spec) as first,
        load(spec, reuse={"counters": first.maps["counters"]}) as second,
        attach_xdp(first.programs["xdp_counter"], wire.near) as link,
    ):
        for turn in range(6):
            wire.send(udp(), 50)
            link.update((second if turn % 2 == 0 else first).programs["xdp_counter"])
        assert counted(first) == 300
        assert link.program_id == first.programs["xdp_counter"].id


def test_the_interface_goes_while_attached(wire: Wire, empty: LoadedObject, counter: LoadedObject):
    link = attach_xdp(empty.programs["empty"], wire.near)
    run("ip link del near")
    assert link.ifindex == 0
    with pytest.raises(AttachError, match="interface is gone"):
        link.update(counter.programs["xdp_counter"])
    link.detach()


HOLDER = """
import sys
from mapek.bpf import ObjectSpec, attach_xdp, load, object_path
held = attach_xdp(load(ObjectSpec.read(object_path("empty"))).programs["empty"], int(sys.argv[1]))
if len(sys.argv) > 2: held.pin(sys.argv[2])
print("ready", flush=True)
sys.stdin.read()
"""


def holder(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, *map(str, arguments)]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def killed(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.close()
    child.stdout.close()


@pytest.mark.host
def test_a_link_dies_with_its_process(wire: Wire):
    child = holder(wire.near)
    assert read_xdp(wire.near) is not None
    killed(child)
    assert read_xdp(wire.near) is None


@pytest.mark.needs("bpffs")
def test_a_pinned_link_survives_its_process(wire: Wire, pin: str, counter: LoadedObject):
    killed(holder(wire.near, pin))
    state = read_xdp(wire.near)
    assert state is not None
    with open_link(pin) as link:
        assert isinstance(link, XdpLink)
        assert link.program_id == state.program_id
        link.update(counter.programs["xdp_counter"])
        wire.send(udp(), 5)
        assert counted(counter) == 5
        link.detach()
    assert read_xdp(wire.near) is None
    assert not os.path.exists(pin)


@pytest.mark.host
def test_pins_need_a_bpffs(wire: Wire, empty: LoadedObject, tmp_path: Path):
    with (
        attach_xdp(empty.programs["empty"], wire.near) as link,
        pytest.raises(AttachError, match="not on a bpffs"),
    ):
        link.pin(tmp_path / "link")


@pytest.mark.needs("bpffs")
@pytest.mark.host
def test_what_is_pinned_is_checked(pin: str, empty: LoadedObject):
    empty.programs["empty"].pin(pin)
    with pytest.raises(AttachError, match="it is a prog"):
        open_link(pin)
    with pytest.raises(AttachError, match="pinned there"):
        open_tcx(pin)
    os.unlink(pin)
    with pytest.raises(FileNotFoundError):
        open_link(pin)


def test_netlink_attachment_is_replaced_atomically_and_removed_only_if_ours(
    wire: Wire, empty: LoadedObject, counter: LoadedObject
):
    mine, other = empty.programs["empty"], counter.programs["xdp_counter"]
    held = attach_xdp_netlink(mine, wire.near, "generic")
    assert held.mode == "generic"
    held.update(other)
    assert running(wire.near).program_id == other.id
    wire.send(udp(), 3)
    assert counted(counter) == 3
    # Somebody replaces ours by netlink behind our back: we touch it no more.
    foreign = attach_xdp_netlink(mine, wire.near, "generic", replace=other)
    with pytest.raises(AttachError, match="is there already"):
        held.update(other)
    with pytest.raises(AttachError, match="is there already"):
        held.detach()
    assert running(wire.near).program_id == mine.id
    held.detach()
    foreign.detach()
    assert read_xdp(wire.near) is None


def test_netlink_attachment_stays_when_let_go(wire: Wire, empty: LoadedObject):
    held = attach_xdp_netlink(empty.programs["empty"], wire.near)
    assert held.mode == "native"
    held.close()
    assert read_xdp(wire.near) is not None
    again = attach_xdp_netlink(empty.programs["empty"], wire.near, replace=empty.programs["empty"])
    again.detach()
    assert read_xdp(wire.near) is None


@pytest.mark.host
def test_netlink_detach_of_what_is_gone_already(wire: Wire, empty: LoadedObject):
    held = attach_xdp_netlink(empty.programs["empty"], wire.near)
    run("ip link set dev near xdp off")
    held.detach()
    held = attach_xdp_netlink(empty.programs["empty"], wire.near)
    run("ip link del near")
    held.detach()


async def test_async_attachments_keep_the_namespace_and_free_the_loop(
    wire: Wire, empty: LoadedObject, counter: LoadedObject, empty_tc: LoadedObject
):
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    async with await attach_xdp_async(empty.programs["empty"], wire.near) as link:
        before = ticks
        await link.update_async(counter.programs["xdp_counter"])
        # A call that blocks the loop lets it turn not once; how often it turns depends on the kernel's wait.
        assert ticks > before
        assert link.program_id == counter.programs["xdp_counter"].id
    assert read_xdp(wire.near) is None  # in a running loop, too
    held = await attach_xdp_netlink_async(empty.programs["empty"], wire.near)
    await held.update_async(counter.programs["xdp_counter"])
    await held.detach_async()
    async with await attach_tc_async(empty_tc.programs["empty_tc"], wire.near) as tc:
        await tc.update_async(empty_tc.programs["empty_tc"])
    ticking.cancel()


@pytest.mark.host
async def test_a_cancelled_attach_leaves_nothing(wire: Wire, empty: LoadedObject):
    attaching = asyncio.create_task(attach_xdp_async(empty.programs["empty"], wire.near))
    await asyncio.sleep(0)
    attaching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attaching
    # The thread is in the kernel: it ends, and then undoes what it did.
    await asyncio.wait_for(worker_threads_end(), 5)
    # It has left its result to the loop, which hands it to a thread that undoes it.
    await asyncio.sleep(0)
    await asyncio.wait_for(worker_threads_end(), 5)
    assert read_xdp(wire.near) is None


WAYS = [pytest.param("tcx", marks=pytest.mark.needs("tcx")), "clsact"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_tc(wire: Wire, empty_tc: LoadedObject, way: Way, direction: Direction):
    program = empty_tc.programs["empty_tc"]
    with attach_tc(program, wire.near, direction, way) as link:
        assert link.way == way
        assert link.direction == direction
        assert link.program_id == program.id
        with load(empty_tc.spec) as other:
            link.update(other.programs["empty_tc"])
            assert link.program_id == other.programs["empty_tc"].id
            if isinstance(link, ClsactFilter):
                assert f"mapek:empty_tc:{link.program_id}" in run(f"tc filter show dev near {direction}")
    assert "clsact" not in run("tc qdisc show dev near")
    link.detach()


@pytest.mark.needs("tcx", "bpffs")
def test_tcx_links_can_be_pinned(wire: Wire, empty_tc: LoadedObject, pin: str):
    link = attach_tc(empty_tc.programs["empty_tc"], wire.near, "egress")
    assert isinstance(link, TcxLink)
    link.pin(pin)
    link.close()
    again = open_tcx(pin)
    assert (again.direction, again.ifindex) == ("egress", wire.near)
    again.detach()
    assert not os.path.exists(pin)


def add_filters(program: Program, ifindex: int, name: str, prio: int, handles: Iterable[int]) -> None:
    def add(ip: IPRoute) -> None:
        for handle in handles:
            ip.tc(
                "add-filter", "bpf", ifindex, handle, fd=program.fd, name=name, parent=0xFFFFFFF2, prio=prio,
                protocol=3, direct_action=True,
            )  # fmt: skip

    with_iproute(add)


def test_clsact_leaves_foreign_filters_alone(wire: Wire, empty_tc: LoadedObject):
    program = empty_tc.programs["empty_tc"]
    ours = attach_tc(program, wire.near, "ingress", "clsact")
    add_filters(program, wire.near, "foreign", 10, [1])
    second = attach_tc(program, wire.near, "ingress", "clsact")
    assert isinstance(ours, ClsactFilter)
    assert isinstance(second, ClsactFilter)
    assert second.handle != ours.handle
    ours.detach()
    second.detach()
    assert "foreign" in run("tc filter show dev near ingress")
    assert "mapek" not in run("tc filter show dev near ingress")
    run("tc qdisc del dev near clsact")


IN_ORDER: dict[Direction, list[str]] = {
    "ingress": ["tc_class_in", "mesh_filter_tc", "batadv_tc", "empty_tc", "link_watch_tc"],
    "egress": ["stamp_untimed", "empty_tc", "tc_class_out"],
}
HOMES = {
    "tc_class_in": "tc_classifier", "mesh_filter_tc": "mesh_filter", "batadv_tc": "batadv", "empty_tc": "empty_tc",
    "link_watch_tc": "link_watch", "stamp_untimed": "link_watch", "tc_class_out": "tc_classifier",
}  # fmt: skip


def order_of(ifindex: int, direction: Direction, links: dict[str, TcxLink | ClsactFilter]) -> list[str]:
    """The names of these in the order in which they run, as the kernel has it."""
    if all(isinstance(one, TcxLink) for one in links.values()):
        ids = (ctypes.c_uint32 * 64)(), (ctypes.c_uint32 * 64)()
        where = struct.pack("=II", ifindex, 46 if direction == "ingress" else 47) + bytes(8)
        there = struct.pack("=QIIQQQQ", ctypes.addressof(ids[0]), 64, 0, 0, ctypes.addressof(ids[1]), 0, 0)
        attr = ctypes.create_string_buffer(where + there, 64)
        assert bpf_call(16, attr)[0] == 0
        names = {one.id: name for name, one in links.items() if isinstance(one, TcxLink)}
        return [names[one] for one in ids[1][: struct.unpack_from("=I", attr.raw, 24)[0]] if one in names]
    shown = run(f"tc filter show dev near {direction}")
    return [word.split(":")[1] for word in shown.split() if word.startswith("mapek:")]


@pytest.mark.host
@pytest.mark.parametrize("direction", IN_ORDER)
@pytest.mark.parametrize("way", [pytest.param("tcx", marks=pytest.mark.needs("tcx")), "clsact"])
def test_they_run_in_our_order_whichever_was_first(wire: Wire, way: Way, direction: Direction):
    wanted = IN_ORDER[direction]
    turns = [wanted, wanted[::-1], wanted[2:] + wanted[:2], wanted[1::2] + wanted[::2]]
    with ExitStack() as life:
        programs = {}
        for name in wanted:
            spec = ObjectSpec.read(object_path(HOMES[name]))
            programs[name] = life.enter_context(load(spec, programs={name})).programs[name]
        for turn in turns:
            links = {name: attach_tc(programs[name], wire.near, direction, way) for name in turn}
            assert order_of(wire.near, direction, links) == wanted
            # One of them goes and comes back.
            links[wanted[1]].detach()
            links[wanted[1]] = attach_tc(programs[wanted[1]], wire.near, direction, way)
            assert order_of(wire.near, direction, links) == wanted
            for one in links.values():
                one.detach()


@pytest.mark.host
def test_clsact_of_somebody_else_is_kept(wire: Wire, empty_tc: LoadedObject):
    run("tc qdisc add dev near clsact")
    attach_tc(empty_tc.programs["empty_tc"], wire.near, "egress", "clsact").detach()
    assert "clsact" in run("tc qdisc show dev near")


BOTH: tuple[Direction, Direction] = ("ingress", "egress")


@pytest.mark.parametrize("attached", [BOTH, BOTH[::-1]])
@pytest.mark.parametrize("first", BOTH)
def test_the_last_of_ours_takes_our_qdisc_along(
    wire: Wire, empty_tc: LoadedObject, attached: tuple[Direction, ...], first: Direction
):
    before = run("tc qdisc show dev near")
    program = empty_tc.programs["empty_tc"]
    links = {way: attach_tc(program, wire.near, way, "clsact") for way in attached}
    links.pop(first).detach()
    assert "clsact" in run("tc qdisc show dev near")
    (last,) = links.values()
    last.update(program)
    last.detach()
    assert run("tc qdisc show dev near") == before


def test_our_qdisc_is_kept_for_a_foreign_filter(wire: Wire, empty_tc: LoadedObject):
    program = empty_tc.programs["empty_tc"]
    links = [attach_tc(program, wire.near, way, "clsact") for way in BOTH]
    add_filters(program, wire.near, "foreign", 10, [1])
    for link in links:
        link.detach()
    assert "foreign" in run("tc filter show dev near ingress")


def without_privilege(call: Callable[[], None]) -> BaseException | None:
    """What `call` raises in a thread without capabilities."""
    raised: list[BaseException] = []

    def run() -> None:
        header = struct.pack("=Ii", 0x20080522, 0)
        assert ctypes.CDLL(None, use_errno=True).capset(header, bytes(24)) == 0
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


@pytest.mark.host
def test_a_clsact_detach_that_failed_can_be_repeated(wire: Wire, empty_tc: LoadedObject):
    link = attach_tc(empty_tc.programs["empty_tc"], wire.near, "ingress", "clsact")
    assert isinstance(without_privilege(link.detach), PrivilegeError)
    assert "mapek" in run("tc filter show dev near ingress")
    link.detach()
    assert "clsact" not in run("tc qdisc show dev near")


def test_a_clsact_attach_that_fails_leaves_no_qdisc(wire: Wire, empty: LoadedObject):
    with pytest.raises(MapekError):  # the kernel refuses an XDP program here
        attach_clsact(empty.programs["empty"], wire.near, "ingress")
    assert "clsact" not in run("tc qdisc show dev near")


@pytest.mark.host
def test_more_filters_than_handles(wire: Wire, empty_tc: LoadedObject):
    program = empty_tc.programs["empty_tc"]
    first = attach_tc(program, wire.near, "ingress", "clsact")
    assert isinstance(first, ClsactFilter)
    add_filters(program, wire.near, first.name, PRIORITY, range(2, 63))
    last = attach_tc(program, wire.near, "ingress", "clsact")
    with pytest.raises(AttachError, match=r"63 filters of ours.*mapek release"):
        attach_tc(program, wire.near, "ingress", "clsact")
    assert isinstance(last, ClsactFilter)
    assert last.handle == 63
    assert [(one.ifindex, one.direction, one.handle, one.program_id) for one in find_clsact()] == [
        (wire.near, "ingress", handle, program.id) for handle in range(1, 64)
    ]
    run("tc qdisc del dev near clsact")


def test_a_clsact_filter_that_is_gone(wire: Wire, empty_tc: LoadedObject):
    program = empty_tc.programs["empty_tc"]
    filter_ = attach_tc(program, wire.near, "ingress", "clsact")
    run("tc qdisc del dev near clsact")
    with pytest.raises(AttachError, match="gone or replaced"):
        filter_.update(program)
    filter_.detach()
    filter_ = attach_tc(program, wire.near, "ingress", "clsact")
    run("ip link del near")
    filter_.detach()
