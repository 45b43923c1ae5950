"""What loaded programs cost, by the kernel's own stop watch: how often each ran and for how long, and what it holds.

bpf_stats times every program of the machine, and is itself what costs most in a short one: it is on only while its
descriptor is open. The kernel takes that back with the process, however it ends, and leaves a stop watch alone that
somebody else has started (sysctl kernel.bpf_stats_enabled). A program that is reached by a tail call is timed within
the one that called it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mapek.bpf import syscall
from mapek.bpf.program import Program

FEWEST: Final = 1000
"""Runs below which a mean is not told."""
_ENABLE_STATS = 32
_RUN_TIME: Final = 192  # of struct bpf_prog_info: run_time_ns, run_cnt, recursion_misses, verified_insns
_SYSCTL: Final = Path("/proc/sys/kernel/bpf_stats_enabled")


@contextmanager
def run_time_stats() -> Iterator[None]:
    """All programs of the machine are timed meanwhile; needs CAP_SYS_ADMIN.

    Raises PrivilegeError; FeatureError before kernel 5.8.
    """
    fd = syscall.bpf_raw(_ENABLE_STATS, struct.pack("=I", 0))
    if fd < 0:
        needs = "bpf_stats by a descriptor, kernel 5.8"
        raise syscall.explain(-fd, "time", "programs", wanted=("CAP_SYS_ADMIN",), needs=needs)
    try:
        yield
    finally:
        os.close(fd)


def always_on() -> bool:
    """Whether the sysctl has every program timed anyway, which nothing here changes."""
    try:
        return _SYSCTL.read_text().strip() == "1"
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Runs:
    """Since the program was loaded, while stats were on."""

    spent_ns: int
    count: int

    def __sub__(self, before: Runs) -> Runs:
        return Runs(self.spent_ns - before.spent_ns, self.count - before.count)

    @property
    def mean_ns(self) -> float | None:
        """ns a run; None for fewer than `FEWEST`, which tell nothing.

        >>> Runs(40_000, 2000).mean_ns, Runs(400, 20).mean_ns
        (20.0, None)
        """
        return self.spent_ns / self.count if self.count >= FEWEST else None


@dataclass(frozen=True, slots=True)
class Size:
    """What a program holds, in bytes.

    Args:
        jited: machine code; 0 where the kernel interprets, or does not say.
        program: memory charged for the program itself.
        maps: memory charged for its maps, those included that other programs use too.
    """

    jited: int
    program: int
    maps: int


def runs_of(program: Program) -> Runs:
    """ns spent in it and how often it ran, both while stats were on."""
    return _runs(program.fd)


def _runs(fd: int) -> Runs:
    spent, count = struct.unpack_from("=QQ", syscall.info(fd, _RUN_TIME + 16), _RUN_TIME)
    return Runs(spent, count)


class Watched:
    """Programs by id, held open so that none vanishes while it is watched. A context manager."""

    def __init__(self, idents: Iterable[int]) -> None:
        """Those of `idents` that are still there. Raises PrivilegeError without CAP_SYS_ADMIN."""
        self._fds: dict[int, int] = {}
        try:
            for ident in idents:
                try:
                    self._fds[ident] = syscall.fd_by_id(syscall.PROG_GET_FD_BY_ID, ident)
                except FileNotFoundError:
                    continue
        except BaseException:
            self.close()
            raise

    def runs(self) -> dict[int, Runs]:
        """Of each, now."""
        return {ident: _runs(fd) for ident, fd in self._fds.items()}

    def sizes(self) -> dict[int, Size]:
        """Of each; milliseconds, so a thread's work."""
        return {ident: _size(fd) for ident, fd in self._fds.items()}

    def close(self) -> None:
        """Let go of them; twice is fine."""
        while self._fds:
            os.close(self._fds.popitem()[1])

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _size(fd: int) -> Size:
    jited = struct.unpack_from("=I", syscall.info(fd, 232), 16)[0]
    return Size(jited, syscall.charged(fd), sum(map(syscall.map_bytes, syscall.map_ids(fd))))
