"""Namespaces: private in every way, and gone with all that runs in them, whatever happens to the lab."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mapek.errors import PermanentError
from mapek.simulations.clean import clean, remains
from mapek.simulations.netns import Namespace
from mapek.simulations.process import start_time

pytestmark = pytest.mark.netns

LAB = """
import asyncio, sys
from mapek.simulations.lab import Lab
from mapek.simulations.topology import pair
from mapek.simulations.traffic import traffic

async def main():
    async with Lab(pair(2)) as lab:
        await lab.static_routes()
        async with traffic(lab):
            # A grandchild of a command outlives the command: the namespaces must end it all the same.
            script = "sleep 1000 & echo $!; wait"
            process = await lab.nodes["a"].namespace.start(["sh", "-c", script])
            line = await process.stdout.readline()
            pids = [lab.nodes[n].namespace.pid for n in lab.nodes]
            print(*pids, process.pid, int(line), flush=True)
            await asyncio.Event().wait()

asyncio.run(main())
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids: list[int], timeout: float = 10.0) -> list[int]:
    deadline = time.monotonic() + timeout
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < deadline:
        os.sched_yield()
    return left


def start_lab() -> tuple[subprocess.Popen[bytes], list[int]]:
    lab = subprocess.Popen([sys.executable, "-c", LAB], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert lab.stdout is not None
    pids = [int(word) for word in lab.stdout.readline().split()]
    assert len(pids) == 4, lab.communicate()
    return lab, pids


async def test_private_in_every_way():
    async with Namespace("x") as one, Namespace("y") as other:
        assert await one.route(lambda r: [link.get_attr("IFLA_IFNAME") for link in r.get_links()]) == ["lo"]
        (one.files / "note").write_text("mine")
        assert not (other.files / "note").exists()
        assert not Path("/run/note").exists()
        process = await one.start(["sh", "-c", "cat /run/note; ls /sys/class/net /sys/fs/bpf"])
        output, errors = await process.communicate()
        assert output.startswith(b"mine"), errors
        assert b"eth" not in output
        assert (
            await one.run(lambda: os.stat("/proc/thread-self/ns/net").st_ino)
            != os.stat("/proc/self/ns/net").st_ino
        )
        with (
            await one.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
            pytest.raises(OSError, match="unreachable"),
        ):
            sock.connect(("192.0.2.1", 9))


async def test_pins_do_not_reach_the_machine():
    before = set(os.listdir("/sys/fs/bpf")) if os.path.isdir("/sys/fs/bpf") else set()
    async with Namespace("x") as space:
        process = await space.start(["mkdir", "/sys/fs/bpf/inside"])
        assert await process.wait() == 0
        assert Path(f"/proc/{space.pid}/root/sys/fs/bpf/inside").is_dir()
    assert set(os.listdir("/sys/fs/bpf")) == before


async def test_close_ends_everything_and_twice_is_fine():
    space = await Namespace("x").open()
    process = await space.start(["sh", "-c", "trap '' TERM; (trap '' TERM; sleep 1000) & echo $!; wait"])
    assert process.stdout is not None
    grandchild = int(await process.stdout.readline())
    pids = [space.pid, process.pid, grandchild]
    assert all(map(alive, pids))
    await space.close()
    await process.wait()
    assert wait_until_gone(pids) == []
    await space.close()
    with pytest.raises(PermanentError, match="not open"):
        await space.run(os.getpid)


async def test_an_error_inside_comes_out():
    async with Namespace("x") as space:
        with pytest.raises(ZeroDivisionError):
            await space.run(lambda: 1 // 0)
        process = await space.start(["/no/such/program"])
        _, errors = await process.communicate()
        assert process.returncode == 1
        assert b"No such file" in errors


async def test_cancelled_while_opening():
    task = asyncio.create_task(Namespace("x").open())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_of_a_killed_lab(how):
    lab, pids = start_lab()
    lab.send_signal(how)
    lab.communicate(timeout=20)
    assert wait_until_gone(pids) == []
    assert [remain for remain in remains() if remain.owner.startswith(f"{lab.pid}:")] == []


def test_two_labs_side_by_side():
    one, pids = start_lab()
    other, others = start_lab()
    one.kill()
    one.communicate(timeout=20)
    assert wait_until_gone(pids) == []
    assert all(map(alive, others))
    other.kill()
    other.communicate(timeout=20)
    assert wait_until_gone(others) == []


def test_clean_finds_what_could_not_end_itself():
    lab, pids = start_lab()
    owner = f"{lab.pid}:{start_time(lab.pid)}"
    # A stopped holder hears neither the pipe nor the signal.
    os.kill(pids[0], signal.SIGSTOP)
    lab.kill()
    lab.communicate(timeout=20)
    wait_until_gone(pids[1:2])
    mine = {remain.pid for remain in remains() if remain.owner == owner}
    assert pids[0] in mine
    assert pids[0] in {remain.pid for remain in clean()}
    assert wait_until_gone(pids) == []
    assert [remain for remain in remains() if remain.owner == owner] == []
