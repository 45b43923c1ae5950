// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Owns an interface's XDP hook and starts the chain of programs; alone, it passes everything. */
#include "chain.h"

SEC("xdp")
int dispatcher(struct xdp_md *ctx)
{
	return chain_from(ctx, 0);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
