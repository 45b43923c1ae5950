"""What bpf_stats itself costs, here and now, found on the program that does nothing.

Two numbers, for the kernel reads its clock inside of what it times and outside: what is in every mean that bpf_stats
tells, and what each run of each program takes longer while it is on. Short test runs with and without it follow each
other, so that what the machine does meanwhile meets both alike.
"""

from __future__ import annotations

import statistics
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

from mapek.bpf.objects import load
from mapek.bpf.run_stats import always_on, run_time_stats, runs_of
from mapek.bpf.spec import ObjectSpec, object_path

TURNS: Final = 15
REPEAT: Final = 5_000
_PACKET: Final = bytes(64)


@dataclass(frozen=True, slots=True)
class StopWatch:
    """Medians, in ns.

    Args:
        empty_ns: a run of the empty program, as bpf_stats tells it.
        adds_ns: what bpf_stats adds to every run while it is on; None where it is never off.
    """

    empty_ns: float
    adds_ns: float | None


def stop_watch() -> StopWatch:
    """Turns bpf_stats on and off; blocks for about a second, for the kernel rewrites its code each time.

    Raises as `load` and `run_time_stats` do.
    """
    told, with_it, without = list[float](), list[int](), list[int]()
    with load(ObjectSpec.read(object_path("empty"))) as loaded:
        program = loaded.programs["empty"]
        for _ in range(TURNS):
            for timed in (False, True):
                with run_time_stats() if timed else nullcontext():
                    before = runs_of(program)
                    took = program.test_run(_PACKET, REPEAT).duration_ns
                    done = runs_of(program) - before
                (with_it if timed else without).append(took)
                if timed:
                    told.append(done.spent_ns / done.count)
    adds = None if always_on() else float(statistics.median(with_it) - statistics.median(without))
    return StopWatch(statistics.median(told), adds)
