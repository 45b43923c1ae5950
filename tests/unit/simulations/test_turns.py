"""Settings in turns: each once a round, in an order that the seed decides, and never half a round."""

from __future__ import annotations

import asyncio
import random

import pytest

from mapek.simulations.turns import in_turns


async def orders(seed: int, count: int = 40) -> list[str]:
    seen: list[str] = []

    async def measure(name: str) -> int:
        seen.append(name)
        return len(seen)

    rounds: list[dict[str, int]] = []
    await in_turns("abc", measure, rounds, random.Random(seed), lambda: len(rounds) == count)
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert sorted(value for one in rounds for value in one.values()) == list(range(1, 3 * count + 1))
    return ["".join(seen[i : i + 3]) for i in range(0, 3 * count, 3)]


async def test_the_seed_decides_the_order_and_every_order_comes():
    assert await orders(1) == await orders(1) != await orders(2)
    assert len(set(await orders(1))) == 6


async def test_cancelled_it_leaves_whole_rounds():
    rounds: list[dict[str, int]] = []

    async def measure(name: str) -> int:
        if len(rounds) == 2 and name == "b":
            await asyncio.sleep(3600)
        return 1

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await in_turns("ab", measure, rounds, random.Random(0), lambda: False)
    assert rounds == [{"a": 1, "b": 1}] * 2
