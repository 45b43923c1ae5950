"""Agents in a lab, by their own words and by the flow's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from mapek.simulations.agent import AgentEvent, AgentProcess, Mapek, configuration, key_name
from mapek.simulations.lab import Lab
from mapek.simulations.topology import pair


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

    async def until(self, true: Callable[[], object], seconds: float = 8.0) -> None:
        """Wait until something holds; TimeoutError otherwise."""
        async with asyncio.timeout(seconds):
            while not true():
                await asyncio.sleep(0.005)


@asynccontextmanager
async def agents(profile: str = "fast", extra: str = "") -> AsyncIterator[Agents]:
    """Both agents ready and at rest."""
    async with Lab(pair(2)) as lab:
        mapek = Mapek(profile, extra=extra)
        await mapek.open(lab)
        try:
            yield Agents(lab, mapek)
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
