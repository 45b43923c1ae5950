// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Counts what happens to packets: TCP retransmits and resets by family, drops by the kernel's reason, and on demand
 * what each interface receives and sends; samples the rare ones. Of one network namespace, found through the socket or
 * the device. Arguments that a kernel lacks are not read, for what its BTF lacks is cut out before it is verified.
 */
#include "core.h"
#include <bpf/bpf_endian.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/stddef.h>
#include "net_events.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct in6_addr___core {
	__u8 bytes[16];
};

struct sock_common___ipv6 {
	struct in6_addr___core skc_v6_daddr;
	struct in6_addr___core skc_v6_rcv_saddr;
};

struct sk_buff___cb {
	char cb[48];
};

struct tcp_skb_cb {
	__u16 tcp_gso_segs;
};

/* What kfree_skb tells tracefs: each member came with the argument of its name, `reason` in 5.17, `rx_sk` in 6.11. */
enum skb_drop_reason { NET_ANY_REASON };
struct trace_event_raw_kfree_skb {
	enum skb_drop_reason reason;
	void *rx_sk;
};

#pragma clang attribute pop

/* Inode number of the namespace to count, 0: all. */
const volatile __u32 own_netns = 0;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct net_traffic);
} traffic SEC(".maps");

/* Pointers are read as numbers throughout: several may be NULL, though old kernels promise the verifier otherwise. */
static __always_inline __u32 netns_of_sock(const struct sock *sk)
{
	return sk ? BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum) : 0;
}

static __always_inline __u32 netns_of_skb(const struct sk_buff *skb)
{
	const struct net_device *dev = skb ? BPF_CORE_READ(skb, dev) : NULL;

	return dev ? BPF_CORE_READ(dev, nd_net.net, ns.inum) : 0;
}

