"""`mapek bpf clean`: what a killed agent left goes, what a living one has, foreign or another user's stays."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapek.bpf import ObjectSpec, attach_xdp, load, object_path, read_xdp, syscall
from mapek.bpf.bpffs import OURS
from mapek.bpf.clsact import PRIORITY
from mapek.cli import main
from mapek.cli.bpf import clean as command
from mapek.cli.bpf import spaces
from mapek.testing.child import become_nobody, in_child
from tests.netns.sensors.wires import Space, run

pytestmark = [pytest.mark.netns, pytest.mark.needs("bpffs")]

AGENT = """
import asyncio, os, sys
from pathlib import Path
from mapek.bpf import Dispatcher, ObjectSpec, attach_tc, attach_xdp_netlink, load, object_path
import socket

async def main():
    index = socket.if_nametoindex("near")
    pins = Path("/sys/fs/bpf/mapek") / str(os.stat("/proc/self/ns/net").st_ino) / "near"
    tc = load(ObjectSpec.read(object_path("empty_tc")))
    xdp = load(ObjectSpec.read(object_path("empty")))
    kept = []
    for kind in sys.argv[1:]:
        if kind == "chain":
            kept.append(await Dispatcher.attach(index, pin_dir=pins))
        elif kind == "clsact":
            kept += [attach_tc(tc.programs["empty_tc"], index, way, "clsact") for way in ("ingress", "egress")]
        elif kind == "netlink":
            kept.append(attach_xdp_netlink(xdp.programs["empty"], socket.if_nametoindex("far")))
    print("ready", flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


class Agent:
    """A process that attaches things of ours; it lives until it is killed."""

    def __init__(self, *kinds: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", AGENT, *kinds], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        self.pid = self._process.pid

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def space() -> Iterator[Space]:
    made = Space.new()
    try:
        with made.entered():
            run("ip link add near type veth peer name far")
            run("ip link set near up")
            run("ip link set far up")
            yield made
            shutil.rmtree(pins(), ignore_errors=True)
    finally:
        made.close()


def pins() -> Path:
    return OURS / str(os.stat("/proc/thread-self/ns/net").st_ino)


def clean(*words: str) -> tuple[int, list[dict[str, str]], str]:
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main(["bpf", "clean", "--json", *words])
    return code, json.loads(out.getvalue() or "[]"), error.getvalue()


def state() -> tuple[bool, int, object]:
    """Chain pinned; tc filters; XDP on far."""
    shown = "".join(run(f"tc filter show dev near {way}") for way in ("ingress", "egress"))
    return (pins() / "near/link").exists(), shown.count(" handle 0x"), read_xdp(socket.if_nametoindex("far"))


KINDS = {"chain": ["chain"], "clsact": ["tc filter", "tc filter"], "netlink": ["xdp program"]}


@pytest.mark.kernel
@pytest.mark.parametrize("kinds", [("chain",), ("clsact",), ("netlink",), tuple(KINDS)])
def test_what_a_killed_agent_left(space, kinds):
    expected = sorted(kind for one in kinds for kind in KINDS[one])
    assert clean() == (0, [], "")
    agent = Agent(*kinds)
    try:
        before = state()
        code, found, error = clean()
        assert (code, error) == (1, "")
        assert sorted(one["kind"] for one in found) == expected
        assert all(f"(pid {agent.pid})" in one["keep"] for one in found), found
        assert state() == before
    finally:
        agent.kill()
    assert state() == before, "what is left outlives its agent"
    code, found, _ = clean("--dry-run")
    assert (code, sorted(one["kind"] for one in found)) == (0, expected)
    assert state() == before
    code, found, _ = clean()
    assert (code, sorted(one["kind"] for one in found)) == (0, expected)
    assert {one["namespace"] for one in found} == {os.stat("/proc/thread-self/ns/net").st_ino}
    assert state() == (False, 0, None)
    assert "clsact" not in run("tc qdisc show dev near")
    assert not pins().exists()
    assert clean() == (0, [], "")


def test_a_living_agent_beside_a_dead_one(space):
    dead = Agent("chain", "clsact")
    dead.kill()
    lives = Agent("netlink", "clsact")
    try:
        code, found, _ = clean()
        assert code == 1
        kept = [one for one in found if one["keep"]]
        assert sorted(one["kind"] for one in kept) == ["tc filter", "tc filter", "xdp program"]
        assert sorted(one["kind"] for one in found if not one["keep"]) == ["chain", "tc filter", "tc filter"]
        assert state()[:2] == (False, 2)
        assert state()[2] is not None
    finally:
        lives.kill()
    assert clean()[0] == 0
    assert state() == (False, 0, None)


def foreign(name: str, kind: int) -> int:
    """The fd of a program that only has a name of ours: r0 = 2 (XDP_PASS, or 0 for tc), exit."""
    code = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 2 if kind == 6 else 0, 0x95, 0, 0, 0)
    instructions, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    attr = struct.pack(
        "=IIQQIIQII16sII", kind, 2, ctypes.addressof(instructions), ctypes.addressof(licence), 0, 0, 0, 0, 0,
        name.encode(), 0, 37 if kind == 6 else 0,
    )  # fmt: skip
    return syscall.bpf(syscall.PROG_LOAD, attr, "load", name)


def test_a_foreign_program_with_our_name(space):
    xdp, tc = foreign("dispatcher", 6), foreign("empty_tc", 3)
    near, far = (socket.if_nametoindex(name) for name in ("near", "far"))
    ident = struct.unpack_from("=4xI", syscall.info(tc, 232))[0]
    path = Path(f"/sys/fs/bpf/mapek-test-{os.getpid()}-c")
    spec = ObjectSpec.read(object_path("empty"))
    try:
        syscall.pin(xdp, path)
        run(f"ip link set dev far xdpgeneric pinned {path}")
        path.unlink()
        syscall.pin(tc, path)
        run("tc qdisc add dev near clsact")
        from pyroute2 import IPRoute

        with IPRoute() as route:
            route.tc(
                "add-filter", "bpf", near, 1, fd=tc, name=f"mapek:empty_tc:{ident}",
                parent=0xFFFFFFF2, prio=PRIORITY, protocol=3, direct_action=True,
            )  # fmt: skip
        path.unlink()
        # And a link of our kind of place, that runs another program than ours.
        pins().joinpath("near").mkdir(parents=True)
        with load(spec) as loaded, attach_xdp(loaded.programs["empty"], near, "generic") as link:
            link.update(_Fd(xdp))  # type: ignore[arg-type]
            link.pin(pins() / "near/link")
    finally:
        for fd in (xdp, tc):
            os.close(fd)
        path.unlink(missing_ok=True)
    before = state()
    assert before[:2] == (True, 1)
    code, found, error = clean()
    assert (code, error) == (1, "")
    assert sorted((one["kind"], one["keep"].split(" (id")[0]) for one in found) == [
        ("chain", "its link runs program 'dispatcher'"),
        ("tc filter", "program 'empty_tc'"),
    ]
    assert state() == before
    assert read_xdp(far) is not None


class _Fd:
    """As much of a program as `Link.update` needs."""

    def __init__(self, fd: int) -> None:
        self.fd, self.id = fd, struct.unpack_from("=4xI", syscall.info(fd, 232))[0]


def test_two_at_once(space):
    Agent("chain", "clsact", "netlink").kill()
    arguments = [sys.executable, "-m", "mapek", "bpf", "clean", "--json"]
    both = [subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    told = [one.communicate() for one in both]
    assert [one.returncode for one in both] == [0, 0], told
    found = [json.loads(out) for out, _ in told]
    assert sorted(len(one) for one in found) == [0, 4]
    assert state() == (False, 0, None)


def test_symbolic_links_and_other_users(space):
    Agent("chain").kill()
    folder = pins()
    target = folder / "near"
    os.chown(target, 65534, 65534)
    code, (one,), _ = clean()
    assert (code, one["keep"]) == (1, "it belongs to user 65534")
    assert (target / "link").exists()
    os.chown(target, 0, 0)
    # One inside, and the folder of the namespace itself.
    (folder / "other").symlink_to(target)
    code, found, _ = clean("--dry-run")
    assert [(one["interface"], one["keep"]) for one in found] == [
        ("near", ""),
        ("other", "it is a symbolic link, which no agent makes"),
    ]
    (folder / "other").unlink()
    moved = folder.with_name(f"{folder.name}0")
    folder.rename(moved)
    folder.symlink_to(moved)
    try:
        code, (one,), _ = clean()
        assert (code, one["kind"], one["keep"]) == (
            1,
            "folder",
            "it is a symbolic link, which no agent makes",
        )
        assert (moved / "near/link").exists()
    finally:
        folder.unlink()
        moved.rename(folder)
    assert clean()[0] == 0
    assert state() == (False, 0, None)


def test_another_namespace(space):
    """As `--all` does for each; the real one would clean the machine that the test runs on."""
    Agent("chain", "clsact").kill()
    inode = os.stat("/proc/thread-self/ns/net").st_ino
    there = subprocess.Popen(["sleep", "60"])
    home = Space.new()
    try:
        with home.entered():
            (one,) = [one for one in spaces.reachable() if one.inode == inode]
            found = command.clean(one)
            assert sorted((each.left.kind, each.left.keep) for each in found) == [
                ("chain", ""), ("tc filter", ""), ("tc filter", "")
            ]  # fmt: skip
            assert {each.namespace for each in found} == {inode}
    finally:
        home.close()
        there.kill()
        there.wait()
    assert state() == (False, 0, None)


def test_all_is_said_without_being_done(space):
    Agent("clsact").kill()
    code, found, error = clean("--all", "--dry-run")
    assert error == ""
    here = os.stat("/proc/thread-self/ns/net").st_ino
    assert [one["kind"] for one in found if one["namespace"] == here] == ["tc filter", "tc filter"]
    assert code == int(any(one["keep"] for one in found))
    assert state()[1] == 2
    assert clean()[0] == 0


def test_as_nobody(space):
    Agent("clsact").kill()

    def work() -> None:
        become_nobody()
        code, found, error = clean()
        assert (code, found) == (1, [])
        assert error.startswith("mapek: ")
        assert "CAP_SYS_ADMIN missing; run as root" in error
        assert error.count("\n") == 1

    # Once as root: nobody may not read what is imported on the way.
    clean("--dry-run")
    in_child(work, "mapek bpf clean as nobody")
    assert state()[1] == 2
    code, found, _ = clean()
    assert code == 0, found


def test_without_a_bpffs(space):
    Agent("clsact").kill()
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"umount /sys/fs/bpf && {sys.executable} -m mapek bpf clean"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("removed the tc filter of near") == 2
    assert state()[1] == 0


def test_words_for_people(space, capsys):
    Agent("netlink").kill()
    assert main(["bpf", "clean"]) == 0
    assert capsys.readouterr().out.startswith("removed the xdp program of far (native, program empty (id ")
    assert main(["bpf", "clean"]) == 0
    assert capsys.readouterr().out == "no dead agent left anything in this network namespace\n"
