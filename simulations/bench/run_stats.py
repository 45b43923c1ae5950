"""What the programs of `net_events` take on a saturated flow, by the kernel's own stop watch.

They hang on tracepoints, which PROG_TEST_RUN does not run. `bpf_stats` reads a clock before and after each run of every
program of the machine, and that is in its numbers: beside each stands what it says of the empty program on the same
flow. Counting packets is off by default; it is on here, so that its price is told.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from mapek.bpf import Program
from mapek.bpf.run_stats import run_time_stats, runs_of
from mapek.errors import DegradedError
from mapek.sensors.net_events_kernel import Running, start_btf
from mapek.simulations.bench.targets import Row
from mapek.simulations.netns import Namespace


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
        done = {name: runs_of(one) - before[name] for name, one in programs.items()}
    base = done[""].mean_ns
    rows = []
    for name in names:
        found, runs = done[name].mean_ns, done[name].count
        few = f"it ran {runs} times only" if found is None else ""
        beside = "" if base is None else f"; the empty XDP program: {base:.1f} ns"
        note = few or f"by bpf_stats, with what that adds{beside}, n = {runs}"
        rows.append(Row(f"net_events, {name}: a run", found and round(found, 1), "ns", None, note))
    return rows
