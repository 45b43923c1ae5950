"""syscall_latency: how long system calls of chosen processes take, as log2 histograms made in the kernel.

It sees what a program waits for, whatever the reason. The price is on each call: a watched one costs two clock
readings, and the tracepoints slow every call of the machine a little, watched or not (docs/sensors has the numbers).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
import numpy.typing as npt

from mapek.bpf import ObjectSpec
from mapek.bpf.keep import Kept
from mapek.bpf.worker import in_thread
from mapek.config.options import error, take, take_strings
from mapek.contracts import Options, Status, Surroundings, Touchpoint, Variant
from mapek.errors import AttachError, FeatureError
from mapek.model import Entity, Frame, Metric, Schema
from mapek.sensors.cgroups import is_below, require_cgroups
from mapek.sensors.keeper import Keeper, keeper
from mapek.sensors.syscall_latency_histogram import BOUNDS_S, EDGES_NS, quantile
from mapek.sensors.syscall_latency_kernel import (
    ALL,
    CGROUP,
    ERRORS,
    FIRST_BUCKET,
    MOST_PROCESSES,
    MOST_SYSCALLS,
    PROCESS,
    PROCESS_SET,
    SUM_NS,
    VARIANTS,
    Filter,
    Running,
    own_process,
    sees_all_processes,
    start,
)
from mapek.sensors.syscall_latency_numbers import number_of

if TYPE_CHECKING:
    from mapek.knowledge.topology import Topology

SYSCALLS: Final = ("read", "write", "sendto", "recvfrom", "connect", "accept", "accept4")
SELF: Final = "self"
_PROCESS_IDS: Final = 1 << 22
"""PID_MAX_LIMIT of 64-bit kernels."""
QUANTILES: Final = (("p50", 0.5), ("p99", 0.99))


def schema_of(syscalls: Sequence[str]) -> Schema:
    """The columns when these are watched."""
    labels = [(("syscall", name),) for name in syscalls]
    counters = (
        ("calls", "", "System calls that returned."),
        ("errors", "", "Those that returned an error, restarts after a signal among them."),
        ("spent", "nanoseconds", "Time from entry to return, all calls together."),
    )
    return Schema(
        "syscall_latency",
        "service",
        counters=tuple(
            Metric(name, unit, text, labels=one) for name, unit, text in counters for one in labels
        ),
        gauges=tuple(
            Metric(
                f"recent_{name}",
                "seconds",
                "Calls since the last reading: the upper bound of the bucket that holds this quantile.",
                labels=one,
            )
            for name, _ in QUANTILES
            for one in labels
        ),
        histograms=tuple(
            Metric("duration", "seconds", "Time from entry to return.", BOUNDS_S, one, "spent")
            for one in labels
        ),
    )


SCHEMA: Final = schema_of(SYSCALLS)


class SyscallLatency(Touchpoint):
    """Touchpoint `syscall_latency`. One row, a "service": "mapek", the cgroup, the processes, or "/" for all.

    Whose calls is one of three; without any, those of the agent itself. A process of the list that ends is watched no
    longer; children of one are not watched, those of a cgroup are.

    Options:
        syscalls: names, as in man 2 syscalls.
        processes: "self" or process ids in decimal.
        cgroup: a path below the cgroup v2 mount, with all cgroups below it; one made anew is found again.
        all: watch every process of the machine.
        variant: how to attach.
        persist: let the counters and the programs outlive the agent; not those of a list of processes.

    Needs kernel 5.10 on x86-64 or arm64, CAP_BPF and CAP_PERFMON.
    """

    name: ClassVar[str] = "syscall_latency"
    counted: ClassVar[Mapping[str, str]] = {
        "collisions": "Calls not timed because their slots were taken by other threads.",
        "missed": "Calls whose return was never seen.",
        "recursions": "Times the kernel skipped a program.",
    }
    variants: ClassVar[tuple[Variant, ...]] = VARIANTS

    def __init__(self, options: Options) -> None:
        names = tuple(dict.fromkeys(take_strings(options, "syscalls", SYSCALLS)))
        if not 0 < len(names) <= MOST_SYSCALLS:
            raise error(options, "syscalls", f"has {len(names)} entries", f"name 1 to {MOST_SYSCALLS}")
        with contextlib.suppress(FeatureError):  # on a machine without numbers, open says so
            number_of(names)
        self._syscalls = names
        self._processes = _processes(options)
        self._cgroup = take(options, "cgroup", str, "")
        everything = take(options, "all", bool, False)
        if (self._cgroup and self._processes) or (everything and (self._cgroup or self._processes)):
            raise error(
                options, "all" if everything else "cgroup", "is one filter of two", "keep one of them"
            )
        if self._cgroup and not is_below(self._cgroup):
            do = 'write it like "system.slice/x.service"'
            raise error(options, "cgroup", "is not below the cgroup mount", do)
        self.wanted_variant = take(
            options, "variant", str, "auto", choices=("auto", *(one.name for one in VARIANTS))
        )
        if everything:
            self._kind, self._entity = ALL, Entity("service", "/")
        elif self._cgroup:
            self._kind, self._entity = CGROUP, Entity("service", self._cgroup)
        else:
            self._processes = self._processes or (SELF,)
            self._kind = PROCESS if self._processes == (SELF,) else PROCESS_SET
            name = "mapek" if self._kind == PROCESS else ",".join(self._processes)
            self._entity = Entity("service", name)
        self._persist = take(options, "persist", bool, False)
        self._keeper: Keeper | None = None
        self._schema = schema_of(names)
        self._around: Surroundings | None = None
        self._running: Running | None = None
        self._pidfds: dict[int, int] = {}
        self._gone: dict[str, str] = {}
        self._directory = ""
        self._inode = 0
        self._before = np.zeros((0, 0), np.uint64)
        self._lost: dict[str, int] = {}

    def shortfalls(self, topology: Topology) -> tuple[str, ...]:
        if self._kind == CGROUP:
            require_cgroups()
        return ()

    async def open(self, surroundings: Surroundings) -> None:
        """Attach. Raises what `start` raises; AttachError when no process of the list, or no such cgroup, is there."""
        self._around = surroundings
        self._keeper = keeper(surroundings)
        self._gone.clear()
        if set(self._processes) - {SELF} and not await in_thread(sees_all_processes):
            why = "this is a pid namespace of its own, and its process ids mean others to the kernel"
            raise FeatureError("watch processes", self._entity.name, why, "filter by cgroup")
        processes = self._open_processes()
        if self._kind in (PROCESS, PROCESS_SET) and SELF in self._processes:
            processes.insert(0, await in_thread(own_process))
        if self._kind == PROCESS_SET and not processes:
            why = "none of them is there"
            raise AttachError("watch processes", self._entity.name, why, "start them, or filter by cgroup")
        whose = Filter(self._kind, tuple(processes), self._cgroup)
        running = self._running = await in_thread(lambda: self._start(whose), Running.close)
        # One that ended meanwhile, for its id may be another's by now.
        for process in processes:
            if str(process) in self._gone:
                running.forget(process)
        self._before = running.read()

    def _start(self, whose: Filter) -> Running:
        if whose.kind != CGROUP:
            return start(self._syscalls, whose, self.wanted_variant, keep=self._keep)
        self._directory = f"{require_cgroups()}/{whose.cgroup}"
        try:
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as cause:
            why = cause.strerror or "unreadable"
            raise AttachError("watch cgroup", self._directory, why, "start what runs in it") from cause
        try:
            self._inode = os.fstat(fd).st_ino
            return start(self._syscalls, whose, self.wanted_variant, fd, self._keep)
        finally:
            os.close(fd)

    def _keep(self, spec: ObjectSpec, maps: tuple[str, ...], variant: str, sizes: Mapping[str, int]) -> Kept:
        assert self._keeper is not None
        keep = self._keeper.keep(
            self.name,
            maps,
            # The ids of processes are others' once these have ended.
            on=self._persist and self._kind in (ALL, CGROUP),
            meaning={"system calls": " ".join(self._syscalls), "whose": self._entity.name},
            settings={"variant": variant},
        )
        kept = self._keeper.take_now(keep, spec, sizes)
        if self._persist and not kept.holds and not kept.trouble:
            kept.give_up("process ids mean others once these have ended; filter by cgroup")
        return kept

    def _open_processes(self) -> list[int]:
        """Hold each process by a pidfd, so that its end is told and its id is not taken for another's."""
        found = []
        for name in self._processes:
            if name == SELF:
                continue
            try:
                fd = os.pidfd_open(int(name))
            except (OSError, OverflowError) as cause:
                self._gone[name] = getattr(cause, "strerror", None) or str(cause)
                continue
            self._pidfds[int(name)] = fd
            found.append(int(name))
            asyncio.get_running_loop().add_reader(fd, self._ended, int(name))
        return found

    def _ended(self, process: int) -> None:
        self._let_go(process)
        self._gone[str(process)] = "it has ended"
        if self._running is not None:
            self._running.forget(process)

    def _let_go(self, process: int) -> None:
        fd = self._pidfds.pop(process, -1)
        if fd >= 0:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)

    async def close(self) -> None:
        for process in list(self._pidfds):
            self._let_go(process)
        running, self._running = self._running, None
        if running is not None:
            await in_thread(running.close)

    def schema(self) -> Schema:
        return self._schema

    def read(self) -> Frame | None:
        """One batch read of the histograms, summed over the CPUs."""
        if self._around is None or self._running is None:
            return None
        if self._keeper is not None:
            self._keeper.serve()
        if self._directory:
            self._follow_cgroup()
        values = self._running.read()
        self._lost = self._running.lost()
        now = self._around.clock.now_ns()
        buckets = values[:, FIRST_BUCKET:]
        counters = np.concatenate((buckets.sum(axis=1), values[:, ERRORS], values[:, SUM_NS]))
        gauges = self._recent(buckets)
        self._before = values
        return Frame(
            now,
            self._schema,
            (self._entity,),
            counters.astype(np.uint64)[np.newaxis, :],
            np.array([gauges]),
            np.ones(1, dtype=np.bool_),
            tuple(row[np.newaxis, :].copy() for row in buckets),
        )

    def _recent(self, buckets: npt.NDArray[np.uint64]) -> list[float]:
        news = buckets - self._before[:, FIRST_BUCKET:]
        found = []
        for _, q in QUANTILES:
            for row in news:
                _, high = quantile(row, q)
                # the last bucket has no upper bound: a number that a model can take, and too low
                found.append(min(high, EDGES_NS[-1]) / 1e9)
        return found

    def _follow_cgroup(self) -> None:
        """A service that was started again has a new cgroup of the old name. Asking costs microseconds."""
        assert self._running is not None
        try:
            inode = os.stat(self._directory).st_ino
            if inode == self._inode:
                self._gone.clear()
                return
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as cause:
            self._gone[self._cgroup] = cause.strerror or "it is gone"
            return
        try:
            self._running.watch_cgroup(fd)
            self._inode = os.fstat(fd).st_ino
            self._gone.clear()
        finally:
            os.close(fd)

    def status(self) -> Status:
        running = self._running
        if running is None:
            return Status(False)
        gone = tuple(f"{name} is not watched: {why}" for name, why in self._gone.items())
        attached = {self._entity.name: running.choice.variant.name}
        trouble = running.kept.trouble if running.kept is not None else ""
        words = (*running.degraded, *gone, *([trouble] if trouble else []))
        return Status(True, attached, words, dict(self._lost))


def _processes(options: Options) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(take_strings(options, "processes")))
    if len(names) > MOST_PROCESSES:
        raise error(options, "processes", f"has {len(names)} entries", f"name at most {MOST_PROCESSES}")
    for index, name in enumerate(names):
        # Its length first: int() refuses thousands of digits with an error of its own.
        number = name.isascii() and name.isdecimal() and len(name) <= len(str(_PROCESS_IDS))
        if name != SELF and not (number and 0 < int(name) < _PROCESS_IDS):
            do = 'write "self" or a process id; for a service use cgroup'
            raise error(options, f"processes[{index}]", "is no process id", do)
    return names
