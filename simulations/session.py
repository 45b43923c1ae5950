"""A lab that somebody works in by hand or by script: commands (session_words) in, records out.

Records are flat tables of scalars with "type" and "time_ns" (CLOCK_MONOTONIC), like those of the agents,
whose events pass through with "node" added.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Final

from mapek.errors import ConfigError, MapekError
from mapek.simulations.agent import AgentEvent, Mapek, Profile, Scalar
from mapek.simulations.faults import FLAP, Fault
from mapek.simulations.lab import Lab
from mapek.simulations.life import Life
from mapek.simulations.session_words import HELP, Command, parse
from mapek.simulations.topology import Topology
from mapek.simulations.traffic import Traffic, traffic
from mapek.simulations.wire import Wire, WireCounts

Record = dict[str, Scalar]

_SPAN_NS: Final = 500_000_000
_SHORTEST_NS: Final = 100_000_000
_LOOK_S: Final = 0.5
_PATIENCE_S: Final = 10.0


class Session(Life):
    """An open lab with agents (unless `profile` is None) and the measured flow between two of its nodes.

    Args:
        ends: the nodes between which the flow runs.
        tell: called with each record, on the event loop.
    """

    def __init__(
        self,
        topology: Topology,
        profile: Profile | None,
        ends: tuple[str, str],
        tell: Callable[[Record], None],
    ) -> None:
        super().__init__()
        self.lab, self._ends, self._tell = Lab(topology), ends, tell
        self._agents = None if profile is None else Mapek(profile, listener=self._event)
        self._flapping: dict[str, AsyncExitStack] = {}
        self._flow: Traffic | None = None
        self._opened_ns = 0
        self._spent: dict[str, tuple[int, float]] = {}
        self._counted: tuple[int, dict[tuple[str, str], WireCounts]] = (0, {})

    async def _open(self) -> None:
        names = {node.name for node in self.lab.topology.nodes}
        if self._ends[0] == self._ends[1] or not names.issuperset(self._ends):
            known = ", ".join(sorted(names))
            raise ConfigError(
                "measure", f"a flow {':'.join(self._ends)}", "it needs two nodes", f"take two of {known}"
            )
        await self._life.enter_async_context(self.lab)
        if self._agents is None or len(self.lab.topology.nodes) > 2:
            # Agents lay routes to their neighbours only, and of a better metric.
            await self.lab.static_routes()
        if self._agents is not None:
            self._life.push_async_callback(self._agents.close)
            await self._agents.open(self.lab)
        self._flow = await self._life.enter_async_context(traffic(self.lab, *self._ends))
        # Ended before the lab is: a flapping wire is touched by a task.
        self._life.push_async_callback(self._clear_all)
        if self._agents is not None:
            watch = asyncio.create_task(self._watch(self._agents))
            self._life.callback(watch.cancel)
        await self._flow.settled(_PATIENCE_S)
        self._opened_ns = time.monotonic_ns()
        self._look(self._opened_ns)
        for name, use in self._agents.usage().items() if self._agents is not None else ():
            self._spent[name] = (self._opened_ns, use.cpu_seconds)
        for node in self.lab.nodes.values():
            self._say("node", node=node.name, pid=node.namespace.pid, address=node.spec.loopback(4))
        for link in self.lab.topology.links:
            self._say("wire", wire=link.name, a=link.a.name, b=link.b.name)

    async def do(self, command: Command) -> bool:
        """Carry a command out; False for `quit`. Raises ConfigError for a wire that is not there."""
        match command.verb:
            case "quit":
                return False
            case "help":
                for usage, meaning in HELP.items():
                    self._say("help", usage=usage, meaning=meaning)
            case "wait":
                await asyncio.sleep(command.value)
            case "status":
                await self.status()
            case "clear" if not command.wire:
                self._say_fault("cleared_faults", "all", await self._clear_all())
            case "clear":
                self._say_fault("cleared_faults", command.wire, await self._clear(self._wire(command.wire)))
            case _:
                await self._fault(command)
        return True

    async def status(self) -> None:
        """Tell of the flow over the last half second, and of each wire and agent since the last time.

        Takes a moment when that was just now: a rate needs some time to be one.
        """
        assert self._flow is not None
        soonest = self._counted[0] + _SHORTEST_NS
        await asyncio.sleep(max(0.0, (soonest - time.monotonic_ns()) / 1e9))
        now = time.monotonic_ns()
        span = min(_SPAN_NS, now - self._opened_ns)
        last = self._flow.arrived_by(now)
        for flow, link in zip((self._flow.there, self._flow.back), last, strict=True):
            rate = len(flow.arrivals(now - span)) * 1e9 / span
            self._say("flow", direction=flow.direction, per_second=round(rate), arrives_by=link)
        since, before = self._counted
        seconds = (now - since) / 1e9
        counts = self._look(now)
        for (wire, way), count in counts.items():
            old = before[wire, way]
            self._say(
                "carried",
                wire=wire,
                direction=way,
                flow_per_second=round((count.flow_forwarded - old.flow_forwarded) / seconds, 1),
                flow_dropped=count.flow_dropped - old.flow_dropped,
                dropped=count.dropped - old.dropped,
                seconds=round(seconds, 3),
            )
        for name, use in self._agents.usage().items() if self._agents is not None else ():
            then, spent = self._spent[name]
            self._spent[name] = (now, use.cpu_seconds)
            share = 100 * (use.cpu_seconds - spent) / ((now - then) / 1e9)
            memory: Record = {"pss_mb": round(use.pss_mb, 1), "rss_mb": round(use.rss_mb, 1)}
            self._say("usage", node=name, cpu_percent=round(share, 2), **memory)

    def _look(self, now_ns: int) -> dict[tuple[str, str], WireCounts]:
        counts = {}
        for name, wire in self.lab.wires.items():
            counts[name, "ab"], counts[name, "ba"] = wire.counts("ab"), wire.counts("ba")
        self._counted = (now_ns, counts)
        return counts

    def _wire(self, name: str) -> Wire:
        try:
            return self.lab.wires[name]
        except KeyError:
            known = ", ".join(self.lab.wires)
            raise ConfigError(
                "find", f"wire {name[:20]!r}", "the lab has none of that name", f"take one of {known}"
            ) from None

    async def _fault(self, command: Command) -> None:
        wire = self._wire(command.wire)
        fields: Record = {}
        if command.verb == "loss":
            await self._end_flapping(wire)
            start = wire.fault(command.direction, command.value / 100)
            fields = {"direction": command.direction, "percent": command.value}
        elif command.verb == "carrier":
            start = await wire.carrier(command.up)
            fields = {"carrier": "up" if command.up else "down"}
        else:
            start = await self._flap(wire, FLAP)
            fields = {"flap": f"{FLAP.down_s:g} s silent, {FLAP.up_s:g} s fine"}
        self._say_fault("fault", command.wire, start, **fields)

    async def _flap(self, wire: Wire, fault: Fault) -> int:
        await self._end_flapping(wire)
        life = AsyncExitStack()
        start = await life.enter_async_context(fault.on(wire))
        self._flapping[wire.spec.name] = life
        return start

    async def _end_flapping(self, wire: Wire) -> None:
        life = self._flapping.pop(wire.spec.name, None)
        if life is not None:
            await life.aclose()

    async def _clear(self, wire: Wire) -> int:
        await self._end_flapping(wire)
        now = wire.clear()
        await wire.carrier(True)
        return now

    async def _clear_all(self) -> int:
        for wire in self.lab.wires.values():
            await self._clear(wire)
        return time.monotonic_ns()

    async def _watch(self, agents: Mapek) -> None:
        """Say so when an agent ends itself: the lab goes on without it."""
        alive = set(agents.agents)
        while alive:
            await asyncio.sleep(_LOOK_S)
            for name in sorted(alive):
                if not agents.agents[name].running:
                    alive.discard(name)
                    words = agents.agents[name].words()[-1:] or ["without a word"]
                    self._say("ended", node=name, why=words[0])

    def _event(self, event: AgentEvent) -> None:
        self._tell({"type": event.kind, "time_ns": event.time_ns, "node": event.node, **event.fields})

    def _say(self, kind: str, **fields: Scalar) -> None:
        self._tell({"type": kind, "time_ns": time.monotonic_ns(), **fields})

    def _say_fault(self, kind: str, wire: str, time_ns: int, **fields: Scalar) -> None:
        self._tell({"type": kind, "time_ns": time_ns, "wire": wire, **fields})


async def work(
    session: Session, lines: asyncio.Queue[str | None], failed: Callable[[MapekError], None]
) -> None:
    """Do what the lines say, in order, until `quit` or None; wrong ones go to `failed` and are left out."""
    while (line := await lines.get()) is not None:
        try:
            command = parse(line)
            if command is not None and not await session.do(command):
                return
        except ConfigError as error:
            failed(error)
