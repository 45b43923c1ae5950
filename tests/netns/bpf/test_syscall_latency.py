"""syscall_latency's raw_tp pair by PROG_TEST_RUN: a made-up call in, the bucket and the loss that moved out."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator

import numpy as np
import pytest

from mapek.bpf import ArrayMap, LoadedObject, ObjectSpec, PerCpuArrayMap, load, object_path
from mapek.sensors.syscall_latency_histogram import BUCKETS, EDGES_NS
from mapek.sensors.syscall_latency_kernel import (
    COLLISIONS,
    ERRORS,
    FIRST_BUCKET,
    LATENCY_ITEMS,
    MISSED,
    PROCESS,
    SUM_NS,
    index_table,
)

READ = 0
"""The number that is read from registers that are not there: the kernel leaves zeros."""
SLOTS = 16384


@pytest.fixture
def loaded() -> Iterator[LoadedObject]:
    spec = ObjectSpec.read(object_path("syscall_latency"))
    rodata = {"index_of": index_table((READ,)), "filter": PROCESS, "only_process": os.getpid()}
    with load(
        spec, programs=("raw_tp_enter", "raw_tp_exit"), rodata=rodata, skip_maps=("started_tasks",)
    ) as made:
        yield made


def enter(loaded: LoadedObject, regs: int, number: int = READ) -> None:
    loaded.programs["raw_tp_enter"].test_run(ctx=struct.pack("=Qq", regs, number))


def leave(loaded: LoadedObject, regs: int, result: int = 0) -> None:
    loaded.programs["raw_tp_exit"].test_run(ctx=struct.pack("=Qq", regs, result))


def slot(regs: int) -> int:
    """As the program finds the first slot of a thread."""
    return ((regs & 0xFFFFFFFF) >> 14) * 0x9E3779B1 % (1 << 32) >> 18


def counted(loaded: LoadedObject) -> np.ndarray:
    return loaded.map("latencies", PerCpuArrayMap).summed()[1][0]


def losses(loaded: LoadedObject) -> list[int]:
    return loaded.map("losses", PerCpuArrayMap).summed()[1].ravel().tolist()


def set_back(loaded: LoadedObject, regs: int, ns: int) -> None:
    """The call of that thread began so long ago."""
    key = struct.pack("=I", slot(regs))
    loaded.map("started_slots", ArrayMap).update(
        key, struct.pack("=QQQ", time.monotonic_ns() - ns, regs, READ)
    )


def test_the_layout_is_the_programs() -> None:
    btf = ObjectSpec.read(object_path("syscall_latency")).btf
    assert btf.struct_size("latency") == 8 * LATENCY_ITEMS
    offsets = btf.struct_offsets("latency")
    assert offsets == {"sum_ns": 8 * SUM_NS, "errors": 8 * ERRORS, "buckets": 8 * FIRST_BUCKET}
    assert btf.struct_offsets("latency_started") == {"start_ns": 0, "thread": 8, "number": 16}
    assert ObjectSpec.read(object_path("syscall_latency")).maps["started_slots"].max_entries == SLOTS


@pytest.mark.kernel
@pytest.mark.parametrize("bucket", range(17, BUCKETS))
def test_every_bucket_begins_where_it_says(loaded: LoadedObject, bucket: int) -> None:
    """A time just below and one just above the edge, by our clock before and after the kernel took its own."""
    edge, regs = EDGES_NS[bucket - 1], 0x7700_0000
    for ago, wanted in ((edge - edge // 4, bucket - 1), (edge, bucket)):
        for _ in range(1000):
            before, begun = counted(loaded), time.monotonic_ns()
            set_back(loaded, regs, ago)
            leave(loaded, regs)
            slack = time.monotonic_ns() - begun
            change = counted(loaded) - before
            if slack < edge // 4:  # else somebody had the CPU meanwhile, and either bucket is right
                break
        else:
            pytest.fail("never undisturbed")
        assert np.flatnonzero(change[FIRST_BUCKET:]).tolist() == [wanted]
        assert ago <= change[SUM_NS] <= ago + slack
    assert losses(loaded) == [0, 0]


@pytest.mark.parametrize(
    ("result", "errors"), [(0, 0), (5, 0), (-1, 1), (-11, 1), (-4095, 1), (-4096, 0), (-(2**63), 0)]
)
def test_errors_are_those_of_the_kernel(loaded: LoadedObject, result: int, errors: int) -> None:
    enter(loaded, 0x1_0000)
    leave(loaded, 0x1_0000, result)
    change = counted(loaded)
    assert change[ERRORS] == errors
    assert change[FIRST_BUCKET:].sum() == 1


def test_what_never_began_is_not_counted(loaded: LoadedObject) -> None:
    leave(loaded, 0x1_0000)
    enter(loaded, 0x1_0000, number=1)
    leave(loaded, 0x1_0000)
    for number in (-1, 511, 512, 1 << 30, 1 << 62):
        enter(loaded, 0x1_0000, number)
        leave(loaded, 0x1_0000)
    assert counted(loaded).sum() == 0


def test_a_thread_that_inherits_a_stack_does_not_end_the_call_of_the_dead(loaded: LoadedObject) -> None:
    """Its first return is of another call than the one that was under way there."""
    key = struct.pack("=I", slot(0x1_0000))
    begun = struct.pack("=QQQ", time.monotonic_ns(), 0x1_0000, READ + 1)
    loaded.map("started_slots", ArrayMap).update(key, begun)
    leave(loaded, 0x1_0000)
    assert counted(loaded).sum() == 0
    assert loaded.map("started_slots", ArrayMap).lookup(key) == begun


def test_a_return_that_was_never_seen_is_told(loaded: LoadedObject) -> None:
    enter(loaded, 0x1_0000)
    enter(loaded, 0x1_0000)
    leave(loaded, 0x1_0000)
    assert counted(loaded)[FIRST_BUCKET:].sum() == 1
    assert losses(loaded)[MISSED] == 1
    assert losses(loaded)[COLLISIONS] == 0


def test_two_threads_share_two_slots_and_a_third_is_told(loaded: LoadedObject) -> None:
    first = 0x1_0000
    threads = [regs for regs in range(first, 1 << 32, 1 << 14) if slot(regs) == slot(first)][:3]
    assert len(threads) == 3
    for regs in threads[:2]:
        enter(loaded, regs)
    for regs in threads[:2]:
        leave(loaded, regs)
    assert counted(loaded)[FIRST_BUCKET:].sum() == 2
    assert losses(loaded) == [0, 0]
    for regs in threads:
        enter(loaded, regs)
    for regs in threads:
        leave(loaded, regs)
    assert counted(loaded)[FIRST_BUCKET:].sum() == 4
    assert losses(loaded)[COLLISIONS] == 1
