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

char LICENSE[] SEC("license") = "Dual BSD/GPL";
