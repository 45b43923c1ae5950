"""Agents of ours on the nodes of a lab: their configuration, their life, and what they say on stdout.

Each agent is a process of its own inside its node; the lab tells it nothing but its configuration and
learns from it only what it prints. Files and pins lie on the node's private mounts and vanish with it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import Process
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Literal

from mapek.errors import PermanentError, TemporaryError
from mapek.simulations.contender import Usage
from mapek.simulations.lab import Lab, Node
from mapek.simulations.process import end, release
from mapek.simulations.usage import usage

Profile = Literal["fast", "default"]
Scalar = str | int | float | bool | None
_KEEP = 200_000  # lines of one agent; a suspicion a millisecond for minutes


@dataclass(frozen=True)
class AgentEvent:
    """One line of an agent: `kind` is its "type", `time_ns` CLOCK_MONOTONIC, `fields` the other scalars."""

    node: str
    kind: str
    time_ns: int
    fields: Mapping[str, Scalar]

    def number(self, name: str) -> int | None:
        """A whole number among the fields, None when it is missing or something else."""
        value = self.fields.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def parse_event(node: str, line: bytes) -> AgentEvent | None:
    """Decode one line; None for what is not an event: a program under test may say anything."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    kind, time_ns = record.pop("type", None), record.pop("time_ns", None)
    if not isinstance(kind, str) or not isinstance(time_ns, int):
        return None
    fields = {name: value for name, value in record.items() if isinstance(value, str | int | float | None)}
    return AgentEvent(node, kind, time_ns, fields)


def configuration(lab: Lab, node: Node, profile: Profile, *, extra: str = "", listen: str = "") -> str:
    """The agent's TOML: a peer for each neighbour, a path for each link, in the links' order.

    `listen` is where it serves /metrics, nowhere if empty; `extra` goes before the peers.
    """

    def text(value: str) -> str:
        return json.dumps(value)

    lines = [
        "[node]",
        f"name = {text(node.name)}",
        f"addresses = [{text(node.spec.loopback(4))}, {text(node.spec.loopback(6))}]",
        'state_dir = "/run/mapek"',
        "[loop]",
        f"profile = {text(profile)}",
        "[service]",
        f"listen = {text(listen)}",
        extra,
    ]
    for peer in lab.topology.neighbours(node.spec):
        four, six = peer.loopback(4), peer.loopback(6)
        lines += [
            "[[peer]]",
            f"name = {text(peer.name)}",
            f"addresses = [{text(four)}, {text(six)}]",
            f"prefixes = [{text(four + '/32')}, {text(six + '/128')}]",
            f"key_file = {text(f'/run/mapek-keys/{key_name(node.name, peer.name)}')}",
        ]
        for place, link in enumerate(lab.topology.between(node.spec, peer)):
            lines += [
                "[[peer.path]]",
                f"interface = {text(link.name)}",
                f"address = {text(link.link_local(peer))}",
                f"local = {text(link.link_local(node.spec))}",
                f"preference = {place}",
            ]
    return "\n".join(lines) + "\n"


def key_name(one: str, other: str) -> str:
    """The file name of the key that two nodes share."""
    return "-".join(sorted((one, other))) + ".key"


