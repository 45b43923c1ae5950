// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* One mistake a program: what a verifier's log looks like is learnt from these, and each kernel is asked again. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64[4]);
	__uint(max_entries, 4);
} numbers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

SEC("xdp")
int packet_bounds(struct xdp_md *ctx)
{
	unsigned char *data = (void *)(long)ctx->data;

	return data[12] == 8 ? XDP_PASS : XDP_DROP;
}

SEC("xdp")
int null_value(struct xdp_md *ctx)
{
	__u32 key = 1;
	__u64 *found = bpf_map_lookup_elem(&numbers, &key);

	return *found ? XDP_PASS : XDP_DROP;
}

SEC("xdp")
int value_bounds(struct xdp_md *ctx)
{
	__u32 key = 1;
	__u64 *found = bpf_map_lookup_elem(&numbers, &key);

	return found && found[5] ? XDP_PASS : XDP_DROP;
}

SEC("xdp")
int unbounded_index(struct xdp_md *ctx)
{
	__u32 key = 1;
	__u64 *found = bpf_map_lookup_elem(&numbers, &key);

	return found && found[ctx->rx_queue_index] ? XDP_PASS : XDP_DROP;
}

SEC("xdp")
int not_set(struct xdp_md *ctx)
{
	long value;

	asm volatile("%0 = r5" : "=r"(value));
	return value;
}

SEC("xdp")
int no_end(struct xdp_md *ctx)
{
	asm volatile("r1 = 0; 1: r1 ^= 1; if r1 < 4 goto 1b" ::: "r1");
	return XDP_PASS;
}

SEC("xdp")
int kept(struct xdp_md *ctx)
{
	__u64 *room = bpf_ringbuf_reserve(&ring, 8, 0);

	if (room)
		*room = 1;
	return XDP_PASS;
}

SEC("xdp")
int other_type(struct xdp_md *ctx)
{
	return bpf_skb_store_bytes((void *)ctx, 0, &(__u32){ 1 }, 4, 0) ? XDP_PASS : XDP_DROP;
}

SEC("xdp")
int no_pointer(struct xdp_md *ctx)
{
	__u64 *where = (void *)bpf_ktime_get_ns();

	return *where ? XDP_PASS : XDP_DROP;
}

SEC("xdp")
int context_field(struct xdp_md *ctx)
{
	return *(__u32 *)((void *)ctx + 512) ? XDP_PASS : XDP_DROP;
}

SEC("xdp")
int deep_stack(struct xdp_md *ctx)
{
	asm volatile("r1 = 1; *(u64 *)(r10 - 520) = r1" ::: "r1", "memory");
	return XDP_PASS;
}

SEC("xdp")
int wrong_argument(struct xdp_md *ctx)
{
	return bpf_map_lookup_elem((void *)ctx, &(__u32){ 1 }) ? XDP_PASS : XDP_DROP;
}

SEC("xdp")
int packet_offset(struct xdp_md *ctx)
{
	unsigned char *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	long long offset = bpf_get_prandom_u32() - 5000000000LL;
	unsigned char *at = data + offset;

	return at + 1 <= end && *at ? XDP_PASS : XDP_DROP;
}

SEC("xdp")
int moved_pointer(struct xdp_md *ctx)
{
	asm volatile("r1 = *(u32 *)(%0 + 0); r1 *= 2; r1 = *(u8 *)(r1 + 0)" ::"r"(ctx) : "r1");
	return XDP_PASS;
}

SEC("xdp")
int untested_value(struct xdp_md *ctx)
{
	__u32 key = 1;
	__u64 *found = bpf_map_lookup_elem(&numbers, &key);

	asm volatile("%0 += 8" : "+r"(found));
	return found && *found ? XDP_PASS : XDP_DROP;
}

SEC("xdp")
int moved_context(struct xdp_md *ctx)
{
	__u64 index = bpf_get_prandom_u32() & 4;
	int value;

	asm volatile("r1 = %1; r1 += %2; %0 = *(u32 *)(r1 + 0)" : "=r"(value) : "r"(ctx), "r"(index) : "r1");
	return value ? XDP_PASS : XDP_DROP;
}

static __attribute__((noinline)) int deep(int seed)
{
	volatile char room[400] = { seed };

	return room[seed & 255];
}

SEC("xdp")
int deep_calls(struct xdp_md *ctx)
{
	volatile char room[400] = { 1 };

	return deep(room[ctx->rx_queue_index & 255]) ? XDP_PASS : XDP_DROP;
}

SEC("cgroup_skb/egress")
int wrong_return(struct __sk_buff *skb)
{
	return 7;
}

SEC("xdp")
int too_large(struct xdp_md *ctx)
{
	__u64 sum = 0;

	for (int i = 0; i < 200000; i++)
		sum += bpf_get_prandom_u32() & 1 ? sum >> 3 : i;
	return sum & 1 ? XDP_PASS : XDP_DROP;
}

struct locked {
	struct bpf_spin_lock lock;
	__u32 value;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct locked);
	__uint(max_entries, 1);
} locks SEC(".maps");

SEC("xdp")
int kept_lock(struct xdp_md *ctx)
{
	__u32 key = 0;
	struct locked *found = bpf_map_lookup_elem(&locks, &key);

	if (found)
		bpf_spin_lock(&found->lock);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
