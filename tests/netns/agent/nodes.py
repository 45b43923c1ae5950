"""Agents in a lab, by their own words and by the flow's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from mapek.simulations.agent import AgentEvent, AgentProcess, Mapek, Profile, configuration, key_name
from mapek.simulations.lab import Lab
from mapek.simulations.topology import pair
from tests.support.machine import patience


class Agents:
    """A lab of two nodes and two links, an agent on each; `lab` and `mapek` as the simulations have them."""

    def __init__(self, lab: Lab, mapek: Mapek) -> None:
        self.lab, self.mapek = lab, mapek

    def said(self, node: str, kind: str, **fields: object) -> list[AgentEvent]:
        """What a node's agent said of a kind, with these fields."""
        return [
            event
            for event in tuple(self.mapek.agents[node].events)
            if event.kind == kind and all(event.fields.get(name) == value for name, value in fields.items())
        ]

    async def way(self, node: str) -> str:
        """The link that a node's traffic to the other one takes now, as the kernel has it."""
        here = self.lab.nodes[node]
        (other,) = self.lab.topology.neighbours(here.spec)
        (found,) = await here.namespace.route(lambda route: tuple(route.route("get", dst=other.loopback(4))))
        return here.interfaces.get(found.get_attr("RTA_OIF"), "")

    async def until(self, true: Callable[[], object], seconds: float = 8.0) -> None:
        """Wait until something holds; fails with all that the agents said otherwise."""
        deadline = asyncio.get_running_loop().time() + patience(seconds)
        while not true():
            if asyncio.get_running_loop().time() > deadline:
                said = [
                    f"{event.node} {event.kind} {event.time_ns} {dict(event.fields)}"
                    for agent in self.mapek.agents.values()
                    for event in agent.events
                ]
                words = [word for agent in self.mapek.agents.values() for word in agent.words()]
                raise AssertionError("\n".join(["not in time; the agents said", *said, *words]))
            await asyncio.sleep(0.005)


@asynccontextmanager
async def agents(profile: Profile = "fast", extra: str = "") -> AsyncIterator[Agents]:
    """Both agents ready and at rest."""
    async with Lab(pair(2)) as lab:
        mapek = Mapek(
            profile, extra=f"[policies.link_failover]\nhold_down_s = 0.3\n{extra}", patience=patience(1.0)
        )
        await mapek.open(lab)
        try:
            both = Agents(lab, mapek)
            # whose answers came first decides where they begin; both return to the preferred link
            async with asyncio.timeout(patience(10)):
                while {await both.way("a"), await both.way("b")} != {"l0"}:  # noqa: ASYNC110 - no event tells of it
                    await asyncio.sleep(0.02)
            await mapek.at_rest(patience(10))
            yield both
        finally:
            await mapek.close()


@asynccontextmanager
async def one_agent(lab: Lab, node: str = "a", *, extra: str = "") -> AsyncIterator[AgentProcess]:
    """An agent on one node only."""
    agent = AgentProcess(lab.nodes[node])
    toml = configuration(lab, lab.nodes[node], "fast", extra=extra)
    await agent.open(toml, {key_name("a", "b"): "ab" * 32})
    try:
        yield agent
    finally:
        await agent.close()
