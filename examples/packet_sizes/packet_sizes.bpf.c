// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* How long are the frames that arrive? Counts packets and bytes by size, per CPU, and passes every frame on. */
#include "chain.h"

#define BUCKETS 7	/* up to 64, 128, ... 2048 bytes, and all that is longer */

struct count {
	__u64 packets;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, BUCKETS);
	__type(key, __u32);
	__type(value, struct count);
} sizes SEC(".maps");

SEC("xdp")
int packet_sizes(struct xdp_md *ctx)
{
	__u64 bytes = ctx->data_end - ctx->data;
	__u32 bucket = 0;

#pragma unroll
	for (int k = 0; k < BUCKETS - 1; k++)
		bucket += bytes > (64ULL << k);

	struct count *count = bpf_map_lookup_elem(&sizes, &bucket);

	if (count) {
		/* one map for each CPU, and no packet interrupts another there: no atomics are needed */
		count->packets++;
		count->bytes += bytes;
	}
	return chain_next(ctx);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
