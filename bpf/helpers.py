"""The kernel's helper functions: their names by number, which of them need a GPL-compatible program, and what a
program that calls one can do thereby.

Numbers are uapi (`enum bpf_func_id`, complete since 6.2: later kernels add kfuncs instead). The licence rule is the
`gpl_only` of each helper's prototype; a test asks the running kernel for every one that it lets be asked. What a
helper does is said in a few words of our own, so that programs can be told apart that look and that act.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

NAMES: Final = (
    "unspec "
    "map_lookup_elem map_update_elem map_delete_elem probe_read ktime_get_ns trace_printk get_prandom_u32 "
    "get_smp_processor_id skb_store_bytes l3_csum_replace l4_csum_replace tail_call clone_redirect "
    "get_current_pid_tgid get_current_uid_gid get_current_comm get_cgroup_classid skb_vlan_push "
    "skb_vlan_pop skb_get_tunnel_key skb_set_tunnel_key perf_event_read redirect get_route_realm "
    "perf_event_output skb_load_bytes get_stackid csum_diff skb_get_tunnel_opt skb_set_tunnel_opt "
    "skb_change_proto skb_change_type skb_under_cgroup get_hash_recalc get_current_task probe_write_user "
    "current_task_under_cgroup skb_change_tail skb_pull_data csum_update set_hash_invalid get_numa_node_id "
    "skb_change_head xdp_adjust_head probe_read_str get_socket_cookie get_socket_uid set_hash setsockopt "
    "skb_adjust_room redirect_map sk_redirect_map sock_map_update xdp_adjust_meta perf_event_read_value "
    "perf_prog_read_value getsockopt override_return sock_ops_cb_flags_set msg_redirect_map msg_apply_bytes "
    "msg_cork_bytes msg_pull_data bind xdp_adjust_tail skb_get_xfrm_state get_stack skb_load_bytes_relative "
    "fib_lookup sock_hash_update msg_redirect_hash sk_redirect_hash lwt_push_encap lwt_seg6_store_bytes "
    "lwt_seg6_adjust_srh lwt_seg6_action rc_repeat rc_keydown skb_cgroup_id get_current_cgroup_id "
    "get_local_storage sk_select_reuseport skb_ancestor_cgroup_id sk_lookup_tcp sk_lookup_udp sk_release "
    "map_push_elem map_pop_elem map_peek_elem msg_push_data msg_pop_data rc_pointer_rel spin_lock "
    "spin_unlock sk_fullsock tcp_sock skb_ecn_set_ce get_listener_sock skc_lookup_tcp tcp_check_syncookie "
    "sysctl_get_name sysctl_get_current_value sysctl_get_new_value sysctl_set_new_value strtol strtoul "
    "sk_storage_get sk_storage_delete send_signal tcp_gen_syncookie skb_output probe_read_user "
    "probe_read_kernel probe_read_user_str probe_read_kernel_str tcp_send_ack send_signal_thread jiffies64 "
    "read_branch_records get_ns_current_pid_tgid xdp_output get_netns_cookie get_current_ancestor_cgroup_id "
    "sk_assign ktime_get_boot_ns seq_printf seq_write sk_cgroup_id sk_ancestor_cgroup_id ringbuf_output "
    "ringbuf_reserve ringbuf_submit ringbuf_discard ringbuf_query csum_level skc_to_tcp6_sock "
    "skc_to_tcp_sock skc_to_tcp_timewait_sock skc_to_tcp_request_sock skc_to_udp6_sock get_task_stack "
    "load_hdr_opt store_hdr_opt reserve_hdr_opt inode_storage_get inode_storage_delete d_path "
    "copy_from_user snprintf_btf seq_printf_btf skb_cgroup_classid redirect_neigh per_cpu_ptr this_cpu_ptr "
    "redirect_peer task_storage_get task_storage_delete get_current_task_btf bprm_opts_set "
    "ktime_get_coarse_ns ima_inode_hash sock_from_file check_mtu for_each_map_elem snprintf sys_bpf "
    "btf_find_by_name_kind sys_close timer_init timer_set_callback timer_start timer_cancel get_func_ip "
    "get_attach_cookie task_pt_regs get_branch_snapshot trace_vprintk skc_to_unix_sock kallsyms_lookup_name "
    "find_vma loop strncmp get_func_arg get_func_ret get_func_arg_cnt get_retval set_retval "
    "xdp_get_buff_len xdp_load_bytes xdp_store_bytes copy_from_user_task skb_set_tstamp ima_file_hash "
    "kptr_xchg map_lookup_percpu_elem skc_to_mptcp_sock dynptr_from_mem ringbuf_reserve_dynptr "
    "ringbuf_submit_dynptr ringbuf_discard_dynptr dynptr_read dynptr_write dynptr_data "
    "tcp_raw_gen_syncookie_ipv4 tcp_raw_gen_syncookie_ipv6 tcp_raw_check_syncookie_ipv4 "
    "tcp_raw_check_syncookie_ipv6 ktime_get_tai_ns user_ringbuf_drain cgrp_storage_get cgrp_storage_delete"
).split()
"""Helper names without `bpf_`, by number."""

GPL_ONLY: Final = frozenset(
    (
        "check_mtu copy_from_user_task fib_lookup get_branch_snapshot get_current_task get_current_task_btf "
        "get_func_ip get_stack get_stackid perf_event_output perf_event_read perf_event_read_value "
        "perf_prog_read_value probe_read probe_read_kernel probe_read_kernel_str probe_read_str probe_read_user "
        "probe_read_user_str read_branch_records skb_output snprintf task_pt_regs tcp_check_syncookie "
        "tcp_gen_syncookie tcp_raw_check_syncookie_ipv4 tcp_raw_check_syncookie_ipv6 tcp_raw_gen_syncookie_ipv4 "
        "tcp_raw_gen_syncookie_ipv6 timer_cancel timer_init timer_set_callback timer_start trace_printk "
        "trace_vprintk xdp_output probe_write_user override_return rc_repeat rc_keydown rc_pointer_rel "
        "seq_printf seq_write seq_printf_btf"
    ).split()
)

# The last number that a kernel knows, from its uapi/linux/bpf.h.
LAST: Final = (
    (155, "5.10"), (162, "5.11"), (163, "5.12"), (165, "5.13"), (168, "5.14"), (175, "5.15"), (179, "5.16"),
    (185, "5.17"), (193, "5.18"), (203, "5.19"), (207, "6.0"), (209, "6.1"), (211, "6.2"),
)  # fmt: skip

# An address that these are given may be of a process or of the kernel: the old ones look at it, a format says %pks
# or %pus.
READ_EITHER: Final = frozenset(
    "probe_read probe_read_str snprintf trace_printk trace_vprintk seq_printf".split()
)

EFFECTS: Final = {
    "redirects packets": frozenset(
        (
            "redirect clone_redirect redirect_map redirect_neigh redirect_peer sk_redirect_map sk_redirect_hash "
            "msg_redirect_map msg_redirect_hash sk_assign lwt_push_encap lwt_seg6_action"
        ).split()
    ),
    "changes packets": frozenset(
        (
            "skb_store_bytes l3_csum_replace l4_csum_replace skb_vlan_push skb_vlan_pop skb_change_proto "
            "skb_change_type skb_change_tail skb_change_head skb_adjust_room skb_set_tunnel_key "
            "skb_set_tunnel_opt csum_update csum_level skb_ecn_set_ce skb_set_tstamp set_hash set_hash_invalid "
            "xdp_adjust_head xdp_adjust_meta xdp_adjust_tail xdp_store_bytes msg_push_data msg_pop_data "
            "store_hdr_opt reserve_hdr_opt lwt_seg6_store_bytes lwt_seg6_adjust_srh"
        ).split()
    ),
    "changes sockets": frozenset(
        (
            "setsockopt bind sock_ops_cb_flags_set tcp_send_ack sock_map_update sock_hash_update bprm_opts_set "
            "sysctl_set_new_value set_retval"
        ).split()
    ),
    "reads user memory": READ_EITHER
    | frozenset("probe_read_user probe_read_user_str copy_from_user copy_from_user_task".split()),
    # Besides those that copy: those that give a pointer to a record of the kernel, from which loads go on to others.
    "reads kernel memory": READ_EITHER
    | frozenset(
        (
            "probe_read_kernel probe_read_kernel_str get_current_task get_current_task_btf task_pt_regs d_path "
            "kallsyms_lookup_name snprintf_btf seq_printf_btf per_cpu_ptr this_cpu_ptr sock_from_file find_vma "
            "skc_to_tcp6_sock skc_to_tcp_sock skc_to_tcp_timewait_sock skc_to_tcp_request_sock skc_to_udp6_sock "
            "skc_to_unix_sock skc_to_mptcp_sock"
        ).split()
    ),
    "writes user memory": frozenset(("probe_write_user").split()),
    "kills processes": frozenset(("send_signal send_signal_thread").split()),
    "makes kernel functions fail": frozenset(("override_return").split()),
    "sends to user space": frozenset(
        (
            "perf_event_output skb_output xdp_output ringbuf_output ringbuf_submit ringbuf_submit_dynptr "
            "trace_printk trace_vprintk seq_printf seq_write seq_printf_btf rc_keydown rc_repeat rc_pointer_rel"
        ).split()
    ),
    "changes maps": frozenset(
        (
            "map_update_elem map_delete_elem map_push_elem map_pop_elem sk_storage_get sk_storage_delete "
            "inode_storage_get inode_storage_delete task_storage_get task_storage_delete cgrp_storage_get "
            "cgrp_storage_delete kptr_xchg"
        ).split()
    ),
    "starts other programs": frozenset(
        ("tail_call timer_start timer_set_callback for_each_map_elem loop user_ringbuf_drain").split()
    ),
    "makes BPF system calls": frozenset(("sys_bpf sys_close").split()),
}
"""What a program can do by calling a helper, in the words that `explain` uses."""


def name(number: int) -> str:
    """The helper's name ("map_lookup_elem"), "helper 999" for one that no kernel up to 6.18 has."""
    return NAMES[number] if 0 < number < len(NAMES) else f"helper {number}"


def since(number: int) -> str:
    """The first kernel, from 5.10 on, that has it ("5.15"); "" for none up to 6.18."""
    return next((version for last, version in LAST if 0 < number <= last), "")


def effects(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """For each effect that one of the helpers `names` has: which of them."""
    given = sorted(set(names))
    found = {effect: tuple(one for one in given if one in helpers) for effect, helpers in EFFECTS.items()}
    return {effect: helpers for effect, helpers in found.items() if helpers}
