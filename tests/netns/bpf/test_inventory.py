"""What is in the kernel, beside what bpftool says of the same moment."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from mapek.bpf import Dispatcher, ObjectSpec, attach_tc, load, object_path
from mapek.bpf.inventory import Loaded, programs
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
                assert found["xdp_counter"].attached == ()
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
