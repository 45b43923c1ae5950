"""What is in the kernel, beside what bpftool says of the same moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from mapek.bpf import (
    Dispatcher,
    ObjectSpec,
    attach_tc,
    attach_xdp,
    attach_xdp_netlink,
    load,
    object_path,
    tracing,
)
from mapek.bpf.inventory import Loaded, programs
from mapek.cli import main
from tests.netns.bpf.wires import Wire

pytestmark = pytest.mark.netns


def bpftool(*words: str) -> list[dict[str, object]]:
    done = subprocess.run(["bpftool", "-j", *words], capture_output=True, check=True, text=True)
    return json.loads(done.stdout)


def ours() -> dict[str, Loaded]:
    """By name, those that this very process holds."""
    return {one.name: one for one in programs() if any(holder.pid == os.getpid() for holder in one.holders)}


@pytest.mark.kernel
async def test_programs_their_places_and_their_holders(wire: Wire) -> None:
    index = wire.near
    spec = ObjectSpec.read(object_path("xdp_counter"))
    async with Dispatcher.attach(index) as dispatcher, await dispatcher.load("xdp_counter", spec) as member:
        await dispatcher.set("xdp_counter", member.programs["xdp_counter"])
        with load(ObjectSpec.read(object_path("empty_tc"))) as tc:
            tc_link = attach_tc(tc.programs["empty_tc"], index)
            try:
                found = ours()
                assert {name: one.object for name, one in found.items()} == {
                    "dispatcher": "dispatcher", "xdp_counter": "xdp_counter", "empty_tc": "empty_tc"
                }  # fmt: skip
                (at,) = found["dispatcher"].attached
                assert (at.kind, at.place, at.pinned) == ("xdp", "near", False)
                assert [(one.kind, one.place) for one in found["xdp_counter"].attached] == [
                    ("chain", "near slot xdp_counter")
                ]
                assert dispatcher.chain.id in found["xdp_counter"].map_ids
                if tc_link.way == "tcx":
                    (at,) = found["empty_tc"].attached
                    assert (at.kind, at.place) == ("tcx", "near ingress")
                assert found["empty_tc"].uid == 0
            finally:
                tc_link.detach()
    assert not {"dispatcher", "xdp_counter", "empty_tc"} & set(ours())


@pytest.mark.needs("bpftool")
def test_as_bpftool_says() -> None:
    with load(ObjectSpec.read(object_path("xdp_counter"))) as loaded:
        told = {one["id"]: one for one in bpftool("prog", "show")}[loaded.programs["xdp_counter"].id]
        found = ours()["xdp_counter"]
        assert told["type"] == found.type
        assert told["tag"] == found.tag
        assert told["bytes_xlated"] == found.instructions * 8
        assert told["map_ids"] == list(found.map_ids)
        assert told["uid"] == found.uid


@pytest.mark.needs("bpffs")
async def test_what_only_a_pin_keeps(wire: Wire, pins: Path) -> None:
    dispatcher = await Dispatcher.attach(wire.near, pin_dir=pins / "near")
    ident = ours()["dispatcher"].id
    await dispatcher.release(keep=True)
    try:
        (kept,) = [one for one in programs() if one.id == ident]
        assert kept.attached[0].pinned
        assert not kept.holders
    finally:
        again = await Dispatcher.attach(wire.near, pin_dir=pins / "near")
        assert again.taken_over
        await again.release(keep=False)
    assert ident not in {one.id for one in programs()}


@pytest.mark.needs("bpftool")
def test_what_no_link_tells_of(wire: Wire) -> None:
    """XDP by netlink and clsact filters, beside `bpftool net show`."""
    with (
        load(ObjectSpec.read(object_path("empty"))) as xdp,
        load(ObjectSpec.read(object_path("empty_tc"))) as tc,
        attach_xdp_netlink(xdp.programs["empty"], wire.near, "generic"),
        attach_tc(tc.programs["empty_tc"], wire.near, "ingress", "clsact"),
        attach_tc(tc.programs["empty_tc"], wire.near, "egress", "clsact"),
    ):
        (told,) = bpftool("net", "show")
        found = ours()
        (at,) = found["empty"].attached
        assert (at.link_id, at.kind, at.place) == (0, "xdp by netlink", "near generic")
        assert [(one["devname"], one["mode"], one["id"]) for one in told["xdp"]] == [  # type: ignore[attr-defined]
            ("near", "generic", found["empty"].id)
        ]
        assert [(at.kind, at.place) for at in found["empty_tc"].attached] == [
            ("clsact", "near ingress prio 3054 handle 0x1"),
            ("clsact", "near egress prio 3054 handle 0x1"),
        ]
        assert [(one["devname"], one["kind"], one["id"]) for one in told["tc"]] == [  # type: ignore[attr-defined]
            ("near", f"clsact/{way}", found["empty_tc"].id) for way in ("ingress", "egress")
        ]


@pytest.mark.kernel
@pytest.mark.needs("tracefs")
def test_what_hangs_on_a_tracepoint(wire: Wire) -> None:
    spec = ObjectSpec.read(object_path("net_events_tp"))
    with load(spec, programs={"net_drop"}) as loaded:
        program = loaded.programs["net_drop"]
        with tracing.attach_tracepoint(program, "skb", "kfree_skb"):
            (at,) = ours()["net_drop"].attached
            assert (at.kind, at.place) == ("tracepoint", "kfree_skb")
        assert ours()["net_drop"].attached == ()


@pytest.mark.needs("bpftool", "bpffs")
async def test_pins_memory_and_links_as_bpftool_says(wire: Wire, pins: Path) -> None:
    spec = ObjectSpec.read(object_path("xdp_counter"))
    async with (
        Dispatcher.attach(wire.near, pin_dir=pins / "near") as dispatcher,
        await dispatcher.load("xdp_counter", spec) as member,
    ):
        await dispatcher.set("xdp_counter", member.programs["xdp_counter"])
        found = ours()
        assert found["dispatcher"].pins == (str(pins / "near" / "link"),)
        (at,) = found["dispatcher"].attached
        told = {one["id"]: one for one in bpftool("link", "show")}[at.link_id]
        assert (told["type"], told["prog_id"]) == ("xdp", found["dispatcher"].id)
        maps = {one["id"]: one for one in bpftool("map", "show")}
        for one in found.values():
            assert one.map_bytes == sum(int(str(maps[ident]["bytes_memlock"])) for ident in one.map_ids) > 0
        # A symbolic link is no pin, whatever it points to.
        (pins / "near" / "other").symlink_to(pins / "near" / "link")
        assert ours()["dispatcher"].pins == (str(pins / "near" / "link"),)
        (pins / "near" / "other").unlink()


async def test_the_list_for_people(wire: Wire, capsys: pytest.CaptureFixture[str]) -> None:
    spec = ObjectSpec.read(object_path("xdp_counter"))
    async with (
        Dispatcher.attach(wire.near) as dispatcher,
        await dispatcher.load("xdp_counter", spec) as member,
    ):
        await dispatcher.set("xdp_counter", member.programs["xdp_counter"])
        ident = ours()["dispatcher"].attached[0].link_id
        assert main(["bpf", "list", "--ours"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ID", "NAME", "TYPE", "WHOSE", "SINCE", "MAPS", "RUNS", "NS/RUN"]
    assert f"       on xdp near (link {ident})" in lines
    assert "       in the chain of near, slot xdp_counter" in lines
    assert all(len(line) <= 110 for line in lines if not line.startswith("       held"))


@pytest.mark.kernel
def test_an_interface_of_another_namespace_is_not_called_by_the_name_of_ours(wire: Wire) -> None:
    """Every network namespace begins to count anew."""
    spec, tc_spec = ObjectSpec.read(object_path("empty")), ObjectSpec.read(object_path("empty_tc"))
    with ExitStack() as life:
        xdp, tc = life.enter_context(load(spec)), life.enter_context(load(tc_spec))
        life.enter_context(attach_xdp(xdp.programs["empty"], wire.near))
        life.enter_context(attach_tc(tc.programs["empty_tc"], wire.near))
        script = """
from mapek.bpf.inventory import programs
import sys
for one in programs():
    if one.id in map(int, sys.argv[1:]):
        print(one.name, *(at.place for at in one.attached if at.link_id))
"""
        ids = [str(xdp.programs["empty"].id), str(tc.programs["empty_tc"].id)]
        setup = "ip link add near type veth peer name far && ip link set near up"
        command = f"{setup} && {sys.executable} -c '{script}' {' '.join(ids)}"
        there = ["unshare", "--net", "sh", "-c", command]
        done = subprocess.run(there, capture_output=True, check=True, text=True)
        index = f"ifindex {wire.near} of another network namespace"
        told = done.stdout.splitlines()
        assert told[0] == f"empty {index}"
        assert told[1] in (f"empty_tc {index} ingress", "empty_tc")
        (at,) = ours()["empty"].attached
        assert at.place == "near"
