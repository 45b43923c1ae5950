"""The kernels that the tests run on, and what each of them promises.

Debian ships them with the same configuration in all that matters here. A promised feature is one that a test
may not skip for: its absence is a fault of a probe, of the guest or of the package, and never an excuse.
"""

from __future__ import annotations

from dataclasses import dataclass

from tools.vm.problem import Problem

_EVERY_DEBIAN = (
    "btf",
    "kprobes",
    "batman_adv",
    "netem",
    "bpffs",
    "tracefs",
    "cgroup2",
    "psi",
    "tun",
    "batman_v",
)


@dataclass(frozen=True)
class Entry:
    """One run: a kernel of some Debian release, and how it is booted.

    Args:
        name: what the command line and the reports call it.
        suites: releases to take its newest kernel from; the first that the archive offers.
        hides_btf: whether the guest covers /sys/kernel/btf.
        lacks: what this one, of all Debian kernels, was built without.
    """

    name: str
    suites: tuple[str, ...]
    hides_btf: bool = False
    lacks: tuple[str, ...] = ()

    @property
    def promises(self) -> tuple[str, ...]:
        """Names of tests/support/machine.py that are certainly there."""
        without = {*self.lacks, *(("btf",) if self.hides_btf else ())}
        return tuple(feature for feature in _EVERY_DEBIAN if feature not in without)


CATALOGUE = (
    Entry("5.10", ("bullseye",), lacks=("batman_v",)),
    Entry("6.1", ("bookworm",)),
    Entry("6.12", ("trixie",)),
    Entry("newest", ("sid", "trixie-backports")),
    Entry("6.1-nobtf", ("bookworm",), hides_btf=True),
)


def entries(names: list[str]) -> list[Entry]:
    """The entries of these names, or all of them; Problem for a name that is none."""
    known = {entry.name: entry for entry in CATALOGUE}
    for name in names:
        if name not in known:
            raise Problem(f"kernel {name!r} is none of {', '.join(known)}")
    return [known[name] for name in names] or list(CATALOGUE)
