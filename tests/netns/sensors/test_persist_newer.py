"""A newer object in the place of one that counts: its counters go on, or it is refused with the difference."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapek.bpf import pins, read_xdp
from mapek.bpf.build import FLAGS, HERE, compiler
from mapek.bpf.place import Place
from mapek.sensors.cgroups import find_cgroups
from tests.netns.bpf.wires import udp
from tests.netns.sensors.keeping import Agent, Traffic, agent
from tests.netns.sensors.syscall_load import CALLS, load

pytestmark = [pytest.mark.kernel, pytest.mark.needs("bpffs")]
UDP4 = "receive_packets,ipv4,udp,no"
OPTIONS = {"interfaces": ["near"], "persist": True}
OTHER_OBJECT = """
import mapek.bpf, pathlib
known = mapek.bpf.object_path
mapek.bpf.object_path = lambda name: pathlib.Path({path!r}) if name == {name!r} else known(name)
"""


def build(folder: Path, name: str, *changes: tuple[str, str, str]) -> str:
    """An object of another source, (file, old, new) each changed once; the prelude of an agent that uses it."""
    for file in (f"{name}.bpf.c", f"{name}.h"):
        text = (HERE / "programs" / file).read_text()
        for changed, old, new in changes:
            if changed == file:
                assert old in text
                text = text.replace(old, new, 1)
        (folder / file).write_text(text)
    target = "bpfel" if sys.byteorder == "little" else "bpfeb"
    out = folder / f"{name}.o"
    command = [compiler(), *FLAGS, "-target", target, "-c", str(folder / f"{name}.bpf.c"), "-o", str(out)]
    subprocess.run(command, cwd=HERE, check=True)
    return OTHER_OBJECT.format(path=str(out), name=name)


@pytest.mark.host
@pytest.mark.needs("clang")
def test_a_newer_object_goes_on_with_the_counters(quiet, tmp_path):
    """It has one map more, and misses no frame."""
    change = (
        "xdp_counter.bpf.c",
        "counter->packets++;",
        "counter->packets++;\n\t\tbpf_map_lookup_elem(&extra, &key);",
    )
    more = (
        "xdp_counter.bpf.c",
        "/* [0]: packets seen",
        "struct {\n\t__uint(type, BPF_MAP_TYPE_ARRAY);\n\t__uint(max_entries, 1);\n\t__type(key, __u32);\n"
        "\t__type(value, __u64);\n} extra SEC(\".maps\");\n\n/* [0]: packets seen",
    )  # fmt: skip
    newer = build(tmp_path, "xdp_counter", change, more)
    with Traffic(udp()) as traffic, agent("xdp_counter", OPTIONS, tmp_path) as first:
        traffic.start()
        traffic.go_on()
        first.ask()
        first.kill()
        for prelude in (newer, "", newer):
            with agent("xdp_counter", OPTIONS, tmp_path, prelude) as other:
                assert other.said["degraded"] == []
                traffic.go_on()
                other.kill()
        with agent("xdp_counter", OPTIONS, tmp_path, newer) as last:
            traffic.go_on()
            traffic.stop()
            assert last.rows()["near"][UDP4] == traffic.sent


@pytest.mark.host
@pytest.mark.needs("clang")
@pytest.mark.parametrize(
    ("change", "word"),
    [
        (
            ("__u64 packets;\n\t__u64 bytes;", "__u64 bytes;\n\t__u64 packets;"),
            "map counters: value.bytes is u64 of 8 bytes at byte 0, was u64 of 8 bytes at byte 8",
        ),
        (
            ("__u64 packets;", "__u64 frames;"),
            "map counters: value.packets is gone, was u64 of 8 bytes at byte 0",
        ),
    ],
)  # fmt: skip
def test_another_layout_is_refused_with_the_difference(quiet, tmp_path, change, word):
    """The two have the same size: only their types tell them apart."""
    uses = [("xdp_counter.bpf.c", "counter->packets++", "counter->frames++")] if "frames" in change[1] else []
    other = build(tmp_path, "xdp_counter", ("xdp_counter.h", *change), *uses)
    with Traffic(udp()) as traffic, agent("xdp_counter", OPTIONS, tmp_path) as first:
        traffic.start()
        traffic.go_on()
        first.ask()
        first.kill()
        with agent("xdp_counter", OPTIONS, tmp_path, other) as refused:
            assert refused.said["kind"] == "PinError"
            assert word in str(refused.said["error"])
            assert str(refused.said["error"]).endswith("mapek release ends it, or set persist = false")
            refused.stop()
        # The old one counts on, and is there for who can read it.
        traffic.go_on()
        with agent("xdp_counter", OPTIONS, tmp_path) as again:
            traffic.stop()
            assert again.rows()["near"][UDP4] == traffic.sent
            again.kill()
    with agent("xdp_counter", {**OPTIONS, "persist": False}, tmp_path, other) as fresh:
        assert "error" not in fresh.said
        fresh.ask()
        fresh.stop()
    assert read_xdp(quiet.near) is None


def resets(times: int) -> None:
    """Connect to where nobody listens."""
    script = f"""
