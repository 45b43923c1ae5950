/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * One XDP hook, many programs: every program of ours ends by tail-calling the next occupied slot of a shared program
 * array, in a fixed order. A program that is loaded alone has an array of its own, which is empty, and so just passes.
 * The order is part of the contract: what may drop comes first, what counts sees only what stays, what answers by
 * itself (XDP_TX) comes last. Python's mirror of this enum is mapek.bpf.dispatcher.SLOTS.
 */
#ifndef MAPEK_CHAIN_H
#define MAPEK_CHAIN_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

enum chain_slot {
	CHAIN_MESH_FILTER,
	CHAIN_XDP_COUNTER,
	CHAIN_BATADV,
	CHAIN_USER_A,
	CHAIN_USER_B,
	CHAIN_USER_C,
	CHAIN_LINK_WATCH,
	CHAIN_SLOTS,
};

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, CHAIN_SLOTS);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} chain SEC(".maps");

/* Set by the loader before the program is verified, so that the slots up to our own cost no instruction. */
const volatile __u32 slot = CHAIN_SLOTS;

/* Every index is a constant, so that the JIT turns an occupied slot into a direct jump and an empty one into a nop. */
#define CHAIN_TRY(ctx, from, index)                             \
	do {                                                    \
		if ((index) >= (from))                          \
			bpf_tail_call_static(ctx, &chain, index); \
	} while (0)

static __always_inline int chain_from(struct xdp_md *ctx, __u32 from)
{
	CHAIN_TRY(ctx, from, CHAIN_MESH_FILTER);
	CHAIN_TRY(ctx, from, CHAIN_XDP_COUNTER);
	CHAIN_TRY(ctx, from, CHAIN_BATADV);
	CHAIN_TRY(ctx, from, CHAIN_USER_A);
	CHAIN_TRY(ctx, from, CHAIN_USER_B);
	CHAIN_TRY(ctx, from, CHAIN_USER_C);
	CHAIN_TRY(ctx, from, CHAIN_LINK_WATCH);
	return XDP_PASS;
}

_Static_assert(CHAIN_LINK_WATCH == CHAIN_SLOTS - 1, "link_watch answers by itself and is last");

/* Hand the frame on: run the next occupied slot after our own, or pass. Does not return if there is one. */
static __always_inline int chain_next(struct xdp_md *ctx)
{
	return chain_from(ctx, slot + 1);
}

#endif
