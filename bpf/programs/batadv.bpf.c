// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Counts what is missing in the numbers of batman-adv's control frames, for each neighbour on a link: ELP of B.A.T.M.A.N. V,
 * and of IV the OGMs that a neighbour sends of itself. Every frame is passed on. A neighbour's frames may be handled by
 * several CPUs, and numbers in a row cannot be followed per CPU: hence a lock for each neighbour, a few times a second.
 */
#include <linux/pkt_cls.h>
#include "chain.h"
#include "packet.h"
#include "batadv.h"

/*
 * batman-adv aggregates up to 512 bytes, and a longer frame holds a single OGM. The verifier walks each turn of the loop:
 * one too many costs time at every load.
 */
#define AGGREGATED(type) ((type) == BATADV_IV_OGM ? 21 : 25)
#define FARTHEST 2047
#define CONTROL_LINEAR 2048

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct control_mac);
	__type(value, struct neighbour);
} neighbours SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 2048);
	__type(key, struct through);
	__type(value, struct originator);
} originators SEC(".maps");

/* Addresses of this node's own mesh interfaces; user space keeps it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 64);
	__type(key, struct control_mac);
	__type(value, __u32);
} own SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, CONTROL_TALLIES);
	__type(key, __u32);
	__type(value, __u64);
} tallies SEC(".maps");

/* What a new entry begins as. Here, and not on the stack, it is no state that the verifier has to follow. */
static const __u8 nothing[sizeof(struct neighbour)] = {};
_Static_assert(sizeof(nothing) >= sizeof(struct originator), "begins both");

static __always_inline void tally(__u32 key)
{
	__u64 *value = bpf_map_lookup_elem(&tallies, &key);

	if (value)
		++*value;
}

static __always_inline struct control_mac mac_at(const __u8 *address)
{
	struct control_mac mac = {};

	__builtin_memcpy(mac.address, address, 6);
	return mac;
}

static __always_inline int is_own(const struct control_mac *mac)
{
	return bpf_map_lookup_elem(&own, mac) != 0;
}

/* Follow `seqno` of a neighbour at `now`; called with its lock held. */
static __always_inline void follow(struct neighbour *one, __u32 seqno, __u32 type, __u64 now)
{
	__s32 ahead = seqno - one->newest;
	__u64 sample;

	if (!one->seen_ns || one->packet_type != type) {
		one->restarts += one->seen_ns != 0;
		goto begin;
	}
	if (ahead <= -SEQNO_BEHIND || ahead >= SEQNO_AHEAD) {
		one->restarts++;
		goto begin;
	}
	if (ahead > 0) {
		one->received++;
		one->lost += ahead - 1;
		one->window = ahead < 64 ? one->window << ahead | 1 : 1;
		/* Another CPU may have looked at the clock before us and got the lock after. */
		if (now > one->newest_ns) {
			sample = (now - one->newest_ns) / (__u32)ahead;
			one->spacing_ns = one->spacing_ns ? one->spacing_ns - one->spacing_ns / 8 + sample / 8 : sample;
			one->newest_ns = now;
		}
		one->newest = seqno;
	} else if (one->window >> -ahead & 1) {
		one->repeated++;
	} else {
		one->window |= 1ULL << -ahead;
		one->received++;
		one->late++;
	}
	if (now > one->seen_ns)
		one->seen_ns = now;
	return;
begin:
	one->received++;
	one->newest = seqno;
	/* What is older was never counted lost, so it cannot be late. */
	one->window = ~0ULL;
	one->packet_type = type;
	one->seen_ns = one->newest_ns = now;
	one->spacing_ns = 0;
	one->interval_ms = 0;
}

static __always_inline void heard(const struct control_mac *source, __u32 seqno, __u32 type, __u32 interval_ms,
				  __u64 now)
{
	struct neighbour *one = bpf_map_lookup_elem(&neighbours, source);

	if (!one) {
		/* It fails when another CPU was first, too. */
		bpf_map_update_elem(&neighbours, source, nothing, BPF_NOEXIST);
		one = bpf_map_lookup_elem(&neighbours, source);
		if (!one) {
			tally(CONTROL_NEIGHBOURS_FULL);
			return;
		}
	}
	bpf_spin_lock(&one->lock);
	follow(one, seqno, type, now);
	one->interval_ms = interval_ms;
	bpf_spin_unlock(&one->lock);
}

