"""The store with the kernel's own maps: what it does between two breaths of the loop while they are full."""

from __future__ import annotations

import asyncio
from ipaddress import ip_network

import pytest

from mapek.bpf import ObjectSpec, object_path
from mapek.clock import VirtualClock
from mapek.sensors.identities import ALLOW, Entry, Identities
from mapek.sensors.mesh_filter_store import AT_ONCE, Store
from mapek.sensors.mesh_filter_tables import Tables

pytestmark = pytest.mark.kernel
ROOM, MORE = 100, 300


def entry(number: int) -> Entry:
    return Entry(f"spiffe://example.org/n/{number}", (ip_network(f"10.0.{number >> 8}.{number & 255}"),))


class Crowd:
    """A store with room for `ROOM` identities, and `MORE` beyond; what is asked of the kernel is counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.registry, self.store = Identities(), Store(8, ALLOW)
        self.tasks: list[asyncio.Future[None]] = []
        self.asked = {"assign": 0, "add_row": 0, "counts": 0}
        for name in self.asked:
            self._count(monkeypatch, name)

    def _count(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        real = getattr(Tables, name)

        def counted(*args):
            self.asked[name] += 1
            return real(*args)

        monkeypatch.setattr(Tables, name, counted)

    async def open(self) -> None:
        spec = ObjectSpec.read(object_path("mesh_filter"))
        await self.store.open(
            spec, (ROOM, 1000), self.registry, lambda work: self.tasks.append(asyncio.ensure_future(work))
        )
        self.registry.join(self.store, VirtualClock(1))
        await self.store.fill(self.registry)

    async def turns(self) -> list[dict[str, int]]:
        """What was asked in each turn of the loop, until all is done."""
        found = [self.asked.copy()]
        while any(not task.done() for task in self.tasks):
            self.asked.update(dict.fromkeys(self.asked, 0))
            await asyncio.sleep(0)
            found.append(self.asked.copy())
        return found

    def filtered(self) -> set[int]:
        """Whose address the kernel knows."""
        assert self.store.tables is not None
        numbers = range(ROOM + MORE)
        return {n for n in numbers if self.store.tables.number(entry(n).prefixes[0]) is not None}


@pytest.fixture
async def crowd(monkeypatch):
    one = Crowd(monkeypatch)
    for number in range(ROOM + MORE):
        one.registry.put(entry(number))
    await one.open()
    await one.turns()
    yield one
    one.registry.leave(one.store)
    one.store.close()
    await asyncio.gather(*one.tasks)


@pytest.mark.host
async def test_a_full_map_is_not_read_and_not_tried_again_and_again(crowd: Crowd):
    assert len(crowd.store.refused) == crowd.store.addresses_refused == MORE
    assert crowd.asked["counts"] == 0
    # beside those that found room, the one that learned that there is none
    assert crowd.asked["add_row"] <= 1 + ROOM + 2
    assert crowd.filtered() == set(range(ROOM))


@pytest.mark.host
async def test_room_for_one_is_given_with_breaths(crowd: Crowd):
    crowd.asked.update(dict.fromkeys(crowd.asked, 0))
    crowd.registry.remove(entry(5).spiffe_id)
    turns = await crowd.turns()
    assert max(turn["assign"] for turn in turns) <= 2 * AT_ONCE
    assert sum(turn["add_row"] for turn in turns) <= 4
    assert sum(turn["counts"] for turn in turns) == 0
    assert len(turns) > MORE // AT_ONCE
    assert crowd.filtered() == set(range(ROOM)) - {5} | {ROOM}
    assert len(crowd.store.refused) == MORE - 1
    assert crowd.store.addresses_refused == MORE, "each is counted once"


@pytest.mark.host
async def test_who_ends_without_an_address_of_its_own_leaves_room_too(crowd: Crowd):
    """Its address is another's now, so nothing is told of that; its row is free all the same."""
    two = Entry(entry(6).spiffe_id, (*entry(6).prefixes, *entry(5).prefixes))
    crowd.registry.put(two)
    crowd.registry.remove(entry(5).spiffe_id)
    await crowd.turns()
    assert crowd.filtered() == set(range(ROOM + 1))


@pytest.mark.host
async def test_all_are_replaced_in_full_maps(crowd: Crowd):
    await crowd.registry.replace([entry(n) for n in range(ROOM + MORE - 50, ROOM + MORE)], "file")
    for number in range(ROOM + MORE):
        crowd.registry.remove(entry(number).spiffe_id)
    await crowd.turns()
    assert crowd.filtered() == set(range(ROOM + MORE - 50, ROOM + MORE))
    assert crowd.store.refused == {}


@pytest.mark.host
async def test_an_opening_that_is_cancelled_forgets_no_counts(crowd: Crowd):
    tables = crowd.store.tables
    assert tables is not None
    tables.drop_row(1 << 31)
    tables.add_row(1 << 31, tables.count(0) + 7)
    crowd.registry.leave(crowd.store)
    crowd.store.close()
    opening = asyncio.ensure_future(crowd.open())
    while crowd.store.tables is None:  # noqa: ASYNC110 - it is made in a thread
        await asyncio.sleep(0)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    crowd.store.close()
    await crowd.open()
    assert crowd.store.tables is not None
    assert crowd.store.tables.count(1 << 31).tolist() == [7] * 4
    assert crowd.store.tables.count((1 << 31) + ROOM - 1).tolist() == [0] * 4