class AgentProcess:
    """One agent; `events` holds what it has said, oldest first. `prefix` is a command that runs it in its own way."""

    def __init__(
        self,
        node: Node,
        listener: Callable[[AgentEvent], None] | None = None,
        *,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.node = node
        self._prefix, self._environment = prefix, environment
        self.events: deque[AgentEvent] = deque(maxlen=_KEEP)
        self.unreadable = 0
        self.ill: set[tuple[str, str]] = set()
        """(entity, kind) of the symptoms that it has told of and not cleared."""
        self._listener = listener
        self._process: Process | None = None
        self._ready = asyncio.Event()
        self._readers: list[asyncio.Task[None]] = []
        self._said: deque[str] = deque(maxlen=20)

    @property
    def pid(self) -> int:
        """The agent's process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.returncode is None

    async def open(self, toml: str, keys: Mapping[str, str], *, timeout: float = 30.0) -> None:
        """Start it and wait until it is ready; raises PermanentError with its last words otherwise."""
        folder = self.node.namespace.files
        (folder / "mapek-keys").mkdir(mode=0o700, exist_ok=True)
        for name, key in keys.items():
            (folder / "mapek-keys" / name).touch(mode=0o600)
            (folder / "mapek-keys" / name).write_text(key + "\n")
        (folder / "mapek").mkdir(mode=0o700, exist_ok=True)
        (folder / "mapek.toml").write_text(toml)
        command = [*self._prefix, sys.executable, "-m", "mapek", "run", "-c", "/run/mapek.toml", "--json"]
        self._process = await self.node.namespace.start(command, environment=self._environment)
        self._readers = [asyncio.create_task(self._read_events()), asyncio.create_task(self._read_words())]
        ready, ended = asyncio.create_task(self._ready.wait()), asyncio.create_task(self._process.wait())
        await asyncio.wait((ready, ended), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for task in (ready, ended):
            task.cancel()
        if not self._ready.is_set():
            late = self.running
            await self.close(grace=0)
            last = self._said[-1] if self._said else "it said nothing"
            why = f"not ready after {timeout:g} s: {last}" if late else last
            raise PermanentError("start", f"agent on {self.node.name}", why, "run it by hand to see more")

    async def close(self, *, grace: float = 10.0) -> None:
        """Ask it to stop, then insist after `grace` seconds; closing twice is fine."""
        process, self._process = self._process, None
        if process is None:
            return
        await end(process, grace=grace, keep_pipes=True)
        readers, self._readers = self._readers, []
        # What it said last is still in the pipes; a process of its own that outlives it may keep them open.
        _, late = await asyncio.wait(readers, timeout=2)
        for task in late:
            task.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        release(process)

    def words(self) -> list[str]:
        """Its last lines on stderr."""
        return list(self._said)

    async def _read_events(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        stream = self._process.stdout
        while line := await stream.readline():
            event = parse_event(self.node.name, line)
            if event is None:
                self.unreadable += 1
                continue
            self.events.append(event)
            self._note(event)
            if event.kind == "ready":
                self._ready.set()
            if self._listener is not None:
                self._listener(event)

    def _note(self, event: AgentEvent) -> None:
        if event.kind == "symptom":
            which = (str(event.fields.get("entity")), str(event.fields.get("kind")))
            if event.fields.get("cleared"):
                self.ill.discard(which)
            else:
                self.ill.add(which)

    async def _read_words(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        stream = self._process.stderr
        while line := await stream.readline():
            self._said.append(line.decode(errors="replace").rstrip())


class Mapek:
    """Our agents as a `Contender`, one on each node; `patience` stretches the waits for them to be ready."""

    def __init__(
        self,
        profile: Profile,
        *,
        extra: str = "",
        listen: str = "",
        listener: Callable[[AgentEvent], None] | None = None,
        patience: float = 1.0,
    ) -> None:
        self.profile: Profile = profile
        self._patience = patience
        self.agents: dict[str, AgentProcess] = {}
        self._extra, self._listen, self._listener = extra, listen, listener

    @property
    def name(self) -> str:
        """As reports call it."""
        return f"mapek {self.profile}"

    @property
    def reaction_s(self) -> float:
        """Far more than either profile should need."""
        return 0.05 if self.profile == "fast" else 0.2

    async def open(self, lab: Lab) -> None:
        """Start an agent on every node, each with one key for each neighbour."""
        keys = {
            key_name(a.name, b.name): token_hex(32)
            for a in lab.topology.nodes
            for b in lab.topology.neighbours(a)
            if a.number < b.number
        }
        self.agents = {name: AgentProcess(node, self._listener) for name, node in lab.nodes.items()}
        starts = []
        for name, agent in self.agents.items():
            toml = configuration(lab, agent.node, self.profile, extra=self._extra, listen=self._listen)
            mine = {file: key for file, key in keys.items() if name in file.removesuffix(".key").split("-")}
            starts.append(agent.open(toml, mine, timeout=30.0 * self._patience))
        for outcome in await asyncio.gather(*starts, return_exceptions=True):
            if outcome is not None:
                await self.close()
                raise outcome
        await self.at_rest(20 * self._patience)

    async def close(self) -> None:
        """Stop every agent; what they said stays readable."""
        await asyncio.gather(*(agent.close() for agent in self.agents.values()))

    async def at_rest(self, timeout: float) -> None:
        """Wait until all symptoms are cleared and no agent has said anything for a while.

        A gray path counts as well only seconds after its loss has ended; a trial before that would have
        nowhere to go.
        """
        quiet_ns = 300_000_000 if self.profile == "fast" else 800_000_000
        start = time.monotonic_ns()
        while True:
            now = time.monotonic_ns()
            for agent in self.agents.values():
                if not agent.running:
                    last = agent.words()[-1:] or ["no last words"]
                    raise PermanentError("run", f"agent on {agent.node.name}", f"it ended: {last[0]}")
            last_ns = max(
                (agent.events[-1].time_ns for agent in self.agents.values() if agent.events), default=0
            )
            ill = [f"{name}: {' '.join(one)}" for name, agent in self.agents.items() for one in agent.ill]
            if not ill and now - max(last_ns, start) >= quiet_ns:
                return
            if now - start > timeout * 1e9:
                why = f"{', '.join(ill) or 'still talking'} after {timeout:g} s"
                raise TemporaryError("wait for", self.name, why, "read its events")
            await asyncio.sleep(0.02)

    def usage(self) -> dict[str, Usage]:
        """By node name."""
        return {name: usage(agent.pid) for name, agent in self.agents.items() if agent.running}

    def events(self, start_ns: int, end_ns: int) -> list[AgentEvent]:
        """What all agents said about a span of time, in order."""
        found = [e for agent in self.agents.values() for e in agent.events if start_ns <= e.time_ns <= end_ns]
        return sorted(found, key=lambda event: event.time_ns)
