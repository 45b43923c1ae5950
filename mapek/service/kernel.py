"""What the kernel and libbpf can do, asked once and away from the event loop: probing makes BPF objects."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Kernel:
    """What was found.

    Args:
        release: as `uname -r` says.
        libbpf: its version, empty where it cannot be used.
        trouble: why libbpf cannot be used, in one line; else empty.
        capabilities: the effective set, sorted.
        features: by name "yes", "no (kernel that brings it)" or "unknown".
    """

    release: str
    libbpf: str = ""
    trouble: str = ""
    capabilities: tuple[str, ...] = ()
    features: Mapping[str, str] = field(default_factory=dict)


def examine() -> Kernel:
    """Ask; blocks for milliseconds, so call it in a thread. Raises nothing."""
    from mapek.bpf.capabilities import effective
    from mapek.bpf.libbpf import library
    from mapek.errors import MapekError

    release, held = os.uname().release, tuple(sorted(effective()))
    try:
        found = library()
        version = f"{found.libbpf_major_version()}.{found.libbpf_minor_version()}"
    except MapekError as error:
        return Kernel(release, "", str(error), held, _features())
    return Kernel(release, version, "", held, _features())


def _features() -> dict[str, str]:
    from mapek.bpf import features

    found: dict[str, str] = {}
    for name, answer in features.features().items():
        found[name] = f"no ({features.since(name)})" if answer is features.Answer.NO else answer.value
    return found
