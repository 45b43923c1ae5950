"""What a trial needs from a system under test, ours or a peer's: start, say when at rest, count its cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mapek.simulations.lab import Lab


@dataclass(frozen=True)
class Usage:
    """What one node's share of a system costs: all its processes together."""

    pss_mb: float
    rss_mb: float
    cpu_seconds: float


class Contender(Protocol):
    """A system that keeps the nodes of a lab connected; every node decides on its own."""

    @property
    def name(self) -> str:
        """As reports call it."""

    @property
    def reaction_s(self) -> float:
        """A generous guess of the time from fault to repair, for patience and for the length of trials."""

    async def open(self, lab: Lab) -> None:
        """Start it on every node; returns when all of them are ready to heal."""

    async def close(self) -> None:
        """End it on every node; closing twice is fine."""

    async def at_rest(self, timeout: float) -> None:
        """Wait until every path is known to be good again; raises TemporaryError when that takes longer."""

    def usage(self) -> dict[str, Usage]:
        """By node name."""