import socket
for _ in range({times}):
    try:
        socket.create_connection(("127.0.0.1", 9))
    except ConnectionRefusedError:
        pass
"""
    subprocess.run([sys.executable, "-S", "-c", script], check=True)


@pytest.mark.needs("btf")
@pytest.mark.parametrize("ending", [Agent.kill, Agent.stop])
def test_net_events_goes_on(quiet, tmp_path, ending):
    def reset(one: Agent) -> int:
        # Those sent without a socket are no tracepoint's business before kernel 6.10.
        return one.rows()["a"]["tcp_reset_received_,ipv4"]

    options = {"persist": True, "samples_per_s": 0}
    with agent("net_events", options, tmp_path) as first:
        resets(20)
        assert reset(first) == 20
        ending(first)
    resets(20)
    with agent("net_events", options, tmp_path) as second:
        resets(20)
        assert second.said["degraded"] == []
        assert reset(second) == 60
        ending(second)
    resets(20)
    # Another setting makes them other programs; the counters are the same.
    with agent("net_events", {**options, "samples_per_s": 1.0}, tmp_path) as third:
        resets(20)
        assert reset(third) == 100
        third.stop()
    (folder,) = pins.agents(pins.root())
    Place(folder, "net_events").remove()
    assert not pins.root().exists()


@pytest.fixture
def cgroup() -> Iterator[Path]:
    path = Path(find_cgroups()) / f"mapek-keep-{os.getpid()}"
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()


@pytest.mark.needs("btf", "cgroup2")
@pytest.mark.parametrize("variant", ["tp_btf", "raw_tp", "task_storage"])
def test_syscall_latency_goes_on(quiet, tmp_path, cgroup, variant):
    names = ("write", "getppid")
    options = {
        "persist": True, "cgroup": str(cgroup.relative_to(find_cgroups())), "syscalls": list(names), "variant": variant,
    }  # fmt: skip

    def calls(one: Agent) -> list[int]:
        (row,) = one.rows().values()
        return [row[f"calls_,{name}"] for name in names]

    with load() as inside:
        (cgroup / "cgroup.procs").write_text(str(inside.pid))
        try:
            with agent("syscall_latency", options, tmp_path) as first:
                inside.run()
                assert calls(first) == [CALLS[name] for name in names]
                first.kill()
            inside.run()
            with agent("syscall_latency", options, tmp_path) as second:
                assert [word for word in second.said["degraded"] if "outlive" in word] == []  # type: ignore[attr-defined]
                inside.run()
                assert calls(second) == [3 * CALLS[name] for name in names]
                second.stop()
            inside.run()
            with agent("syscall_latency", {**options, "syscalls": ["read", "getppid"]}, tmp_path) as other:
                assert "system calls is read getppid, was write getppid" in str(other.said["error"])
                other.stop()
            with agent("syscall_latency", options, tmp_path) as third:
                assert calls(third) == [4 * CALLS[name] for name in names]
                third.kill()
        finally:
            inside.process.kill()
            inside.process.wait()
