// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Passes everything: the baseline of every cost, and the native program that a veth end needs to take XDP_TX frames. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int empty(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
