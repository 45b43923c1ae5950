"""Settings that are compared follow each other in changing order, so that what the machine does meanwhile meets all
alike."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


async def in_turns(
    settings: Sequence[str],
    measure: Callable[[str], Awaitable[T]],
    rounds: list[dict[str, T]],
    chance: random.Random,
    enough: Callable[[], bool],
) -> None:
    """Measure each setting once a round, in an order of its own, until it is `enough`.

    Whole rounds go into `rounds`: who cancels this has in there what was measured by then, and no half of a pair.
    """
    while not enough():
        found: dict[str, T] = {}
        for name in chance.sample(settings, len(settings)):
            found[name] = await measure(name)
        rounds.append(found)
