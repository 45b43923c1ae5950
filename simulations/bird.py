"""BIRD 2 as a contender: on every node static routes to its neighbours over each link, watched by BFD.

The nearest thing that people run today, in the same namespaces, on the same wires, with the same faults.
Debian's package bird2; only links between direct neighbours are configured.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from asyncio.subprocess import Process
from dataclasses import dataclass

from mapek.errors import FeatureError, PermanentError, TemporaryError
from mapek.simulations.contender import Usage
from mapek.simulations.lab import Lab, Node
from mapek.simulations.process import end
from mapek.simulations.topology import Family
from mapek.simulations.usage import usage

_UP = re.compile(r"^(\S+)\s+(\S+)\s+(Up|Down|Init|AdminDown)\b", re.MULTILINE)


@dataclass(frozen=True)
class BirdTimers:
    """BFD's transmit interval and the number of lost packets that mean failure."""

    interval_ms: int
    multiplier: int

    def __str__(self) -> str:
        return f"BIRD BFD {self.interval_ms} ms x{self.multiplier}"


DEFAULT = BirdTimers(100, 5)


class Bird:
    """A `Contender`; `timers` None leaves BIRD's defaults (100 ms x5).

    Each of `families` has BFD sessions of its own: what is not measured should not cost BIRD anything.
    """

    def __init__(self, timers: BirdTimers | None = None, *, families: tuple[Family, ...] = (4, 6)) -> None:
        self.timers, self.families = timers, families
        self._lab: Lab | None = None
        self._processes: dict[str, Process] = {}

    @property
    def name(self) -> str:
        """As reports call it."""
        return str(self.timers) if self.timers else f"{DEFAULT} (default)"

    @property
    def reaction_s(self) -> float:
        """Twice the detection time, and a little."""
        timers = self.timers or DEFAULT
        return 0.05 + 2 * timers.interval_ms * timers.multiplier / 1000

    async def open(self, lab: Lab) -> None:
        """Start one bird on each node and wait until all sessions are up."""
        binary = shutil.which("bird", path="/usr/sbin:/usr/local/sbin:/usr/bin")
        if binary is None:
            raise FeatureError("start", "bird", "it is not installed", "apt-get install bird2")
        self._lab = lab
        for name, node in lab.nodes.items():
            (node.namespace.files / "bird.conf").write_text(self.configuration(lab, node))
            command = [binary, "-f", "-c", "/run/bird.conf", "-s", "/run/bird.ctl", "-P", "/run/bird.pid"]
            self._processes[name] = await node.namespace.start(command)
        await self.at_rest(20)

    async def close(self) -> None:
        """End every bird."""
        processes, self._processes = self._processes, {}
        for process in processes.values():
            await end(process, grace=2)

    async def at_rest(self, timeout: float) -> None:
        """Wait until every BFD session is up; BIRD then has all routes back on their first link."""
        deadline = time.monotonic() + timeout
        while True:
            states = [state for name in self._processes for state in await self._sessions(name)]
            if states and all(state == "Up" for state in states):
                return
            if time.monotonic() > deadline:
                raise TemporaryError(
                    "wait for", self.name, f"sessions are {states}", "see birdc show bfd sessions"
                )
            await asyncio.sleep(0.1)

    def usage(self) -> dict[str, Usage]:
        """By node name."""
        return {name: usage(process.pid) for name, process in self._processes.items()}

    def configuration(self, lab: Lab, node: Node) -> str:
        """The whole bird.conf of one node."""
        timers = ""
        if self.timers is not None:
            each = f"{self.timers.interval_ms} ms"
            timers = (
                f'  interface "*" {{ min rx interval {each}; min tx interval {each}; '
                f"multiplier {self.timers.multiplier}; }};\n"
            )
        parts = [
            f"router id {node.spec.loopback(4)};\n",
            "protocol device { scan time 60; }\n",
            "protocol kernel { ipv4 { export all; import none; }; }\n",
            "protocol kernel { ipv6 { export all; import none; }; }\n",
            f"protocol bfd {{\n{timers}}}\n",
        ]
        for peer in lab.topology.neighbours(node.spec):
            for place, link in enumerate(lab.topology.between(node.spec, peer)):
                ways = {4: link.address(peer, 4), 6: f"{link.link_local(peer)}%{link.name}"}
                parts += [
                    f"protocol static {{ ipv{family} {{ preference {220 - place}; }};\n"
                    f"  route {peer.loopback(family)}/{128 if family == 6 else 32} via {ways[family]} bfd;"
                    " }\n"
                    for family in self.families
                ]
        return "".join(parts)

    async def _sessions(self, name: str) -> list[str]:
        assert self._lab is not None
        process = self._processes[name]
        if process.returncode is not None:
            assert process.stderr is not None
            said = (await process.stderr.read()).decode(errors="replace").strip()
            raise PermanentError("run", f"bird on {name}", said or f"it ended with {process.returncode}")
        asked = await self._lab.nodes[name].namespace.start(
            ["birdc", "-s", "/run/bird.ctl", "show", "bfd", "sessions"]
        )
        output, _ = await asked.communicate()
        return [match[3] for match in _UP.finditer(output.decode(errors="replace"))]
