"""Is what we attached still attached? Of every way to attach the same question, asked of the kernel.

A bpf_link is forced off by its id (BPF_LINK_DETACH) or given another program, a tc filter is deleted alone or with
its qdisc, XDP that was attached by netlink is taken off by whoever may, and an element of a program array is anybody's
who may open the map. What hangs on a tracepoint or kprobe is not asked about: the kernel gives others no way to take
it off (a raw tracepoint's link answers BPF_LINK_DETACH with EOPNOTSUPP, a perf event is its descriptor).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mapek.bpf.xdp import interface_exists
from mapek.errors import MapekError

if TYPE_CHECKING:
    from mapek.bpf.dispatcher import Dispatcher


class Standing(Protocol):
    """What is attached to an interface: `Link`, `ClsactFilter`, `NetlinkXdp` or `Slot`."""

    def lost(self) -> str:
        """How it was taken off behind our back, in words; "" while it stands. May block: a thread's work."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A program in a dispatcher's chain."""

    dispatcher: Dispatcher
    slot: str
    program_id: int

    def lost(self) -> str:
        """As `Dispatcher.lost`."""
        return self.dispatcher.lost(self.slot, self.program_id)


def how_lost(one: Standing, ifindex: int) -> str:
    """How it was taken off `ifindex` behind our back, in words.

    "" while it stands, where the interface went with it, which is told elsewhere, and where the kernel does not say.
    Blocks for microseconds, and for as long as somebody holds rtnl.
    """
    try:
        how = one.lost()
    except (MapekError, OSError):
        return ""
    return how if how and interface_exists(ifindex) else ""
