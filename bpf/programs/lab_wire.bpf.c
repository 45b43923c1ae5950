// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * A wire of the lab: what comes in at one end leaves at the other, unless the fault of that direction eats it. It runs
 * in a namespace between two nodes, so neither node's programs can see or escape the fault. tc and not XDP redirect:
 * it works whether or not the nodes' ends have native XDP; `lab_pass` on both wire ends is what lets a node's XDP_TX
 * frames in. Both maps are mmapable: a fault is one store.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "lab_wire.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LAB_ENDS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct lab_end);
} ends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LAB_ENDS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct lab_count);
} counts SEC(".maps");

/* Of the measured flow: unfragmented UDP without options, to one of its ports. */
static __always_inline int is_flow(struct __sk_buff *skb)
{
	__u32 udp = sizeof(struct ethhdr);
	__be16 port;
	__u8 byte;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, udp, &byte, 1) || byte != 0x45 ||
		    bpf_skb_load_bytes(skb, udp + 9, &byte, 1) || byte != IPPROTO_UDP)
			return 0;
		udp += sizeof(struct iphdr);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, udp + 6, &byte, 1) || byte != IPPROTO_UDP)
			return 0;
		udp += sizeof(struct ipv6hdr);
	} else {
		return 0;
	}
	if (bpf_skb_load_bytes(skb, udp + 2, &port, sizeof(port)))
		return 0;
	return (__u16)(bpf_ntohs(port) - LAB_FLOW_PORT) < LAB_FLOW_PORTS;
}

SEC("tc")
int lab_forward(struct __sk_buff *skb)
{
	__u32 in = skb->ingress_ifindex;
	struct lab_end *end = bpf_map_lookup_elem(&ends, &in);
	struct lab_count *count = bpf_map_lookup_elem(&counts, &in);
	int flow;

	if (!end || !count || !end->out)
		return TC_ACT_SHOT;
	flow = is_flow(skb);
	if (end->drop_below && bpf_get_prandom_u32() < end->drop_below) {
		__sync_fetch_and_add(&count->dropped, 1);
		if (flow)
			__sync_fetch_and_add(&count->flow_dropped, 1);
		return TC_ACT_SHOT;
	}
	__sync_fetch_and_add(&count->forwarded, 1);
	if (flow)
		__sync_fetch_and_add(&count->flow_forwarded, 1);
	return bpf_redirect(end->out, 0);
}

SEC("xdp")
int lab_pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