static __always_inline void fill_sock(struct net_sample *record, const struct sock *sk)
{
	const struct sock_common *common = &sk->__sk_common;
	const struct sock_common___ipv6 *six = (const void *)common;

	record->family = family_of(BPF_CORE_READ(common, skc_family));
	record->state = BPF_CORE_READ(common, skc_state);
	record->protocol = IPPROTO_TCP;
	record->sport = BPF_CORE_READ(common, skc_num);
	record->dport = bpf_ntohs(BPF_CORE_READ(common, skc_dport));
	if (record->family == NET_IPV6 && bpf_core_field_exists(six->skc_v6_daddr)) {
		BPF_CORE_READ_INTO(&record->saddr, six, skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO(&record->daddr, six, skc_v6_daddr);
	} else {
		*(__be32 *)record->saddr = BPF_CORE_READ(common, skc_rcv_saddr);
		*(__be32 *)record->daddr = BPF_CORE_READ(common, skc_daddr);
	}
}

/* Addresses of the packet itself: `swap` where the sample is about the answer to it. */
static __always_inline void fill_skb(struct net_sample *record, const struct sk_buff *skb, int swap)
{
	const unsigned char *head = BPF_CORE_READ(skb, head);
	__u16 network = BPF_CORE_READ(skb, network_header), transport = BPF_CORE_READ(skb, transport_header);
	__u32 protocol = 0;
	__be16 ports[2] = {};

	record->ethertype = bpf_ntohs(BPF_CORE_READ(skb, protocol));
	if (record->ethertype == ETH_P_IP) {
		struct iphdr ip = {};

		if (bpf_probe_read_kernel(&ip, sizeof(ip), head + network))
			return;
		record->family = NET_IPV4;
		protocol = ip.protocol;
		*(__be32 *)record->saddr = swap ? ip.daddr : ip.saddr;
		*(__be32 *)record->daddr = swap ? ip.saddr : ip.daddr;
	} else if (record->ethertype == ETH_P_IPV6) {
		struct ipv6hdr ip = {};

		if (bpf_probe_read_kernel(&ip, sizeof(ip), head + network))
			return;
		record->family = NET_IPV6;
		protocol = ip.nexthdr;
		__builtin_memcpy(record->saddr, swap ? &ip.daddr : &ip.saddr, 16);
		__builtin_memcpy(record->daddr, swap ? &ip.saddr : &ip.daddr, 16);
	} else {
		record->family = NET_OTHER_FAMILY;
		return;
	}
	record->protocol = protocol;
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return;
	/* Not every path has set it; then it lies on or before the network header. */
	if (transport == 0xffff || transport <= network ||
	    bpf_probe_read_kernel(ports, sizeof(ports), head + transport))
		return;
	record->sport = bpf_ntohs(ports[swap ? 1 : 0]);
	record->dport = bpf_ntohs(ports[swap ? 0 : 1]);
}

static __always_inline int is_ours(__u32 netns)
{
	return !own_netns || netns == own_netns;
}

static __always_inline int tcp_event(enum net_event event, const struct sock *sk, __u64 n)
{
	struct net_counts *here = counts_here();
	struct net_sample *record;

	if (!here || !is_ours(netns_of_sock(sk)))
		return 0;
	count_tcp(here, event, family_of(BPF_CORE_READ(sk, __sk_common.skc_family)), n);
	record = sample_begin(here, event);
	if (record) {
		fill_sock(record, sk);
		bpf_ringbuf_submit(record, 0);
	}
	return 0;
}

SEC("raw_tp/tcp_retransmit_skb")
int net_retransmit(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sk_buff___cb *skb = (const void *)ctx->args[1];
	const struct tcp_skb_cb *cb = (const void *)&skb->cb;
	__u16 segments = BPF_CORE_READ(cb, tcp_gso_segs);

	return tcp_event(NET_RETRANSMIT, (const void *)ctx->args[0], segments ? segments : 1);
}

SEC("raw_tp/tcp_retransmit_synack")
int net_synack(struct bpf_raw_tracepoint_args *ctx)
{
	return tcp_event(NET_RETRANSMIT_SYNACK, (const void *)ctx->args[0], 1);
}

SEC("raw_tp/tcp_receive_reset")
int net_reset_in(struct bpf_raw_tracepoint_args *ctx)
{
	return tcp_event(NET_RESET_RECEIVED, (const void *)ctx->args[0], 1);
}

SEC("raw_tp/tcp_send_reset")
int net_reset_out(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sock *sk = (const void *)ctx->args[0];
	const struct sk_buff *skb = (const void *)ctx->args[1];
	struct net_counts *here;
	struct net_sample *record;
	__u16 ethertype;

	if (sk)
		return tcp_event(NET_RESET_SENT, sk, 1);
	/* The answer to a packet for nobody (from 6.10). */
	here = counts_here();
	if (!here || !skb || !is_ours(netns_of_skb(skb)))
		return 0;
	ethertype = bpf_ntohs(BPF_CORE_READ(skb, protocol));
	count_tcp(here, NET_RESET_SENT,
		  ethertype == ETH_P_IP   ? NET_IPV4 :
		  ethertype == ETH_P_IPV6 ? NET_IPV6 :
					    NET_OTHER_FAMILY,
		  1);
	record = sample_begin(here, NET_RESET_SENT);
	if (record) {
		fill_skb(record, skb, 1);
		bpf_ringbuf_submit(record, 0);
	}
	return 0;
}

SEC("raw_tp/kfree_skb")
int net_drop(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sk_buff *skb = (const void *)ctx->args[0];
	struct net_counts *here = counts_here();
	__u32 netns = 0, reason = NET_NO_REASON;
	const struct trace_event_raw_kfree_skb *told = NULL;
	struct net_sample *record;

	if (!here)
		return 0;
	if (own_netns) {
		/* A queued packet has lost its device, and some use that place for something else. */
		if (bpf_core_field_exists(told->rx_sk))
			netns = netns_of_sock((const void *)ctx->args[3]);
		if (!netns)
			netns = netns_of_skb(skb);
		if (!netns)
			netns = netns_of_sock(BPF_CORE_READ(skb, sk));
		if (!netns)
			__sync_fetch_and_add(&here->losses[NET_UNATTRIBUTED], 1);
		if (netns != own_netns)
			return 0;
	}
	if (bpf_core_field_exists(told->reason))
		reason = ctx->args[2];
	count_drop(here, reason);
	record = sample_begin(here, NET_DROP);
	if (record) {
		const struct net_device *dev = BPF_CORE_READ(skb, dev);

		fill_skb(record, skb, 0);
		record->reason = reason;
		if (dev)
			record->ifindex = BPF_CORE_READ(dev, ifindex);
		bpf_ringbuf_submit(record, 0);
	}
	return 0;
}

static __always_inline struct net_traffic *traffic_of(const struct net_device *dev)
{
	__u32 ifindex = dev->ifindex, zero = 0;
	struct net_traffic *found = bpf_map_lookup_elem(&traffic, &ifindex), empty = {};

	if (found)
		return found;
	bpf_map_update_elem(&traffic, &ifindex, &empty, BPF_NOEXIST);
	found = bpf_map_lookup_elem(&traffic, &ifindex);
	if (!found) {
		struct net_counts *here = counts_here();

		if (here)
			__sync_fetch_and_add(&here->losses[NET_MAP_FULL], 1);
		found = bpf_map_lookup_elem(&traffic, &zero);
	}
	return found;
}

/* tp_btf, which reads kernel memory without a call: these run for every packet. */
SEC("tp_btf/netif_receive_skb")
int net_receive(__u64 *ctx)
{
	const struct sk_buff *skb = (const void *)ctx[0];
	const struct net_device *dev = skb->dev;
	struct net_traffic *to;

	if (own_netns && dev->nd_net.net->ns.inum != own_netns)
		return 0;
	to = traffic_of(dev);
	if (to) {
		to->received_packets++;
		to->received_bytes += skb->len;
	}
	return 0;
}

SEC("tp_btf/net_dev_start_xmit")
int net_transmit(__u64 *ctx)
{
	const struct sk_buff *skb = (const void *)ctx[0];
	const struct net_device *dev = (const void *)ctx[1];
	struct net_traffic *to;

	if (own_netns && dev->nd_net.net->ns.inum != own_netns)
		return 0;
	to = traffic_of(dev);
	if (to) {
		to->sent_packets++;
		to->sent_bytes += skb->len;
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