static __always_inline void passed_on(const struct control_mac *source, const struct control_mac *orig, __u32 seqno,
				      __u32 type, __u64 now)
{
	struct through key;
	struct originator *one;

	__builtin_memcpy(key.originator, orig->address, 6);
	__builtin_memcpy(key.neighbour, source->address, 6);
	one = bpf_map_lookup_elem(&originators, &key);
	if (!one) {
		bpf_map_update_elem(&originators, &key, nothing, BPF_NOEXIST);
		one = bpf_map_lookup_elem(&originators, &key);
		if (!one) {
			tally(CONTROL_ORIGINATORS_FULL);
			return;
		}
	}
	__sync_fetch_and_add(&one->received, 1);
	/* The last writer wins: these are for people, and no gap is counted in them. */
	one->seen_ns = now;
	one->newest = seqno;
	one->packet_type = type;
}

/* Every OGM that is there in whole with its TVLVs. `type` is a constant, so that each kind has its own loop. */
static __always_inline void walk(void *data, void *end, const struct control_mac *source, const __u32 type,
				 __u64 now)
{
	const __u64 size = type == BATADV_IV_OGM ? sizeof(struct ogm) : sizeof(struct ogm2);
	__u64 at = sizeof(struct ethhdr);

	for (int i = 0; i < AGGREGATED(type); i++) {
		struct control_mac orig;
		__u8 *head;
		__u32 seqno;
		__u64 tvlv;

		if (at > FARTHEST)
			break;
		/* Or the verifier loses sight of the bound. */
		asm volatile("%0 &= 0x7ff" : "+r"(at));
		head = data + at;
		if ((void *)(head + size) > end) {
			if (!i)
				tally(CONTROL_MALFORMED);
			break;
		}
		/* Padding of a short frame. */
		if (head[0] != type || head[1] != BATADV_VERSION)
			break;
		seqno = bpf_ntohl(((struct ogm *)head)->seqno);
		tvlv = bpf_ntohs(type == BATADV_IV_OGM ? ((struct ogm *)head)->tvlv_len :
							  ((struct ogm2 *)head)->tvlv_len);
		at += size + tvlv;
		if (tvlv & 1 || at > (__u64)(end - data)) {
			tally(CONTROL_MALFORMED);
			break;
		}
		orig = mac_at(head + __builtin_offsetof(struct ogm, orig));
		if (*(__u64 *)&orig != *(__u64 *)source) {
			if (is_own(&orig))
				tally(CONTROL_OWN);
			else
				passed_on(source, &orig, seqno, type, now);
		} else if (type == BATADV_IV_OGM) {
			heard(source, seqno, type, 0, now);
		}
	}
}

static __always_inline void look(void *data, void *end)
{
	struct ethhdr *eth = data;
	struct control_mac source;
	__u8 *head;
	void *at = data;
	struct elp *elp;
	__u32 tags;
	__u64 now;

	if (parse_ethernet(&at, end, &tags) != ETH_P_BATMAN)
		return;
	if (tags) {
		tally(CONTROL_TAGGED);
		return;
	}
	head = at;
	if ((void *)(head + 2) > end) {
		tally(CONTROL_MALFORMED);
		return;
	}
	if (head[0] != BATADV_IV_OGM && head[0] != BATADV_ELP && head[0] != BATADV_OGM2)
		return;
	if (head[1] != BATADV_VERSION) {
		tally(CONTROL_FOREIGN_VERSION);
		return;
	}
	source = mac_at(eth->h_source);
	if (is_own(&source)) {
		tally(CONTROL_OWN);
		return;
	}
	tally(CONTROL_FRAMES);
	now = bpf_ktime_get_ns();
	switch (head[0]) {
	case BATADV_ELP:
		elp = at;
		if ((void *)(elp + 1) > end)
			tally(CONTROL_MALFORMED);
		else
			heard(&source, bpf_ntohl(elp->seqno), BATADV_ELP, bpf_ntohl(elp->elp_interval), now);
		break;
	case BATADV_IV_OGM:
		walk(data, end, &source, BATADV_IV_OGM, now);
		break;
	case BATADV_OGM2:
		walk(data, end, &source, BATADV_OGM2, now);
		break;
	}
}

SEC("xdp")
int batadv(struct xdp_md *ctx)
{
	look((void *)(long)ctx->data, (void *)(long)ctx->data_end);
	return chain_next(ctx);
}

SEC("tc")
int batadv_tc(struct __sk_buff *skb)
{
	__u32 wanted = skb->len < CONTROL_LINEAR ? skb->len : CONTROL_LINEAR;

	if (skb->protocol != bpf_htons(ETH_P_BATMAN))
		return TC_ACT_UNSPEC;
	if (skb->vlan_present) {
		tally(CONTROL_TAGGED);
		return TC_ACT_UNSPEC;
	}
	/* Some drivers leave only the Ethernet header in the linear part. If it fails, what is there decides. */
	if (skb->data_end - skb->data < wanted)
		bpf_skb_pull_data(skb, wanted);
	look((void *)(long)skb->data, (void *)(long)skb->data_end);
	return TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
