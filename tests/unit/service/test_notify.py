"""What the service manager hears, over a real socket, and when the watchdog is not fed."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mapek.clock import RealClock
from mapek.contracts import Status, Touchpoint
from mapek.knowledge import Knowledge, Topology
from mapek.loop import Loop
from mapek.service import notify
from mapek.service.notify import Notifier
from tests.unit.cli.test_commands import QUIET, ROOT


class Sensor(Touchpoint):
    name = "still"
    period_ns = 0

    def __init__(self) -> None:
        self.degraded: tuple[str, ...] = ()

    def status(self) -> Status:
        return Status(True, degraded=self.degraded)


class Manager:
    """A service manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.setblocking(False)

    def environment(self, **more: str) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.address, **more}

    def heard(self) -> list[str]:
        found: list[str] = []
        while True:
            try:
                found += self._socket.recv(65536).decode().split("\n")
            except BlockingIOError:
                return found

    async def hears(self, word: str) -> list[str]:
        found: list[str] = []
        async with asyncio.timeout(10):
            while not any(line.startswith(word) for line in found):
                await asyncio.sleep(0.01)
                found += self.heard()
        return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    one = Manager(str(tmp_path / "n") if request.param == "path" else f"@mapek-test-{os.getpid()}")
    yield one
    one.close()


@pytest.fixture
async def loop():
    clock = RealClock()
    async with Loop(Knowledge(Topology("a", (), ())), clock, [Sensor()]) as one:
        yield one
    clock.close()


async def test_a_life(manager, loop):
    environment = manager.environment(WATCHDOG_USEC="100000", WATCHDOG_PID=str(os.getpid()), OTHER="x")
    notifier = Notifier(environment)
    assert environment == {"OTHER": "x"}
    assert notifier.watchdog_ns == 100_000_000
    assert manager.heard() == []
    notifier.ready(loop)
    assert manager.heard() == ["READY=1", "STATUS=1 of 1 open", "WATCHDOG=1"]
    loop.monitor.watched["still"].touchpoint.degraded = ("no\nbpf_timer",)
    assert "STATUS=1 of 1 open; still: no bpf_timer" in await manager.hears("STATUS")
    began, fed = time.monotonic(), 0
    while fed < 10:
        fed += (await manager.hears("WATCHDOG=1")).count("WATCHDOG=1")
    # Twice in the time that it has.
    assert 0.3 < time.monotonic() - began < 5
    notifier.stopping()
    heard = manager.heard()
    assert heard[-1] == "STOPPING=1"
    await asyncio.sleep(0.2)
    assert manager.heard() == []
    notifier.close()
    notifier.close()
    assert notifier.send("READY=1") is False


async def test_a_loop_without_ticks_is_not_fed(manager, loop, monkeypatch):
    monkeypatch.setattr(notify, "DEAD_NS", 400_000_000)
    notifier = Notifier(manager.environment(WATCHDOG_USEC="100000"))
    loop._tick.cancel()
    notifier.ready(loop)
    await asyncio.sleep(0.6)
    assert "WATCHDOG=1" in manager.heard()
    await asyncio.sleep(0.3)
    assert manager.heard() == []
    # The event loop runs all the same, and so does the status.
    loop.monitor.watched["still"].touchpoint.degraded = ("it is ill",)
    await manager.hears("STATUS=1 of 1 open; still: it is ill")
    notifier.close()


async def test_ticks_that_fail_on_their_way_do_not_feed(manager, loop, monkeypatch):
    monkeypatch.setattr(notify, "DEAD_NS", 400_000_000)
    monkeypatch.setattr(loop._analyze, "findings", lambda item: 1 / 0)
    notifier = Notifier(manager.environment(WATCHDOG_USEC="100000"))
    notifier.ready(loop)
    await asyncio.sleep(1.6)  # a tick comes each second
    manager.heard()
    await asyncio.sleep(0.3)
    assert manager.heard() == []
    notifier.close()


@pytest.mark.parametrize(
    "environment",
    [{}, {"WATCHDOG_USEC": "1000"}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}],
    ids=["nothing", "no socket", "empty", "of another kind"],
)
async def test_nobody_to_tell(environment, loop):
    notifier = Notifier(environment)
    notifier.ready(loop)
    assert notifier._timer is None
    assert notifier.send("READY=1") is False
    notifier.stopping()
    notifier.close()


@pytest.mark.parametrize("words", [{"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "-5"}])
def test_a_watchdog_that_is_not_ours(words):
    notifier = Notifier({"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "1000000", **words})
    notifier.close()
    assert notifier.watchdog_ns == 0


async def test_a_manager_that_has_gone(tmp_path, loop, caplog):
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "none")})
    assert notifier.send("READY=1") is False
    assert caplog.messages == ["notify the service manager: No such file or directory"]
    notifier.close()


HANGING = """
import os, time
from mapek import Touchpoint, take

class Still(Touchpoint):
    name = "still"
    period_ns = 100_000_000

    def __init__(self, options):
        self._hangs = take(options, "hangs", str, "")

    def read(self):
        assert "NOTIFY_SOCKET" not in os.environ
        while os.path.exists(self._hangs):
            time.sleep(0.01)
"""


def wait_for(manager: Manager, word: str, timeout: float = 20.0) -> list[str]:
    found: list[str] = []
    deadline = time.monotonic() + timeout
    while not any(line.startswith(word) for line in found):
        assert time.monotonic() < deadline, f"{word} did not come: {found}"
        time.sleep(0.01)
        found += manager.heard()
    return found


def test_the_agent_that_hangs_is_not_fed(tmp_path: Path):
    plugins = tmp_path / "plugins"
    plugins.mkdir(mode=0o755)
    (plugins / "still.py").write_text(HANGING)
    stop = tmp_path / "hang"
    (tmp_path / "node.toml").write_text(QUIET.format(listen="", options=f"hangs = {json.dumps(str(stop))}"))
    manager = Manager(str(tmp_path / "n"))
    process = subprocess.Popen(
        [sys.executable, "-m", "mapek", "run", "--json", "-c", str(tmp_path / "node.toml")],
        cwd=ROOT,
        env={**os.environ, **manager.environment(WATCHDOG_USEC="200000")},
        stdout=subprocess.DEVNULL,
    )
    try:
        assert wait_for(manager, "READY=1")[:2] == ["READY=1", "STATUS=1 of 1 open"]
        wait_for(manager, "WATCHDOG=1")
        stop.touch()
        time.sleep(0.3)
        manager.heard()
        time.sleep(0.6)  # three times what the manager waits
        assert manager.heard() == []
        stop.unlink()
        wait_for(manager, "WATCHDOG=1")
        process.terminate()
        assert wait_for(manager, "STOPPING=1")[-1] == "STOPPING=1"
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        manager.close()
