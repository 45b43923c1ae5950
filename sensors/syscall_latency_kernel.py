"""What syscall_latency has in the kernel: one pair of programs, attached in the best way that this kernel has.

The return side is attached before the entry side, so that a call is counted only when both its ends were seen, and
one that was under way is not counted at all. All here blocks for milliseconds: use a thread.
"""

from __future__ import annotations

import os
import platform
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from mapek.bpf import LoadedObject, Map, ObjectSpec, PerCpuArrayMap, load, object_path
from mapek.bpf.keep import Kept
from mapek.bpf.program import Program
from mapek.bpf.tracing import Attachment, attach_btf_tracepoint, attach_kprobe, attach_raw_tracepoint
from mapek.bpf.xdp import Link, open_link
from mapek.contracts import Variant
from mapek.errors import FeatureError, MapekError
from mapek.sensors.syscall_latency_histogram import BUCKETS
from mapek.sensors.syscall_latency_numbers import number_of, symbols_of
from mapek.sensors.variants import Choice, choose

NAME: Final = "syscall_latency"
NUMBERS: Final = 512
MOST_SYSCALLS: Final = 64
MOST_PROCESSES: Final = 64
ALL, PROCESS, PROCESS_SET, CGROUP = range(4)
COLLISIONS, MISSED = range(2)
SUM_NS, ERRORS, FIRST_BUCKET = 0, 1, 2
LATENCY_ITEMS: Final = FIRST_BUCKET + BUCKETS
"""Of `struct latency`, all u64: the sum in ns, the errors, the buckets."""

_BPF: Final = ("CAP_BPF", "CAP_PERFMON")
# Attached once. Before 5.19 a map's reader needs CAP_BPF too, where unprivileged_bpf_disabled is set.
_KEEPS: Final = ("CAP_BPF",)
VARIANTS: Final = (
    Variant("tp_btf", (*_BPF, "btf", "tp_btf"), "the cheapest: registers are read without a helper", _KEEPS),
    Variant(
        "raw_tp",
        (*_BPF, "raw_tp"),
        "no BTF is needed; other calls than the watched cost less than by kprobe",
        _KEEPS,
    ),
    Variant("kprobe", (*_BPF, "kprobe"), "calls that are not watched cost nothing", _KEEPS),
    Variant(
        "task_storage",
        (*_BPF, "btf", "tp_btf", "task_storage"),
        "no call is ever lost for want of a slot",
        _KEEPS,
    ),
)
_KEPT: Final = ("latencies", "losses", "processes", "cgroups")
_STARTED: Final = ("started_slots", "started_tasks")
_U32: Final = struct.Struct("=I")
# PROC_PID_INIT_INO, part of the kernel's ABI.
_INITIAL_PID_NAMESPACE: Final = 0xEFFFFFFC


@dataclass(frozen=True, slots=True)
class Filter:
    """Whose calls: those of `processes` (ids; () with `cgroup` = "" means all), or of a cgroup and those below it."""

    kind: int
    processes: tuple[int, ...] = ()
    cgroup: str = ""


@dataclass(slots=True)
class Running:
    """Programs that run; `close` detaches them."""

    choice: Choice
    degraded: tuple[str, ...]
    loaded: LoadedObject
    attached: ExitStack
    latencies: PerCpuArrayMap
    losses: PerCpuArrayMap
    programs: tuple[Program, Program]
    kept: Kept | None = None

    def read(self) -> npt.NDArray[np.uint64]:
        """(system calls, LATENCY_ITEMS), summed over the CPUs."""
        return self.latencies.summed()[1]

    def lost(self) -> dict[str, int]:
        """Calls that were seen but not counted, by why."""
        counts = self.losses.summed()[1].ravel()
        return {
            "collisions": int(counts[COLLISIONS]),
            "missed": int(counts[MISSED]),
            "recursions": sum(program.recursion_misses for program in self.programs),
        }

    def forget(self, process: int) -> None:
        """Watch that process no longer."""
        self.loaded.maps["processes"].delete(_U32.pack(process))

    def watch_cgroup(self, fd: int) -> None:
        """Watch the cgroup of that directory instead of the one until now."""
        watch_cgroup(self.loaded.maps["cgroups"], fd)

    def close(self) -> None:
        """Detach, but for what is kept, and free all. Twice is fine. Blocks for milliseconds."""
        self.attached.close()
        self.loaded.close()
        if self.kept is not None:
            self.kept.leave()


def watch_cgroup(cgroups: Map, fd: int) -> None:
    """Put the cgroup of the directory `fd` into the map."""
    cgroups.update(_U32.pack(0), _U32.pack(fd))


def sees_all_processes() -> bool:
    """Whether we are in the initial pid namespace, whose ids a tracing program sees."""
    return os.stat("/proc/self/ns/pid").st_ino == _INITIAL_PID_NAMESPACE


def own_process() -> int:
    """Our process id as the initial pid namespace sees it. Needs CAP_BPF and CAP_PERFMON in another one."""
    if sees_all_processes():
        return os.getpid()
    with load(_spec(), programs=("own_process",), skip_maps=_unused("")) as loaded:
        return loaded.programs["own_process"].test_run().retval


def _spec() -> ObjectSpec:
    return ObjectSpec.read(object_path(NAME))


