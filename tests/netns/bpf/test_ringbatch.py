"""Real rings read in batches: wake-ups, wrap-around, losses and what the program counted itself."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from mapek.bpf import ArrayMap, ObjectSpec, RingBatches, create_map, load, object_path
from mapek.bpf.ringbatch import Layout, reads_directly
from mapek.errors import ObjectError

pytestmark = [pytest.mark.netns, pytest.mark.kernel]

RECORD = [("seq", "u8"), ("time_ns", "u8"), ("key", "u8")]
STRIDE = 32
PACKET = bytes(64)
WAYS = (pytest.param(True, marks=pytest.mark.skipif(not reads_directly(), reason="reorders loads")), False)


class Flood:
    """The program that writes a record a run, and what it counted."""

    def __init__(self, **rodata: int) -> None:
        self.loaded = load(ObjectSpec.read(object_path("ring_flood")), rodata=rodata)
        self.ring = self.loaded.maps["flood"]
        self._count = self.loaded.map("count", ArrayMap)

    def run(self, times: int) -> None:
        self.loaded.programs["ring_flood"].test_run(PACKET, times)

    @property
    def counted(self) -> tuple[int, int, int]:
        """(sent, no room, discarded)"""
        values = self._count.items(None, np.uint64)[1].ravel()
        return int(values[0]), int(values[1]), int(values[2])

    def __enter__(self) -> Flood:
        return self

    def __exit__(self, *_: object) -> None:
        self.loaded.close()


@pytest.mark.parametrize("direct", WAYS)
def test_every_record_arrives_in_order_through_many_turns_of_the_ring(direct):
    rng, seen = np.random.default_rng(5), list[int]()
    with Flood() as flood, RingBatches(flood.ring, RECORD, direct=direct) as batches:
        room = flood.ring.max_entries // STRIDE
        for _ in range(40):
            flood.run(int(rng.integers(1, room // 2)))
            before = time.monotonic_ns()
            found = batches.take()
            assert (found["time_ns"] <= before).all()
            seen += found["seq"].tolist()
        assert len(seen) > 5 * room
        assert seen == list(range(flood.counted[0]))
        assert flood.counted[1:] == (0, 0)
        assert batches.records == len(seen)


@pytest.mark.parametrize("direct", WAYS)
def test_what_finds_no_room_is_missing_and_nothing_else(direct):
    with Flood() as flood, RingBatches(flood.ring, RECORD, direct=direct) as batches:
        room = flood.ring.max_entries // STRIDE
        flood.run(room + 100)
        first = batches.take()
        flood.run(3)
        rest = batches.take()
        sent, no_room, _ = flood.counted
        assert sent == room + 103
        assert no_room >= 100  # the kernel keeps a little of the ring for itself
        assert len(first) + len(rest) == sent - no_room
        assert rest["seq"].tolist() == [sent - 3, sent - 2, sent - 1]


@pytest.mark.parametrize("direct", WAYS)
@pytest.mark.host
def test_discarded_and_foreign_records_are_passed_over(direct):
    with (
        Flood(discard_every=7, longer_every=5) as flood,
        RingBatches(flood.ring, RECORD, direct=direct) as batches,
    ):
        flood.run(1000)
        found = batches.take()
        expected = [n for n in range(1000) if n % 5 and n % 7]
        assert found["seq"].tolist() == expected
        assert batches.foreign == 200
        # libbpf does not tell of them
        assert batches.discarded == (flood.counted[2] if direct else 0)
        assert len(batches.take()) == 0


@pytest.mark.host
def test_a_batch_is_bounded():
    with Flood() as flood, RingBatches(flood.ring, RECORD, most=100) as batches:
        flood.run(250)
        assert [len(batches.take()) for _ in range(4)] == [100, 100, 50, 0]


async def until(condition, seconds=5.0):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("direct", WAYS)
async def test_the_program_wakes_the_reader_once_enough_lies_there(direct):
    batches: list[int] = []
    with (
        Flood(wake_bytes=10 * STRIDE) as flood,
        RingBatches(flood.ring, RECORD, lambda found: batches.append(len(found)), direct=direct) as ring,
    ):
        ring.start()
        await asyncio.sleep(0)
        flood.run(5)
        # a marker behind the silence: were the reader level-triggered, these five would be here by then
        await asyncio.sleep(0.02)
        assert batches == []
        flood.run(20)
        await until(lambda: sum(batches) == 25)
        ring.stop()
        flood.run(20)
        await asyncio.sleep(0.02)
        assert sum(batches) == 25


@pytest.mark.host
@pytest.mark.skipif(not reads_directly(), reason="reorders loads")
@pytest.mark.parametrize(("record", "kept"), [("V24", 4), ("V16", 0)])
async def test_what_comes_while_others_are_taken_needs_no_tick(monkeypatch, record, kept):
    """By default flags the kernel wakes only a reader that has caught up, which this one never has."""
    look, meanwhile, sizes = Layout.batch, [1, 1, 1], list[int]()
    with load(ObjectSpec.read(object_path("xdp_counter")), rodata={"sample_every": 1}) as loaded:
        run = loaded.programs["xdp_counter"].test_run

        def interrupted(*arguments):
            found = look(*arguments)
            if meanwhile:
                run(PACKET, meanwhile.pop())
            return found

        monkeypatch.setattr(Layout, "batch", interrupted)
        with RingBatches(loaded.maps["samples"], record, lambda found: sizes.append(len(found))) as ring:
            ring.start()
            run(PACKET, 1)
            await until(lambda: ring.records + ring.foreign == 4)
        assert sum(sizes) == kept


@pytest.mark.host
async def test_with_a_tick_a_wake_up_brings_one_batch():
    """However much comes meanwhile: a program that decides about wake-ups gets its large batches."""
    sizes: list[int] = []
    with Flood(wake_bytes=10 * STRIDE) as flood:

        def callback(found):
            sizes.append(len(found))
            if len(sizes) == 1:
                flood.run(5)

        with RingBatches(flood.ring, RECORD, callback) as ring:
            ring.start(tick_s=3600)
            flood.run(12)
            await until(lambda: sizes == [12])
            await asyncio.sleep(0.02)
            assert sizes == [12]


@pytest.mark.host
async def test_a_tick_brings_what_nobody_was_woken_for():
    batches: list[int] = []
    with Flood() as flood, RingBatches(flood.ring, RECORD, lambda found: batches.append(len(found))) as ring:
        ring.start(tick_s=0.005)
        flood.run(7)
        await until(lambda: sum(batches) == 7)
        flood.run(8)
        await until(lambda: sum(batches) == 15)


@pytest.mark.host
async def test_more_than_a_batch_is_delivered_in_turns_and_a_bad_callback_is_told():
    told: list[object] = []
    sizes: list[int] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))

    def callback(found):
        sizes.append(len(found))
        if len(sizes) == 2:
            raise ValueError("mine")

    with Flood(wake_bytes=STRIDE) as flood, RingBatches(flood.ring, RECORD, callback, most=100) as ring:
        ring.start()
        flood.run(250)
        await until(lambda: sum(sizes) == 250)
        assert sizes == [100, 100, 50]
        assert [str(error) for error in told] == ["mine"]


@pytest.mark.host
def test_only_a_ring_is_read_and_closing_twice_is_fine():
    with create_map("array", 4, 8, 1) as other, pytest.raises(ObjectError, match="map of type array"):
        RingBatches(other, RECORD)
    with Flood() as flood:
        batches = RingBatches(flood.ring, RECORD)
        batches.close()
        batches.close()
        assert len(batches.take()) == 0
