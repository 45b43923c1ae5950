"""Writes records to a ring at a steady rate: `python -m mapek.simulations.bench.ring_child FD RATE SECONDS`.

FD is the program `ring_flood`; each run of it writes one record. Paced in bursts of a millisecond, and what a
late burst owes is made up for, so that the rate over a second holds. One JSON line says what was done.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import Final

from mapek.bpf.program import Program

BURST_NS: Final = 1_000_000
PACKET: Final = bytes(64)


def flood(program: Program, rate: int, seconds: float) -> dict[str, float]:
    """Run `program` `rate` times a second; what it took, and how late the latest burst was."""
    clock, sent, late = time.monotonic_ns, 0, 0
    start = clock()
    end, due = start + int(seconds * 1e9), start
    while (now := clock()) < end:
        if now < due:
            time.sleep((due - now) / 1e9)
            now = clock()
        late = max(late, now - due)
        owed = (now + BURST_NS - start) * rate // 1_000_000_000 - sent
        if owed > 0:
            program.test_run(PACKET, owed)
            sent += owed
        due += BURST_NS * max(1, (now - due) // BURST_NS)
    took = (clock() - start) / 1e9
    return {"sent": sent, "took_s": took, "late_ms": late / 1e6, "cpu_s": time.process_time()}


if __name__ == "__main__":
    # It stands for the kernel, whose programs wait for nobody; its bursts take a tenth of a millisecond.
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    _fd, _rate, _seconds = sys.argv[1:]
    _found = flood(Program(int(_fd)), int(_rate), float(_seconds))
    sys.stdout.write(json.dumps(_found) + "\n")
