"""Which sensors can be measured so, on which load, and what is hung in their place.

Every sensor has its programs on a packet's way or at system calls, or it has none: one that only asks the kernel costs
its own process, which the bench measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from mapek.errors import ConfigError
from mapek.simulations.empties import Kind

Load = Literal["flow", "calls"]
WITHOUT: Final = "without"
EMPTY: Final = "empty"
WITH: Final = "with"
OTHERS: Final = "others"


@dataclass(frozen=True, slots=True)
class Subject:
    """A sensor under test.

    Args:
        load: what it is measured on.
        empty: where empty programs are hung in its place, if that can be.
        options: of the sensor, over its defaults.
    """

    sensor: str
    load: Load
    empty: Kind | None
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def settings(self) -> tuple[str, ...]:
        """What follows in turns; "others": it watches other processes than the one that calls."""
        empty = (EMPTY,) if self.empty else ()
        return (WITHOUT, *empty, WITH, *((OTHERS,) if self.load == "calls" else ()))


_ALL: Final = (
    Subject("xdp_counter", "flow", "xdp"),
    Subject("mesh_filter", "flow", "xdp"),
    Subject("batadv", "flow", "xdp"),
    Subject("link_watch", "flow", "xdp"),
    Subject("tc_classifier", "flow", "tc"),
    # Else none of its programs has anything to do with a packet that arrives.
    Subject("net_events", "flow", None, {"packets": True}),
    Subject("syscall_latency", "calls", "syscalls", {"syscalls": ["read"]}),
)
SUBJECTS: Final[Mapping[str, Subject]] = {one.sensor: one for one in _ALL}


def subject(name: str, options: Mapping[str, object] | None = None) -> Subject:
    """The sensor called `name`, with `options` over what is chosen here. Raises ConfigError naming those there are."""
    if name not in SUBJECTS:
        known = ", ".join(SUBJECTS)
        raise ConfigError("measure", name[:40], "no sensor with a program of its own", f"take from {known}")
    found = SUBJECTS[name]
    return replace(found, options={**found.options, **(options or {})})
