// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* A pair that does nothing at the tracepoints of system calls: what watching costs before a program does anything. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("tp_btf/sys_enter")
int empty_enter(__u64 *ctx)
{
	return 0;
}

SEC("tp_btf/sys_exit")
int empty_exit(__u64 *ctx)
{
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
