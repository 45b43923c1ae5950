"""Every way to attach, and every way in which others can take it off: what is noticed, and what the kernel refuses."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from mapek.bpf import (
    Dispatcher,
    LoadedObject,
    ObjectSpec,
    attach_tc,
    attach_xdp,
    attach_xdp_netlink,
    load,
    object_path,
    syscall,
    tracing,
)
from mapek.bpf.maps import open_map
from mapek.bpf.standing import Slot, Standing, how_lost
from mapek.bpf.xdp import Link
from mapek.errors import MapekError
from tests.netns.bpf.wires import Wire, run

pytestmark = pytest.mark.netns


def loaded(life: ExitStack, name: str) -> LoadedObject:
    return life.enter_context(load(ObjectSpec.read(object_path(name))))


def force(link: Link) -> None:
    """What `bpftool link detach id N` does, from another descriptor."""
    fd = syscall.fd_by_id(30, link.id)
    try:
        syscall.bpf(syscall.LINK_DETACH, struct.pack("=I", fd), "detach link", link.id)
    finally:
        os.close(fd)


def give(link: Link, program_fd: int) -> None:
    """Another program for the link, from another descriptor."""
    fd = syscall.fd_by_id(30, link.id)
    try:
        syscall.bpf(syscall.LINK_UPDATE, struct.pack("=IIII", fd, program_fd, 0, 0), "update link", link.id)
    finally:
        os.close(fd)


def xdp(life: ExitStack, wire: Wire) -> Link:
    return life.enter_context(attach_xdp(loaded(life, "empty").programs["empty"], wire.near))


def tcx(life: ExitStack, wire: Wire) -> Link:
    link = attach_tc(loaded(life, "empty_tc").programs["empty_tc"], wire.near, "ingress", "tcx")
    assert isinstance(link, Link)
    return life.enter_context(link)


def clsact(life: ExitStack, wire: Wire) -> Standing:
    link = attach_tc(loaded(life, "empty_tc").programs["empty_tc"], wire.near, "egress", "clsact")
    life.callback(link.detach)
    assert not isinstance(link, Link)
    return link


def by_netlink(life: ExitStack, wire: Wire) -> Standing:
    held = attach_xdp_netlink(loaded(life, "empty").programs["empty"], wire.near, "generic")
    life.callback(held.detach)
    return held


def bpftool_detach(one: Standing, life: ExitStack) -> None:
    assert isinstance(one, Link)
    run(f"bpftool link detach id {one.id}")


def forced(one: Standing, life: ExitStack) -> None:
    assert isinstance(one, Link)
    force(one)


def given(kind: str) -> Callable[[Standing, ExitStack], None]:
    def other(one: Standing, life: ExitStack) -> None:
        assert isinstance(one, Link)
        give(one, loaded(life, kind).programs[kind].fd)

    return other


def command(*words: str) -> Callable[[Standing, ExitStack], None]:
    def other(one: Standing, life: ExitStack) -> None:
        for word in words:
            run(word)

    return other


def netlink_replaced(one: Standing, life: ExitStack) -> None:
    run("ip link set dev near xdpgeneric off")
    held = attach_xdp_netlink(loaded(life, "empty").programs["empty"], one.ifindex, "generic")  # type: ignore[attr-defined]
    life.callback(held.detach)


def filter_replaced(one: Standing, life: ExitStack) -> None:
    program = loaded(life, "empty_tc").programs["empty_tc"]
    path = Path(f"/sys/fs/bpf/mapek-test-{os.getpid()}-f")
    syscall.pin(program.fd, path)
    life.callback(path.unlink)
    place = f"dev near egress protocol all prio {0xBEE} handle {one.handle}"  # type: ignore[attr-defined]
    run(f"tc filter replace {place} bpf direct-action object-pinned {path}")


TCX = pytest.mark.needs("tcx")
TAKEN = [
    (xdp, forced, "its link was detached by force"),
    (xdp, bpftool_detach, "its link was detached by force"),
    (xdp, given("empty"), "its link was given program 'empty' (id "),
    pytest.param(tcx, forced, "its link was detached by force", marks=TCX),
    pytest.param(tcx, given("empty_tc"), "its link was given program 'empty_tc' (id ", marks=TCX),
    (clsact, command(f"tc filter del dev near egress prio {0xBEE}"), "its filter is gone"),
    (clsact, command("tc filter del dev near egress"), "its filter is gone"),
    (clsact, command("tc qdisc del dev near clsact"), "its filter is gone"),
    (
        clsact,
        command("tc qdisc del dev near clsact", "tc qdisc add dev near clsact"),
        "its filter is gone",
    ),
    (clsact, filter_replaced, "another filter is in its place: "),
    (by_netlink, command("ip link set dev near xdpgeneric off"), "it was taken off"),
    (by_netlink, command("bpftool net detach xdpgeneric dev near"), "it was taken off"),
    (by_netlink, netlink_replaced, "program 'empty' (id "),
]


@pytest.mark.kernel
@pytest.mark.needs("bpftool", "bpffs")
@pytest.mark.parametrize(("attach", "take", "said"), TAKEN)
def test_taken_off(
    wire: Wire, attach: Callable[[ExitStack, Wire], Standing], take: Callable[..., None], said: str
) -> None:
    with ExitStack() as life:
        one = attach(life, wire)
        assert how_lost(one, wire.near) == ""
        take(one, life)
        assert how_lost(one, wire.near).startswith(said)


@pytest.mark.parametrize("attach", [xdp, pytest.param(tcx, marks=TCX), clsact, by_netlink])
def test_gone_with_its_interface_is_not_taken_off(
    wire: Wire, attach: Callable[[ExitStack, Wire], Standing]
) -> None:
    with ExitStack() as life:
        one = attach(life, wire)
        run("ip link del near")
        assert how_lost(one, wire.near) == ""


@pytest.mark.parametrize("attach", [xdp, pytest.param(tcx, marks=TCX), clsact, by_netlink])
def test_what_we_took_off_ourselves(wire: Wire, attach: Callable[[ExitStack, Wire], Standing]) -> None:
    with ExitStack() as life:
        one = attach(life, wire)
        one.detach()  # type: ignore[attr-defined]
        assert how_lost(one, wire.near) == ""


@pytest.mark.needs("bpftool")
@pytest.mark.parametrize(
    "words",
    [
        "ip link set dev near xdp off",
        "ip link set dev near xdpdrv off",
        "bpftool net detach xdp dev near",
        "bpftool net detach xdpdrv dev near",
    ],
)
def test_what_netlink_may_not_do_to_a_link(wire: Wire, words: str) -> None:
    with ExitStack() as life:
        one = xdp(life, wire)
        done = subprocess.run(words.split(), capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert how_lost(one, wire.near) == ""


@pytest.mark.needs("bpffs")
async def test_a_slot_of_the_chain(wire: Wire, pins: Path) -> None:
    spec = ObjectSpec.read(object_path("xdp_counter"))
    async with (
        Dispatcher.attach(wire.near, pin_dir=pins / "near") as dispatcher,
        await dispatcher.load("xdp_counter", spec) as member,
        await dispatcher.load("xdp_counter", spec) as other,
    ):
        program = member.programs["xdp_counter"]
        await dispatcher.set("xdp_counter", program)
        slot = Slot(dispatcher, "xdp_counter", program.id)
        assert how_lost(slot, wire.near) == ""
        with open_map(pins / "near" / "chain") as chain:
            key = struct.pack("=I", 1)
            chain.update(key, struct.pack("=I", other.programs["xdp_counter"].fd))
            said = how_lost(slot, wire.near)
            assert said.startswith("its slot xdp_counter of the chain was given program 'xdp_counter' (id ")
            chain.delete(key)
            assert how_lost(slot, wire.near) == "its slot xdp_counter of the chain was emptied"
        await dispatcher.set("xdp_counter", program)
        assert how_lost(slot, wire.near) == ""
        link = dispatcher._link
        assert link is not None
        give(link, other.programs["xdp_counter"].fd)
        assert how_lost(slot, wire.near).startswith("its link was given program 'xdp_counter' (id ")
        await dispatcher.restore()
        assert how_lost(slot, wire.near) == ""
        force(link)
        assert how_lost(slot, wire.near) == "its link was detached by force"
    assert how_lost(slot, wire.near) == ""


@pytest.mark.kernel
@pytest.mark.parametrize("way", ["raw_tp", pytest.param("tp_btf", marks=pytest.mark.needs("btf"))])
def test_the_kernel_lets_nobody_take_a_tracepoint_off(way: str) -> None:
    """Should a kernel come to allow it, this fails, and whoever hangs on a tracepoint has to be looked after too."""
    with ExitStack() as life:
        spec = ObjectSpec.read(object_path("syscall_latency"))
        exit_program = f"{way}_exit"
        program = life.enter_context(
            load(spec, programs={exit_program}, skip_maps=("started_tasks",))
        ).programs[exit_program]
        if way == "raw_tp":
            link = life.enter_context(tracing.attach_raw_tracepoint(program, "sys_exit"))
        else:
            link = life.enter_context(tracing.attach_btf_tracepoint(program))
        for take in (force, lambda one: give(one, program.fd)):
            with pytest.raises(MapekError) as refused:
                take(link)
            cause = refused.value.__cause__
            assert isinstance(cause, OSError)
            assert cause.errno in (errno.EOPNOTSUPP, errno.EINVAL), cause
        assert link.lost() == ""


def test_what_a_look_costs(wire: Wire) -> None:
    """Microseconds each: the guard asks it of all that is attached, every second."""
    with ExitStack() as life:
        for one in (xdp(life, wire), clsact(life, wire)):
            times = []
            for _ in range(50):
                begun = time.perf_counter_ns()
                how_lost(one, wire.near)
                times.append(time.perf_counter_ns() - begun)
            print(f"{type(one).__name__}: {sorted(times)[25] / 1e3:.1f} us")
            assert sorted(times)[25] < 2_000_000
