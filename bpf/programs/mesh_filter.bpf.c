// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Attributes frames to identities by their innermost source address, counts them, and drops or limits those whose verdict
 * says so. It fails open: what cannot be attributed or counted passes. All interfaces share one set of maps, so that one
 * write to `policies` holds for all of them at once.
 */
#include <linux/pkt_cls.h>
#include "chain.h"
#include "mesh_source.h"
#include "mesh_filter.h"

/* What decides, Ethernet to ICMPv6, must lie in the linear part of an skb: 22 + 18 + 22 + 40 + 8 bytes. */
#define HEADERS 128

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct prefix4);
	__type(value, __u32);
} prefixes4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct prefix6);
	__type(value, __u32);
} prefixes6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct mac);
	__type(value, __u32);
} macs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct policy);
} policies SEC(".maps");

/* User space makes the rows, so that no packet waits for memory. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct count);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TALLIES);
	__type(key, __u32);
	__type(value, __u64);
} tallies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

const volatile __u16 probe_port = 862;
const volatile __u32 mac_first = 0;

static __always_inline void tally(__u32 key)
{
	__u64 *value = bpf_map_lookup_elem(&tallies, &key);

	if (value)
		++*value;
}

static __always_inline __u32 by_prefix(const struct mesh_source *found)
{
	__u32 *identity = 0;

	if (found->proto == ETH_P_IP) {
		struct prefix4 key = { .length = 32 };

		__builtin_memcpy(key.address, found->source, 4);
		identity = bpf_map_lookup_elem(&prefixes4, &key);
	} else if (found->proto == ETH_P_IPV6) {
		struct prefix6 key = { .length = 128 };

		__builtin_memcpy(key.address, found->source, 16);
		identity = bpf_map_lookup_elem(&prefixes6, &key);
	}
	return identity ? *identity : IDENTITY_UNKNOWN;
}

static __always_inline __u32 by_mac(const struct mesh_source *found)
{
	struct mac key = {};
	__u32 *identity;

	if (!link_header)
		return IDENTITY_UNKNOWN;
	__builtin_memcpy(key.address, found->mac, 6);
	identity = bpf_map_lookup_elem(&macs, &key);
	return identity ? *identity : IDENTITY_UNKNOWN;
}

static __always_inline __u32 identify(const struct mesh_source *found)
{
	__u32 identity = mac_first ? by_mac(found) : by_prefix(found);

	if (identity != IDENTITY_UNKNOWN)
		return identity;
	return mac_first ? by_prefix(found) : by_mac(found);
}

/* Locked, for the limit is one for all CPUs and interfaces. */
static __always_inline int within_limit(struct policy *policy)
{
	__u64 now = bpf_ktime_get_ns(), grown;
	int within = 0;

	bpf_spin_lock(&policy->lock);
	/* Another CPU may have stamped it after we looked at the clock. */
	if (now > policy->stamp_ns) {
		grown = policy->credit_ns + (now - policy->stamp_ns);
		policy->credit_ns = grown < policy->burst_ns ? grown : policy->burst_ns;
		policy->stamp_ns = now;
	}
	if (policy->credit_ns >= policy->interval_ns) {
		policy->credit_ns -= policy->interval_ns;
		within = 1;
	}
	bpf_spin_unlock(&policy->lock);
	return within;
}

/* True if the frame is to be dropped. */
static __always_inline int filter(void *at, void *end, __u64 bytes)
{
	struct mesh_source found = {};
	enum form form = mesh_source(at, end, probe_port, &found);
	__u32 identity = IDENTITY_UNKNOWN, key = 0;
	struct settings *set;
	struct policy *policy;
	struct count *count;

	if (form == FORM_CONTROL) {
		tally(TALLY_CONTROL);
		return 0;
	}
	if (form == FORM_UNDECODED)
		tally(TALLY_UNDECODED);
	else
		identity = identify(&found);
	count = bpf_map_lookup_elem(&counts, &identity);
	if (!count) {
		tally(TALLY_MAP_FULL);
		return 0;
	}
	/* Per CPU and never preempted by another packet, so no atomics are needed. */
	count->packets++;
	count->bytes += bytes;
	policy = bpf_map_lookup_elem(&policies, &identity);
	if (!policy || policy->verdict == VERDICT_ALLOW || form == FORM_UNDECODED)
		return 0;
	if (form == FORM_VITAL) {
		if (policy->verdict == VERDICT_DENY)
			tally(TALLY_SPARED);
		return 0;
	}
	if (policy->verdict == VERDICT_LIMIT && within_limit(policy))
		return 0;
	set = bpf_map_lookup_elem(&settings, &key);
	if (set && set->observe) {
		count->would_drop++;
		return 0;
	}
	count->drops++;
	return 1;
}

SEC("xdp")
int mesh_filter(struct xdp_md *ctx)
{
	void *at = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	return filter(at, end, end - at) ? XDP_DROP : chain_next(ctx);
}

SEC("tc")
int mesh_filter_tc(struct __sk_buff *skb)
{
	__u32 wanted = skb->len < HEADERS ? skb->len : HEADERS;

	/* Some drivers leave only the Ethernet header in the linear part. If it fails, what is there decides. */
	if (skb->data_end - skb->data < wanted)
		bpf_skb_pull_data(skb, wanted);
	return filter((void *)(long)skb->data, (void *)(long)skb->data_end, skb->len) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
