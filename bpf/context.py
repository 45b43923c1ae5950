"""What a program reads from its context: the packet's addresses, pointers of the kernel, numbers."""

from __future__ import annotations

from typing import Final

from mapek.bpf.alu import ANY, UNKNOWN, Value

_PACKET: Final = {"xdp": (0, 4, 8), "skb": (76, 80, 140)}
"""Where the addresses of the packet's data, its end and its metadata are."""
_SKB: Final = frozenset(
    "sched_cls sched_act cgroup_skb socket_filter lwt_in lwt_out lwt_xmit lwt_seg6local sk_skb".split()
)
_KERNEL: Final = frozenset("tracing lsm struct_ops".split())
"""Program types whose context is arguments of functions of the kernel."""
_NUMBERS: Final = frozenset("kprobe tracepoint raw_tracepoint perf_event".split())
"""Program types in whose context there are no pointers that can be followed."""


def field(type_: str, offset: int, width: int) -> Value:
    """What `width` bytes at `offset` of the context of a program of this type hold."""
    if width == 8:
        if type_ in _KERNEL:
            return frozenset(("kernel", "any"))
        return ANY if type_ in _NUMBERS else UNKNOWN
    packet = _PACKET.get("skb" if type_ in _SKB else type_)
    if packet is None:
        return UNKNOWN
    return frozenset(("packet",)) if width == 4 and offset in packet else ANY
