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
