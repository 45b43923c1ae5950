"""What the programs of `net_events` take on a saturated flow, by the kernel's own stop watch.

They hang on tracepoints, which PROG_TEST_RUN does not run. `bpf_stats` reads a clock before and after each run of every
program of the machine, and that is in its numbers: beside each stands what it says of the empty program on the same
flow. Counting packets is off by default; it is on here, so that its price is told.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

from mapek.bpf import Program, syscall
from mapek.errors import DegradedError
from mapek.sensors.net_events_kernel import Running, start_btf
from mapek.simulations.bench.targets import Row
from mapek.simulations.netns import Namespace

FEWEST: Final = 1000
_ENABLE_STATS: Final = 32
_RUN_TIME: Final = 192  # of struct bpf_prog_info: run_time_ns, run_cnt


@contextmanager
def run_time_stats() -> Iterator[None]:
    """All programs of the machine are timed meanwhile. Raises PrivilegeError; FeatureError before kernel 5.8."""
    fd = syscall.bpf(_ENABLE_STATS, struct.pack("=I", 0), "time", "programs")
    try:
        yield
    finally:
        os.close(fd)


def runs_of(program: Program) -> tuple[int, int]:
    """ns spent in it and how often it ran, both while stats were on."""
    spent, runs = struct.unpack_from("=QQ", syscall.info(program.fd, _RUN_TIME + 16), _RUN_TIME)
    return spent, runs


async def net_events_rows(
    sender: Namespace, receiver: Namespace, empty: Program, flood: Callable[[], Awaitable[object]]
) -> list[Row]:
    """ns a run of the programs that run for every packet of the flow; `empty` is at the receiver's XDP.

    The receiver's socket has to be full: then every packet is a drop.
    """
    rows: list[Row] = []
    for space, names in ((receiver, ("net_receive", "net_drop")), (sender, ("net_transmit",))):
        try:
            running = await space.run(lambda: start_btf({}, packets=True, everywhere=False))
        except DegradedError as error:
            rows += [Row(f"net_events, {name}: a run", None, "ns", None, str(error)) for name in names]
            continue
        try:
            rows += await _timed(running, names, empty, flood)
        finally:
            await space.run(running.close)
    return rows


async def _timed(
    running: Running, names: tuple[str, ...], empty: Program, flood: Callable[[], Awaitable[object]]
) -> list[Row]:
    programs = {"": empty, **{name: running.loaded.programs[name] for name in names}}
    with run_time_stats():
        before = {name: runs_of(one) for name, one in programs.items()}
        await flood()
        after = {name: runs_of(one) for name, one in programs.items()}
    base = mean(before[""], after[""])
    rows = []
    for name in names:
        found, runs = mean(before[name], after[name]), after[name][1] - before[name][1]
        few = f"it ran {runs} times only" if found is None else ""
        beside = "" if base is None else f"; the empty XDP program: {base} ns"
        note = few or f"by bpf_stats, with what that adds{beside}, n = {runs}"
        rows.append(Row(f"net_events, {name}: a run", found, "ns", None, note))
    return rows


def mean(before: tuple[int, int], after: tuple[int, int]) -> float | None:
    """ns a run between two looks, None when there were too few runs to tell."""
    spent, runs = after[0] - before[0], after[1] - before[1]
    return round(spent / runs, 1) if runs >= FEWEST else None
