"""`mapek release` in a namespace of its own: what an agent left goes, what is in use or foreign stays."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from mapek.bpf import ObjectSpec, load, object_path
from mapek.bpf.bpffs import OURS
from mapek.bpf.clsact import PRIORITY
from mapek.simulations.agent import Mapek
from mapek.simulations.lab import Lab, Node
from mapek.simulations.process import release as let_go
from mapek.simulations.topology import pair

pytestmark = pytest.mark.netns


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with Lab(pair(2)) as lab:
        yield lab


async def _release(node: Node, *arguments: str) -> tuple[int, list[Mapping[str, str]], str]:
    process = await node.namespace.start([sys.executable, "-m", "mapek", "release", "--json", *arguments])
    out, error = await process.communicate()
    let_go(process)
    assert process.returncode is not None
    return process.returncode, json.loads(out or "[]"), error.decode()


def _pins(node: Node) -> Path:
    """The node's private bpffs as we see it."""
    inode = os.stat(f"/proc/{node.namespace.pid}/ns/net").st_ino
    return Path(f"/proc/{node.namespace.pid}/root/sys/fs/bpf/mapek/{inode}")


async def test_what_an_agent_left(lab: Lab):
    node = lab.nodes["a"]
    assert await _release(node) == (0, [], "")
    mapek = Mapek("fast")
    try:
        await mapek.open(lab)
        assert sorted(one.name for one in _pins(node).iterdir()) == ["l0", "l1"]
        code, found, error = await _release(node)
        assert (code, error) == (1, "")
        pid = mapek.agents["a"].pid
        for one in found:
            assert one["keep"].startswith("in use by ")
            assert f"(pid {pid})" in one["keep"]
        assert (_pins(node) / "l0/link").exists()
    finally:
        await mapek.close()

    code, found, _ = await _release(node, "--dry-run")
    assert (code, [one["interface"] for one in found]) == (0, ["l0", "l1"])
    assert (_pins(node) / "l0/link").exists()
    (_pins(node) / "l1/other").mkdir()
    code, found, _ = await _release(node)
    assert code == 1
    assert [(one["interface"], one["keep"]) for one in found] == [
        ("l0", ""),
        ("l1", "other in it is not ours"),
    ]
    assert not (_pins(node) / "l0").exists()
    (_pins(node) / "l1/other").rmdir()
    assert (await _release(node))[0] == 0
    assert not _pins(node).exists()

    def attached() -> list[object]:
        route = node.namespace.netlink()
        links = (route.get_links(index)[0] for index in node.interfaces)
        return [link.get_attr("IFLA_XDP").get_attr("IFLA_XDP_ATTACHED") for link in links]

    assert await node.namespace.run(attached) == [None, None]
    # The neighbour's own are another namespace's.
    assert sorted(one.name for one in _pins(lab.nodes["b"]).iterdir()) == ["l0", "l1"]


async def test_a_foreign_program_in_our_place_stays(lab: Lab):
    node = lab.nodes["a"]
    script = """
import os, sys
from pathlib import Path
from mapek.bpf import ObjectSpec, attach_xdp, load, object_path
spec = ObjectSpec.read(object_path("xdp_counter"))
with load(spec) as loaded:
    link = attach_xdp(loaded.programs["xdp_counter"], int(sys.argv[1]))
    folder = Path("/sys/fs/bpf/mapek") / str(os.stat("/proc/self/ns/net").st_ino) / "l0"
    folder.mkdir(parents=True)
    link.pin(folder / "link")
"""
    index = next(iter(node.interfaces))
    process = await node.namespace.start([sys.executable, "-c", script, str(index)])
    _, words = await process.communicate()
    let_go(process)
    assert process.returncode == 0, words.decode()
    code, (one,), error = await _release(node)
    assert (code, error) == (1, "")
    assert one["keep"].startswith("its link runs program 'xdp_counter'")
    assert one["keep"].endswith(", not ours")
    assert (_pins(node) / "l0/link").exists()


FILTERS = """
import sys
from mapek.bpf import ObjectSpec, attach_tc, load, object_path
loaded = load(ObjectSpec.read(object_path("empty_tc")))
for way in ("ingress", "egress"):
    attach_tc(loaded.programs["empty_tc"], int(sys.argv[1]), way, "clsact")
print("ready", flush=True)
sys.stdin.read()
"""


async def test_filters_of_an_agent_that_was_killed(lab: Lab):
    """Below kernel 6.6 nothing else takes them off."""
    node = lab.nodes["a"]
    index = next(iter(node.interfaces))

    def on_tc() -> tuple[set[str], list[str]]:
        route = node.namespace.netlink()
        kinds = {one.get_attr("TCA_KIND") for one in route.get_qdiscs() if one["index"] == index}
        filters = (route.get_filters(index=index, parent=parent) for parent in (0xFFFFFFF2, 0xFFFFFFF3))
        names = [
            one.get_attr("TCA_OPTIONS").get_attr("TCA_BPF_NAME")
            for way in filters
            for one in way
            if one["handle"]
        ]
        return kinds, names

    before = await node.namespace.run(on_tc)
    process = await node.namespace.start(
        [sys.executable, "-c", FILTERS, str(index)], stdin=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        code, found, error = await _release(node)
        assert (code, error) == (1, "")
        assert [(one["interface"], one["kind"]) for one in found] == [("l0", "tc filter")] * 2
        assert all(one["keep"].endswith(f"(pid {process.pid}); stop it first") for one in found)
    finally:
        process.kill()
        await process.communicate()
        let_go(process)
    kinds, names = await node.namespace.run(on_tc)
    assert "clsact" in kinds
    assert len(names) == 2

    # The name alone does not make it ours.
    def forge(command: str) -> None:
        route = node.namespace.netlink()
        with load(ObjectSpec.read(object_path("empty_tc"))) as loaded:
            route.tc(
                command, "bpf", index, 60, fd=loaded.programs["empty_tc"].fd, name="mapek:other:1",
                parent=0xFFFFFFF2, prio=PRIORITY, protocol=3, direct_action=True,
            )  # fmt: skip

    await node.namespace.run(lambda: forge("add-filter"))
    code, found, _ = await _release(node, "--dry-run")
    assert (code, [bool(one["keep"]) for one in found]) == (1, [False, True, False])
    assert len((await node.namespace.run(on_tc))[1]) == 3
    code, found, _ = await _release(node)
    assert (code, [bool(one["keep"]) for one in found]) == (1, [False, True, False])
    assert await node.namespace.run(on_tc) == ({"clsact"} | before[0], ["mapek:other:1"])
    await node.namespace.run(lambda: forge("del-filter"))


def test_a_service_that_pins_as_its_own_user_is_named():
    """Its folder is in the place of ours, and what is in it lies one level deeper: there is something left."""
    script = f"mount -t bpf bpf /sys/fs/bpf; install -d -m 0700 -o 65534 {OURS}; exec {sys.executable} -m mapek release"
    done = subprocess.run(
        ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-e", "-c", script],
        cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert f"release {OURS}: it belongs to user 65534; run as that user, or rm -r {OURS} when" in done.stderr
