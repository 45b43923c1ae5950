"""What to do about each thing that a sensor needs and this machine has not: one line each, for `mapek doctor`."""

from __future__ import annotations

from typing import Final

from mapek.bpf import features

_CURES: Final = {
    "tracefs": "mount -t tracefs tracefs /sys/kernel/tracing",
    "cgroup2": "mount -t cgroup2 none /sys/fs/cgroup/unified",
    "psi": "boot with psi=1, or use a kernel with CONFIG_PSI",
    "libbpf": "apt-get install libbpf1",
}


def cure(need: str) -> str:
    """What brings `need`: a capability ("CAP_BPF"), "libbpf", or one of `mapek.bpf.features`."""
    if need.startswith("CAP_"):
        return f"run as root, or with AmbientCapabilities={need}"
    if need in _CURES:
        return _CURES[need]
    return f"use {features.since(need)} or newer" if need in features.FEATURES else ""