def _unused(variant: str) -> tuple[str, ...]:
    return ("started_slots",) if variant == "task_storage" else ("started_tasks",)


def index_table(syscalls: Sequence[int]) -> bytes:
    """The program's table from numbers to places, 0 for what is not watched."""
    table = bytearray(NUMBERS)
    for place, number in enumerate(syscalls):
        table[number] = place + 1
    return bytes(table)


def start(
    syscalls: Sequence[str],
    whose: Filter,
    forced: str = "auto",
    cgroup_fd: int = -1,
    keep: Callable[[ObjectSpec, tuple[str, ...], str, Mapping[str, int]], Kept] | None = None,
) -> Running:
    """Load and attach the best variant, or the `forced` one.

    Args:
        syscalls: names, at most MOST_SYSCALLS, each once.
        whose: the filter; with CGROUP, `cgroup_fd` is its directory.
        keep: takes what is kept of an object's maps, for a variant, with these sizes; None: nothing is.

    Raises:
        FeatureError, PrivilegeError: as `choose`; for kprobes, none of the functions could be probed.
        VerifierError: report it.
    """
    numbers = number_of(syscalls)
    choice = choose(NAME, VARIANTS, forced)
    variant = choice.variant.name
    enter, leave = f"{variant}_enter", f"{variant}_exit"
    spec, sizes = _spec(), {"latencies": max(len(syscalls), 1)}
    with ExitStack() as undo:
        kept = None
        if keep is not None:
            kept = keep(spec, (*_KEPT, _STARTED[variant == "task_storage"]), variant, sizes)
            undo.callback(kept.leave)
            if variant == "kprobe" and kept.holds:
                kept.lost("kprobes end with their process")
        runs = _still_running(kept) if kept is not None and kept.unchanged else []
        loaded = undo.enter_context(
            load(
                spec,
                programs=() if runs else (enter, leave),
                skip_maps=_unused(variant),
                max_entries=sizes,
                reuse=kept.reuse() if kept is not None else {},
                rodata={
                    "index_of": index_table(numbers),
                    "filter": whose.kind,
                    "only_process": whose.processes[0] if whose.kind == PROCESS else 0,
                    "arm64": int(platform.machine() == "aarch64"),
                },
            )
        )
        if kept is not None:
            kept.settle(loaded)
        if whose.kind == PROCESS_SET:
            for process in whose.processes:
                loaded.maps["processes"].update(_U32.pack(process), _U32.pack(0))
        if whose.kind == CGROUP:
            watch_cgroup(loaded.maps["cgroups"], cgroup_fd)
        attached = undo.enter_context(ExitStack())
        degraded: tuple[str, ...] = ()
        if runs and kept is not None:
            for link in runs:
                attached.callback(link.close)
            loaded.programs.update({name: kept.program(name) for name in (enter, leave)})
        else:
            for name in (enter, leave):
                if kept is not None:
                    kept.hold_program(name, loaded.programs[name])
            degraded = _attach(
                variant, syscalls, loaded.programs[enter], loaded.programs[leave], attached, kept
            )
        programs = loaded.programs[enter], loaded.programs[leave]
        running = Running(
            choice,
            (*choice.degraded(), *degraded),
            loaded,
            attached,
            loaded.map("latencies", PerCpuArrayMap),
            loaded.map("losses", PerCpuArrayMap),
            programs,
            kept,
        )
        undo.pop_all()
        return running


def _still_running(kept: Kept) -> list[Link]:
    """The links that an agent before us kept, if both are there."""
    found = [kept.link(name, open_link, lambda _: True) for name in ("sys_exit", "sys_enter")]
    links = [link for link in found if link is not None]
    if len(links) < len(found):
        for link in links:
            link.close()
        return []
    return links


def _attach(
    variant: str,
    syscalls: Sequence[str],
    enter: Program,
    leave: Program,
    attached: ExitStack,
    kept: Kept | None,
) -> tuple[str, ...]:
    def keep(attachment: Attachment) -> None:
        attached.callback(attachment.close)

    if variant == "kprobe":
        return _attach_kprobes(syscalls, enter, leave, keep)
    # While an older pair is still there, a call is counted once all the same: who finishes it first clears its start.
    for name, program in (("sys_exit", leave), ("sys_enter", enter)):
        if variant == "raw_tp":
            attach = partial(attach_raw_tracepoint, program, name)
        else:
            attach = partial(attach_btf_tracepoint, program)
        keep(kept.attach(name, attach) if kept is not None else attach())
    return ()


def _attach_kprobes(
    syscalls: Sequence[str], enter: Program, leave: Program, keep: Callable[[Attachment], None]
) -> tuple[str, ...]:
    without: dict[str, MapekError] = {}
    for syscall in syscalls:
        for symbol in symbols_of(syscall):
            try:
                returns = attach_kprobe(leave, symbol, returns=True)
            except FeatureError as error:
                without[syscall] = error
                continue
            keep(returns)
            keep(attach_kprobe(enter, symbol))
            without.pop(syscall, None)
            break
    if len(without) == len(syscalls):
        raise next(iter(without.values()))
    return tuple(f"{syscall} is not watched: {error}" for syscall, error in without.items())
