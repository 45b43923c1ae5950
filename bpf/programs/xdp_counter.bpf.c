// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Counts packets and bytes by family, protocol and whether they are VLAN-tagged, per CPU. Bytes are those of the frame as
 * XDP sees it, without preamble and checksum. A header that is cut short or malformed counts as "other", and is passed on.
 */
#include "chain.h"
#include "link_header.h"
#include "packet.h"
#include "xdp_counter.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTER_SLOTS);
	__type(key, __u32);
	__type(value, struct counter);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} samples SEC(".maps");

/* [0]: packets seen for sampling, [1]: samples lost because the ring was full. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} sampling SEC(".maps");

/* One packet in so many, per CPU, goes to the ring; 0 costs nothing, for the verifier removes the code. */
const volatile __u32 sample_every = 0;

static __always_inline __u32 proto_slot(int proto, int icmp)
{
	if (proto == IPPROTO_TCP)
		return COUNTER_TCP;
	if (proto == IPPROTO_UDP)
		return COUNTER_UDP;
	return proto == icmp ? COUNTER_ICMP : COUNTER_OTHER_PROTO;
}

static __always_inline void sample(struct xdp_md *ctx, __u32 family, __u32 proto, __u32 tags)
{
	__u32 seen_key = 0, lost_key = 1;
	__u64 *seen = bpf_map_lookup_elem(&sampling, &seen_key);
	struct counter_sample *record;

	if (!seen || ++*seen % sample_every)
		return;
	record = bpf_ringbuf_reserve(&samples, sizeof(*record), 0);
	if (!record) {
		__u64 *lost = bpf_map_lookup_elem(&sampling, &lost_key);

		if (lost)
			++*lost;
		return;
	}
	record->time_ns = bpf_ktime_get_ns();
	record->ifindex = ctx->ingress_ifindex;
	record->bytes = ctx->data_end - ctx->data;
	record->family = family;
	record->proto = proto;
	record->vlan = tags;
	record->pad = 0;
	record->reserved = 0;
	bpf_ringbuf_submit(record, 0);
}

SEC("xdp")
int xdp_counter(struct xdp_md *ctx)
{
	void *at = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u64 bytes = end - at;
	__u32 tags = 0, family = COUNTER_OTHER_FAMILY, proto = COUNTER_OTHER_PROTO, key;
	struct counter *counter;
	int first = 1;

	switch (link_header ? parse_ethernet(&at, end, &tags) : bare_protocol(at, end)) {
	case ETH_P_IP:
		family = COUNTER_IPV4;
		proto = proto_slot(parse_ipv4(&at, end, &first), IPPROTO_ICMP);
		break;
	case ETH_P_IPV6:
		family = COUNTER_IPV6;
		proto = proto_slot(parse_ipv6(&at, end, &first), IPPROTO_ICMPV6);
		break;
	}
	key = (family * COUNTER_PROTOS + proto) * 2 + !!tags;
	counter = bpf_map_lookup_elem(&counters, &key);
	if (counter) {
		/* Per CPU and never preempted by another packet, so no atomics are needed. */
		counter->packets++;
		counter->bytes += bytes;
	}
	if (sample_every)
		sample(ctx, family, proto, tags);
	return chain_next(ctx);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
