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

# Program type, attach type ("-": none), and the section names that mean them. Behind a "+" libbpf lets a target follow
# ("kprobe/do_nanosleep"), all others stand alone.
_SECTION_NAMES: Final = """
socket_filter - socket
sk_reuseport sk_reuseport_select_or_migrate sk_reuseport/migrate
sk_reuseport sk_reuseport_select sk_reuseport
kprobe - kprobe+ uprobe+ uprobe.s+ kretprobe+ uretprobe+ uretprobe.s+ ksyscall+ kretsyscall+ usdt+
kprobe trace_kprobe_multi kprobe.multi+ kretprobe.multi+
sched_cls - tc classifier
sched_act - action
tracepoint - tracepoint+ tp+
raw_tracepoint - raw_tracepoint+ raw_tp+
raw_tracepoint_writable - raw_tracepoint.w+ raw_tp.w+
tracing trace_raw_tp tp_btf+
tracing trace_fentry fentry+ fentry.s+
tracing modify_return fmod_ret+ fmod_ret.s+
tracing trace_fexit fexit+ fexit.s+
ext - freplace+
lsm lsm_mac lsm+ lsm.s+
lsm lsm_cgroup lsm_cgroup+
tracing trace_iter iter+ iter.s+
syscall - syscall
xdp xdp_devmap xdp.frags/devmap xdp/devmap
xdp xdp_cpumap xdp.frags/cpumap xdp/cpumap
xdp xdp xdp.frags xdp
perf_event - perf_event
lwt_in - lwt_in
lwt_out - lwt_out
lwt_xmit - lwt_xmit
lwt_seg6local - lwt_seg6local
sock_ops cgroup_sock_ops sockops
sk_skb sk_skb_stream_parser sk_skb/stream_parser
sk_skb sk_skb_stream_verdict sk_skb/stream_verdict
sk_skb - sk_skb
sk_msg sk_msg_verdict sk_msg
lirc_mode2 lirc_mode2 lirc_mode2
flow_dissector flow_dissector flow_dissector
cgroup_skb cgroup_inet_ingress cgroup_skb/ingress
cgroup_skb cgroup_inet_egress cgroup_skb/egress
cgroup_skb - cgroup/skb
cgroup_sock cgroup_inet_sock_create cgroup/sock_create cgroup/sock
cgroup_sock cgroup_inet_sock_release cgroup/sock_release
cgroup_sock cgroup_inet4_post_bind cgroup/post_bind4
cgroup_sock cgroup_inet6_post_bind cgroup/post_bind6
cgroup_sock_addr cgroup_inet4_bind cgroup/bind4
cgroup_sock_addr cgroup_inet6_bind cgroup/bind6
cgroup_sock_addr cgroup_inet4_connect cgroup/connect4
cgroup_sock_addr cgroup_inet6_connect cgroup/connect6
cgroup_sock_addr cgroup_udp4_sendmsg cgroup/sendmsg4
cgroup_sock_addr cgroup_udp6_sendmsg cgroup/sendmsg6
cgroup_sock_addr cgroup_udp4_recvmsg cgroup/recvmsg4
cgroup_sock_addr cgroup_udp6_recvmsg cgroup/recvmsg6
cgroup_sock_addr cgroup_inet4_getpeername cgroup/getpeername4
cgroup_sock_addr cgroup_inet6_getpeername cgroup/getpeername6
cgroup_sock_addr cgroup_inet4_getsockname cgroup/getsockname4
cgroup_sock_addr cgroup_inet6_getsockname cgroup/getsockname6
cgroup_sysctl cgroup_sysctl cgroup/sysctl
cgroup_sockopt cgroup_getsockopt cgroup/getsockopt
cgroup_sockopt cgroup_setsockopt cgroup/setsockopt
cgroup_device cgroup_device cgroup/dev
struct_ops - struct_ops+
sk_lookup sk_lookup sk_lookup
sched_cls tcx_ingress tcx/ingress
sched_cls tcx_egress tcx/egress
netfilter netfilter netfilter
"""

_SECTIONS: Final = {
    name.rstrip("+"): (kind, "" if attach == "-" else attach, name.endswith("+"))
    for kind, attach, *names in map(str.split, _SECTION_NAMES.strip().splitlines())
    for name in names
}


def program_kind(section: str) -> tuple[str, str]:
    """Program type and attach type of a section name as libbpf reads it, up to 1.3; ("unspec", "") for any other."""
    name = section.removeprefix("?")
    for whole in (name, name.partition("/")[0]):
        if whole in _SECTIONS:
            kind, attach, open_ended = _SECTIONS[whole]
            if whole == name or open_ended:
                return kind, attach
    return "unspec", ""
