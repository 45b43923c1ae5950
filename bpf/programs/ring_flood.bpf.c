// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Writes one record to a ring buffer each time it is run: the load of the bench `ring`, and what the tests of readers
 * read. One wake-up serves a whole batch. To be run by
 * PROG_TEST_RUN from one thread at a time.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "ring_flood.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} flood SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct flood_count);
} count SEC(".maps");

/* Wake the reader each time that so much was written; 0: leave it to the reader when to look. */
const volatile __u64 wake_bytes = 0;
/* Every so many records one is discarded, and one is longer by 8 bytes than the others; 0: none. */
const volatile __u32 discard_every = 0;
const volatile __u32 longer_every = 0;

/* Where the ring is written to, and not how full it is: a reader that lags is not woken for each record. */
static __always_inline __u64 wake_flag(__u32 bytes)
{
	if (wake_bytes && bpf_ringbuf_query(&flood, BPF_RB_PROD_POS) % wake_bytes < bytes)
		return BPF_RB_FORCE_WAKEUP;
	return BPF_RB_NO_WAKEUP;
}

static __always_inline void fill(struct flood *record, __u64 seq)
{
	record->seq = seq;
	record->time_ns = bpf_ktime_get_ns();
	record->key = seq & 63;
}

SEC("xdp")
int ring_flood(struct xdp_md *ctx)
{
	struct {
		struct flood record;
		__u64 more;
	} longer = {};
	struct flood *record;
	struct flood_count *sum;
	__u32 zero = 0;
	__u64 seq;

	sum = bpf_map_lookup_elem(&count, &zero);
	if (!sum)
		return XDP_ABORTED;
	seq = sum->sent++;
	if (longer_every && seq % longer_every == 0) {
		fill(&longer.record, seq);
		if (bpf_ringbuf_output(&flood, &longer, sizeof(longer), BPF_RB_NO_WAKEUP))
			sum->no_room++;
		return XDP_PASS;
	}
	record = bpf_ringbuf_reserve(&flood, sizeof(*record), 0);
	if (!record) {
		sum->no_room++;
		return XDP_PASS;
	}
	fill(record, seq);
	if (discard_every && seq % discard_every == 0) {
		sum->discarded++;
		bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
		return XDP_PASS;
	}
	bpf_ringbuf_submit(record, wake_flag(sizeof(*record) + BPF_RINGBUF_HDR_SZ));
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
