"""The kernel's names for map and program types, and what libbpf makes of a section name.

The tables are uapi, in the order of `enum bpf_map_type` and `enum bpf_prog_type`; names are lower case
without the prefix, as bpftool prints them in long form.
"""

from __future__ import annotations

from typing import Final

MAP_TYPES: Final[list[str]] = (
    "unspec hash array prog_array perf_event_array percpu_hash percpu_array stack_trace cgroup_array "
    "lru_hash lru_percpu_hash lpm_trie array_of_maps hash_of_maps devmap sockmap cpumap xskmap sockhash "
    "cgroup_storage reuseport_sockarray percpu_cgroup_storage queue stack sk_storage devmap_hash "
    "struct_ops ringbuf inode_storage task_storage bloom_filter user_ringbuf cgrp_storage arena"
).split()

PROGRAM_TYPES: Final[list[str]] = (
    "unspec socket_filter kprobe sched_cls sched_act tracepoint xdp perf_event cgroup_skb cgroup_sock "
    "lwt_in lwt_out lwt_xmit sock_ops sk_skb cgroup_device sk_msg raw_tracepoint cgroup_sock_addr "
    "lwt_seg6local lirc_mode2 sk_reuseport flow_dissector cgroup_sysctl raw_tracepoint_writable "
    "cgroup_sockopt tracing struct_ops ext lsm sk_lookup syscall netfilter"
).split()

MAP_SINCE: Final = {
    "hash": "3.19", "array": "3.19", "prog_array": "4.2", "perf_event_array": "4.3", "stack_trace": "4.6",
    "percpu_hash": "4.6", "percpu_array": "4.6", "cgroup_array": "4.8", "lru_hash": "4.10",
    "lru_percpu_hash": "4.10", "lpm_trie": "4.11", "array_of_maps": "4.12", "hash_of_maps": "4.12", "devmap":
    "4.14", "sockmap": "4.14", "cpumap": "4.15", "xskmap": "4.18", "sockhash": "4.18", "queue": "4.20",
    "stack": "4.20", "sk_storage": "5.2", "devmap_hash": "5.4", "struct_ops": "5.6", "ringbuf": "5.8",
    "inode_storage": "5.10", "task_storage": "5.11", "bloom_filter": "5.16", "user_ringbuf": "6.1",
    "cgrp_storage": "6.2", "arena": "6.9",
}  # fmt: skip
"""The kernel that brings a map type."""

PROGRAM_SINCE: Final = {
    "socket_filter": "3.19", "kprobe": "4.1", "sched_cls": "4.1", "sched_act": "4.1", "tracepoint": "4.7",
    "xdp": "4.8", "perf_event": "4.9", "cgroup_skb": "4.10", "raw_tracepoint": "4.17", "tracing": "5.5",
    "struct_ops": "5.6", "ext": "5.6", "lsm": "5.7", "sk_lookup": "5.9", "syscall": "5.14", "netfilter": "6.4",
}  # fmt: skip
"""The kernel that brings a program type."""

# Section prefix -> program type, attach type; longest prefix wins, as in libbpf's table.
_SECTIONS: Final = {
    "xdp": ("xdp", "xdp"), "xdp.frags": ("xdp", "xdp"), "tc": ("sched_cls", ""), "classifier":
    ("sched_cls", ""), "tcx/ingress": ("sched_cls", "tcx_ingress"), "tcx/egress": ("sched_cls",
    "tcx_egress"), "action": ("sched_act", ""), "kprobe": ("kprobe", ""), "kretprobe": ("kprobe", ""),
    "ksyscall": ("kprobe", ""), "kretsyscall": ("kprobe", ""), "kprobe.multi": ("kprobe",
    "trace_kprobe_multi"), "kretprobe.multi": ("kprobe", "trace_kprobe_multi"), "uprobe": ("kprobe", ""),
    "uretprobe": ("kprobe", ""), "usdt": ("kprobe", ""), "tp": ("tracepoint", ""), "tracepoint":
    ("tracepoint", ""), "raw_tp": ("raw_tracepoint", ""), "raw_tracepoint": ("raw_tracepoint", ""),
    "tp_btf": ("tracing", "trace_raw_tp"), "fentry": ("tracing", "trace_fentry"), "fexit": ("tracing",
    "trace_fexit"), "fmod_ret": ("tracing", "modify_return"), "iter": ("tracing", "trace_iter"), "iter.s":
    ("tracing", "trace_iter"), "lsm": ("lsm", "lsm_mac"), "syscall": ("syscall", ""), "perf_event":
    ("perf_event", ""), "socket": ("socket_filter", ""), "cgroup_skb/ingress": ("cgroup_skb",
    "cgroup_inet_ingress"), "cgroup_skb/egress": ("cgroup_skb", "cgroup_inet_egress"), "sockops":
    ("sock_ops", "cgroup_sock_ops"), "sk_lookup": ("sk_lookup", "sk_lookup"),
}  # fmt: skip


def program_kind(section: str) -> tuple[str, str]:
    """Program type and attach type of a section name, ("unspec", "") for one that libbpf 1.1 would not know
    either."""
    name = section.removeprefix("?")
    for prefix in sorted(_SECTIONS, key=len, reverse=True):
        if name == prefix or name.startswith(prefix + "/"):
            return _SECTIONS[prefix]
    return "unspec", ""
