"""In words: where programs of each type hook in, when they run, and what the kernel does with what they return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mapek.bpf.spec import ProgramSpec

_RUNS: Final = {
    "xdp": (
        "for every packet that an interface receives, in the driver or right behind it, before the kernel's "
        "network stack sees it"
    ),
    "sched_cls": "for every packet that an interface receives or sends (as attached), in the traffic control layer",
    "sched_act": "for every packet that a traffic control filter hands to it",
    "socket_filter": "for every packet that comes to a socket",
    "cgroup_skb": "for every packet of the sockets of a control group",
    "raw_tracepoint": "each time the kernel passes tracepoint {place}",
    "tracepoint": "each time the kernel passes tracepoint {place}",
    "perf_event": "at each overflow of a performance counter",
    "syscall": "when a process asks for it by bpf(2)",
    "lsm": "when the kernel asks its security modules at {place}, and it can deny",
    "sock_ops": "at events of TCP connections of a control group",
    "lwt_in": "for every packet that comes by a route with this program",
    "lwt_out": "for every packet that leaves by a route with this program",
    "lwt_xmit": "for every packet that leaves by a route with this program, right before it is sent",
    "lwt_seg6local": "for every packet that comes by an IPv6 segment route with this program",
    "sk_skb": "for the data that comes to sockets of a map",
    "sk_lookup": "when the kernel looks for the socket of a new connection",
    "struct_ops": "as a part of the kernel: it stands in for functions of it",
    "iter": "when a process reads it, for each object of the kernel ({place})",
    "lirc_mode2": "for every pulse and space that an infrared receiver sees",
    "ext": "in the place of a function of another program",
}
_PREFIXES: Final = {
    "kprobe": "each time the kernel function {place} is entered",
    "kretprobe": "each time the kernel function {place} returns",
    "kprobe.multi": "each time a kernel function that matches {place} is entered",
    "kretprobe.multi": "each time a kernel function that matches {place} returns",
    "ksyscall": "each time a process makes the system call {place}",
    "kretsyscall": "each time the system call {place} returns",
    "uprobe": "each time a process enters the function {place}",
    "uretprobe": "each time a process leaves the function {place}",
    "usdt": "each time a process passes the probe {place}",
    "tp_btf": "each time the kernel passes tracepoint {place}",
    "fentry": "each time the kernel function {place} is entered",
    "fexit": "each time the kernel function {place} returns",
    "fmod_ret": "before the kernel function {place}, and it can return in its place",
    "iter": _RUNS["iter"],
    "xdp/devmap": "for every packet that another program redirects to an interface of a devmap, before it is sent",
    "xdp/cpumap": "for every packet that another program redirects to a CPU of a cpumap, on that CPU",
    "tcx/ingress": "for every packet that an interface receives, before the kernel's network stack sees it",
    "tcx/egress": "for every packet that an interface sends, last before the queue",
}

_ROUTE: Final = {0: "BPF_OK", 2: "BPF_DROP", 7: "BPF_REDIRECT", 128: "BPF_LWT_REROUTE"}
_ROUTES: Final = ("lwt_in", "lwt_out", "lwt_xmit", "lwt_seg6local")

RETURNS: Final[Mapping[str, Mapping[int, str]]] = {
    "xdp": {0: "XDP_ABORTED", 1: "XDP_DROP", 2: "XDP_PASS", 3: "XDP_TX", 4: "XDP_REDIRECT"},
    "sched_cls": {
        -1: "TC_ACT_UNSPEC", 0: "TC_ACT_OK", 1: "TC_ACT_RECLASSIFY", 2: "TC_ACT_SHOT", 3: "TC_ACT_PIPE",
        4: "TC_ACT_STOLEN", 5: "TC_ACT_QUEUED", 6: "TC_ACT_REPEAT", 7: "TC_ACT_REDIRECT", 8: "TC_ACT_TRAP",
    },
    "cgroup_skb": {0: "drop", 1: "pass", 2: "drop, and say congestion", 3: "pass, and say congestion"},
    "socket_filter": {0: "drop"},
    "sk_lookup": {0: "drop", 1: "pass"},
    "sk_skb": {0: "SK_DROP", 1: "SK_PASS"},
    **dict.fromkeys(_ROUTES, _ROUTE),
}  # fmt: skip
"""Return values that mean something to the kernel, by program type; a sched_act has those of sched_cls."""

PACKETS: Final = frozenset((*RETURNS, "sched_act"))
"""Program types that see packets."""

_DROPS: Final = {
    "sched_cls": (2, 4, 5, 8),
    "sched_act": (1, 2, 4, 5, 8),  # classified anew again and again, it is dropped in the end
    "cgroup_skb": (0, 2),
    "socket_filter": (0,),
    "sk_lookup": (0,),
}
# All others drop.
_KEEPS: Final = {"xdp": (2, 3, 4), "sk_skb": (1,), **dict.fromkeys(_ROUTES, (0, 7, 128))}
_SENDS: Final = {"xdp": (3, 4), "sched_cls": (7,), "sched_act": (7,), **dict.fromkeys(_ROUTES, (7, 128))}


def runs(program: ProgramSpec) -> str:
    """When a program runs, as a phrase."""
    section = program.section.removeprefix("?").replace("xdp.frags", "xdp")
    prefix, _, place = section.partition("/")
    prefix = prefix.removesuffix(".s")
    phrase = _PREFIXES.get(section) or _PREFIXES.get(prefix) or _RUNS.get(program.type, "")
    if not phrase:
        return f"as a program of type {program.type} is run; section {program.section!r}"
    return phrase.format(place=place or "that it is attached to")


def verdict(type_: str, value: int) -> str:
    """The name of a return value, or the number as the kernel takes it (signed, 32 bits)."""
    signed = _signed(value)
    return RETURNS.get("sched_cls" if type_ == "sched_act" else type_, {}).get(signed, str(signed))


def drops(type_: str, value: int) -> bool:
    """Whether a packet goes no further after this is returned. An unknown XDP value is taken for XDP_ABORTED."""
    signed = _signed(value)
    return signed not in _KEEPS[type_] if type_ in _KEEPS else signed in _DROPS.get(type_, ())


def may_drop(type_: str, value: int) -> bool:
    """Whether a packet goes no further after this if it was not said, or not rightly, where it is to go."""
    return sends(type_, value) and RETURNS.get(type_, {}).get(_signed(value)) != "XDP_TX"


def sends(type_: str, value: int) -> bool:
    """Whether a packet leaves by an interface after this is returned: the same one (XDP_TX) or another."""
    return _signed(value) in _SENDS.get(type_, ())


def _signed(value: int) -> int:
    return (value & 0xFFFFFFFF) - ((value & 0x80000000) << 1)
