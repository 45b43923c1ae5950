"""The faults that trials inject, as data, and how each is laid on a wire.

Silence lasts until the traffic has found its way round and a little longer; a gray fault lasts a fixed time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal

from mapek.errors import ConfigError
from mapek.simulations.wire import Direction, Wire


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    `hold_s` is how long a gray fault lasts; None means until the traffic has been rescued. `loss` is a
    probability.
    """

    name: str
    kind: Literal["loss", "flap", "carrier"]
    direction: Direction = "both"
    loss: float = 1.0
    hold_s: float | None = None
    down_s: float = 0.05
    up_s: float = 0.2

    @property
    def gray(self) -> bool:
        """Whether part of the traffic still passes."""
        return self.kind == "flap" or 0.0 < self.loss < 1.0

    @asynccontextmanager
    async def on(self, wire: Wire) -> AsyncIterator[int]:
        """While open the fault is on `wire`; yields the CLOCK_MONOTONIC ns at which it took effect."""
        if self.kind == "flap":
            async with wire.flapping(self.down_s, self.up_s) as start:
                yield start
        elif self.kind == "carrier":
            start = await wire.carrier(False)
            try:
                yield start
            finally:
                await wire.carrier(True)
        else:
            start = wire.fault(self.direction, self.loss)
            try:
                yield start
            finally:
                wire.clear()


DROP_BOTH: Final = Fault("drop_both", "loss")
DROP_AB: Final = Fault("drop_ab", "loss", "ab")
DROP_BA: Final = Fault("drop_ba", "loss", "ba")
CARRIER: Final = Fault("carrier", "carrier")
FLAP: Final = Fault("flap", "flap", hold_s=10.0)


def gray(percent: float, direction: Direction = "both", hold_s: float = 10.0) -> Fault:
    """Random loss of `percent` % for `hold_s` seconds."""
    if not 0 < percent < 100:
        raise ConfigError("make", "gray fault", f"{percent} % loss", "take more than 0 and less than 100")
    return Fault(f"loss_{percent:g}_{direction}", "loss", direction, percent / 100, hold_s)
