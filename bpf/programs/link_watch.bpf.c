// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * link_watch: is a path alive, and what does it lose?
 *
 * `stamp` (tc egress) numbers, dates and authenticates the probes that user space sends, and arms
 * the watchdog: a bpf_timer that raises an event when the oldest unanswered probe waits too long.
 * A sender that stands still sends no probes, so its own stall never looks like a silent peer.
 * `link_watch` (XDP, or tc ingress) takes the answers in and is the peer's reflector: a probe goes
 * back from here, no user space involved, so a stalled process does not look like a dead link.
 * The programs keep raw facts (a window of send times and round trips); user space judges them.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "chain.h"
#include "stamp_answer.h"
#include "stamp_reflect.h"
#include "stamp_send.h"

SEC("tc")
int stamp(struct __sk_buff *skb)
{
	return stamp_probe(skb, true);
}

/* for kernels before 5.15: user space looks at the window on a tick instead */
SEC("tc")
int stamp_untimed(struct __sk_buff *skb)
{
	return stamp_probe(skb, false);
}

static __always_inline __u32 *find_peer(const struct headers *found, __u32 ifindex)
{
	struct peer_key key = { .ifindex = ifindex };

	__builtin_memcpy(key.peer, found->source, 16);
	__builtin_memcpy(key.local, found->dest, 16);
	__u32 *path = bpf_map_lookup_elem(&peers, &key);

	if (path)
		return path;
	key.ifindex = 0;
	return bpf_map_lookup_elem(&peers, &key);
}

enum verdict { NOT_OURS, CONSUMED, REPLY, REPLY_PLAIN };

static __always_inline enum verdict receive_plain(void *data, void *end, __u64 bytes, __u32 ifindex,
						  struct headers *found, union payload *payload,
						  const struct path_config *config, __u32 path,
						  const __u32 longest)
{
	struct udphdr *udp = udp_of(data, end, found, BASE_UDP_LEN);

	if (!udp || !(config->flags & PATH_IN_USE) || !is_sound(data, end, udp, found, bytes))
		return NOT_OURS;
	read_base(udp, payload);
	if (udp->dest != bpf_htons(stamp_port))
		return take_answer(payload, found, ifindex, path, path, true) ? CONSUMED : NOT_OURS;
	/* from the port of a reflector: two of them would send it to and fro for ever */
	if (udp->source == bpf_htons(stamp_port) || found->udp_len > longest)
		return NOT_OURS;
	return reflect_plain(payload, found, config, path, udp->source) ? REPLY_PLAIN : CONSUMED;
}

/*
 * `bytes`: of the whole frame, of which `data` to `end` may be the beginning. `longest`: UDP length of a probe that can be
 * answered.
 */
static __always_inline enum verdict receive(void *data, void *end, __u64 bytes, __u32 ifindex,
					    struct headers *found, union payload *payload, const __u32 longest)
{
	if (!find_stamp(data, end, found))
		return NOT_OURS;
	struct udphdr *udp = udp_of(data, end, found, BASE_UDP_LEN);

	if (!udp || (udp->dest != bpf_htons(stamp_port) && udp->source != bpf_htons(stamp_port)))
		return NOT_OURS;
	__u32 *path = find_peer(found, ifindex);

	if (!path)
		return NOT_OURS;
	struct path_config *config = bpf_map_lookup_elem(&configs, path);

	if (config && config->flags & PATH_PLAIN)
		return receive_plain(data, end, bytes, ifindex, found, payload, config, *path,
				     longest);
	udp = udp_of(data, end, found, PROBE_UDP_LEN);
	if (!udp)
		return NOT_OURS;
	read_payload(udp, payload);
	if (!is_ours(udp, found, payload))
		return NOT_OURS;
	if (payload->probe.role == ROLE_REPLY) {
		take_answer(payload, found, ifindex, bpf_ntohs(payload->probe.ssid) - 1, *path, false);
		return CONSUMED;
	}
	return reflect(payload, found, *path) ? REPLY : CONSUMED;
}

SEC("xdp")
int link_watch(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct headers found = {};
	union payload payload;
	enum verdict verdict = receive(data, end, end - data, ctx->ingress_ifindex, &found, &payload,
				       SUMMED_UDP_LEN);

	if (verdict == NOT_OURS)
		return chain_next(ctx);
	if (verdict == CONSUMED)
		return XDP_DROP;
	struct udphdr *udp = udp_of(data, end, &found, BASE_UDP_LEN);
	bool v6 = found.v6;
	__s64 sum;

	if (!udp)
		return XDP_DROP;
	/* in whole: what came in may be the partial sum of a sender that offloads it */
	if (verdict == REPLY) {
		udp = udp_of(data, end, &found, PROBE_UDP_LEN);
		if (!udp)
			return XDP_DROP;
		turn_around(data, udp, v6);
		write_payload(udp, &payload);
		udp->check = 0;
		sum = sum_headers(udp, &found, v6);
		sum = bpf_csum_diff(0, 0, payload.words, sizeof(payload), sum);
	} else {
		turn_around(data, udp, v6);
		write_base(udp, &payload);
		udp->check = 0;
		sum = sum_headers(udp, &found, v6);
		sum = bpf_csum_diff(0, 0, payload.words, STAMP_BASE, sum);
		if (!sum_rest((void *)udp + BASE_UDP_LEN, end, bpf_ntohs(udp->len) - BASE_UDP_LEN, &sum))
			return XDP_DROP;
	}
	udp->check = fold(sum) ?: 0xffff;
	return XDP_TX;
}

/* where the driver has no XDP */
SEC("tc")
int link_watch_tc(struct __sk_buff *skb)
{
	const __u32 most = sizeof(struct ethhdr) + V6_UDP + PROBE_UDP_LEN;
	__u32 wanted = skb->len < most ? skb->len : most;

	/* what hardware or the stack has taken off stands beside the packet */
	if (skb->vlan_present)
		return TC_ACT_UNSPEC;
	if (link_header && skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6))
		return TC_ACT_UNSPEC;
	/* some drivers leave only the Ethernet header in the linear part */
	if (skb->data_end - skb->data < wanted && bpf_skb_pull_data(skb, wanted))
		return TC_ACT_UNSPEC;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct headers found = {};
	union payload payload, old;
	enum verdict verdict = receive(data, end, skb->len, skb->ifindex, &found, &payload, 0xffff);

	if (verdict == NOT_OURS)
		return TC_ACT_UNSPEC;
	if (verdict == CONSUMED)
		return TC_ACT_SHOT;
	struct udphdr *udp = udp_of(data, end, &found, verdict == REPLY ? PROBE_UDP_LEN : BASE_UDP_LEN);
	__u32 udp_at = link_header + udp_offset(&found), offset = udp_at + sizeof(*udp);
	__s64 diff;

	if (!udp)
		return TC_ACT_SHOT;
	turn_around(data, udp, found.v6);
	if (verdict == REPLY) {
		read_payload(udp, &old);
		diff = bpf_csum_diff(old.words, sizeof(old), payload.words, sizeof(payload), 0);
		bpf_skb_store_bytes(skb, offset, &payload, sizeof(payload), 0);
	} else {
		read_base(udp, &old);
		diff = bpf_csum_diff(old.words, STAMP_BASE, payload.words, STAMP_BASE, 0);
		bpf_skb_store_bytes(skb, offset, &payload, STAMP_BASE, 0);
	}
	bpf_l4_csum_replace(skb, udp_at + offsetof(struct udphdr, check), 0, diff, BPF_F_MARK_MANGLED_0);
	return bpf_redirect(skb->ifindex, 0);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
