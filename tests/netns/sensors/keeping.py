"""An agent that keeps what it counts, as a process of its own that can be killed; and the traffic that it counts.

Run as a program, it opens one sensor in the present namespace, answers each line of its input with what the sensor
reads and says, and closes it at the end of its input.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from mapek.bpf import pins
from mapek.bpf.place import places
from mapek.clock import RealClock
from mapek.contracts import Surroundings, Touchpoint
from mapek.errors import MapekError
from mapek.knowledge import Knowledge, Topology
from mapek.model import Step

ROOT = Path(__file__).parents[3]


class Agent:
    """The process. `said` is what it answered when it had opened: {"error": ...} or as `ask`."""

    def __init__(
        self, sensor: str, options: Mapping[str, object], state: Path, *, prelude: str = "", wait: bool = True
    ) -> None:
        told = json.dumps([sensor, dict(options), str(state)])
        command = [sys.executable, "-m", "tests.netns.sensors.keeping", told, prelude]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.said: dict[str, object] = self.heard() if wait else {}

    def heard(self) -> dict[str, object]:
        """Its next answer; {} when it has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else {}

    def ask(self, action: str = "", **fields: object) -> dict[str, object]:
        """What it reads: {"rows": {entity: {column: value}}, "degraded": [...], "attached": {...}};
        first it does `action`."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([action, fields]) + "\n")
        self.process.stdin.flush()
        return self.heard()

    def rows(self) -> dict[str, dict[str, int]]:
        """The rows of `ask`."""
        found = self.ask()["rows"]
        assert isinstance(found, dict)
        return found

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self._end()

    def stop(self) -> None:
        """Let it close; it must end well."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(20) == 0
        self._end()

    def _end(self) -> None:
        self.process.wait(20)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def agent(sensor: str, options: Mapping[str, object], state: Path, prelude: str = "") -> Iterator[Agent]:
    """It is killed at the end, if it still runs."""
    made = Agent(sensor, options, state, prelude=prelude)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.kill()


class Traffic:
    """Sends frames from `far`, paced, from `start` until `stop`; `sent` counts them."""

    def __init__(self, frame: bytes, interface: str = "far") -> None:
        self.sent = 0
        self._frame, self._interface = frame, interface
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
            out.bind((self._interface, 0))
            while not self._stop.is_set():
                for _ in range(8):
                    out.send(self._frame)
                    self.sent += 1
                time.sleep(0.0002)  # a full queue of the veth would drop frames before any program

    def go_on(self, frames: int = 200) -> None:
        """Until so many more are sent."""
        wanted = self.sent + frames
        while self.sent < wanted:
            time.sleep(0.001)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; all that was sent has arrived. Twice is fine."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def remove_pins() -> None:
    """All that is kept in the present namespace, links detached."""
    for place in [one for folder in pins.agents(pins.root()) for one in places(folder)]:
        place.remove()
    for folder, _, names in os.walk(pins.root(), topdown=False):
        for name in names:
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)

    for lock in Path("/run/mapek").glob(f"{pins.root().name}-*.lock"):
        lock.unlink()


def _answer(sensor: Touchpoint) -> dict[str, object]:
    frame, status = sensor.read(), sensor.status()
    rows = {}
    if frame is not None:
        columns = [
            f"{one.name}_{one.unit}" + "".join(f",{b}" for _, b in one.labels)
            for one in frame.schema.counters
        ]
        for entity, values in zip(frame.entities, frame.counters.tolist(), strict=True):
            rows[entity.name] = dict(zip(columns, values, strict=True))
    return {"rows": rows, "degraded": list(status.degraded), "attached": dict(status.attached)}


async def _main() -> None:
    name, options, state = json.loads(sys.argv[1])
    exec(sys.argv[2], {})  # noqa: S102 - what a test wants to be otherwise in this process
    point = next(one for one in _points() if one[0] == name)
    module, _, kind = point[1].partition(":")
    sensor: Touchpoint = getattr(importlib.import_module(module), kind)(options)
    clock = RealClock()
    around = Surroundings(
        lambda _: None, clock, Knowledge(Topology("a", [], [])), lambda work: tasks.add(asyncio.ensure_future(work)),
        state_dir=Path(state), touchpoints=frozenset({name}),
    )  # fmt: skip
    tasks: set[asyncio.Future[None]] = set()
    try:
        await sensor.open(around)
    except MapekError as error:
        print(json.dumps({"error": str(error), "kind": type(error).__name__}), flush=True)
    else:
        print(json.dumps(_answer(sensor)), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            action, fields = json.loads(line)
            if action:
                await sensor.act(Step(name, action, fields))
            print(json.dumps(_answer(sensor)), flush=True)
    await sensor.close()
    clock.close()


def _points() -> list[tuple[str, str]]:
    import tomllib

    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["mapek.sensors"]
    return list(found.items())


if __name__ == "__main__":
    asyncio.run(_main())
