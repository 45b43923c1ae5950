/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What syscall_latency shares with user space; Python's mirror is sensors/syscall_latency_kernel.py. */
#ifndef MAPEK_SYSCALL_LATENCY_H
#define MAPEK_SYSCALL_LATENCY_H

#include <linux/types.h>

/* Numbers above are of another table (x32 has bit 30 set) or newer than this program; nobody can ask for them. */
#define LATENCY_NUMBERS 512
#define LATENCY_SYSCALLS 64
#define LATENCY_SLOTS 16384
#define LATENCY_PROCESSES 64

/* Bucket 0 is below 128 ns; bucket k is 2^(k+6) to 2^(k+7) - 1 ns; the last one is all from 2^35 ns (34 s). */
#define LATENCY_BUCKETS 30

enum latency_filter {
	LATENCY_ALL,
	LATENCY_PROCESS,
	LATENCY_PROCESS_SET,
	LATENCY_CGROUP,
};

enum latency_loss {
	LATENCY_COLLISIONS, /* calls given up because other threads needed their slot */
	LATENCY_MISSED,     /* calls whose return was never seen, or whose start found no room */
	LATENCY_LOSSES,
};

/* Per system call; the count is the sum of the buckets. */
struct latency {
	__u64 sum_ns;
	__u64 errors;
	__u64 buckets[LATENCY_BUCKETS];
};

/* A call under way. */
struct latency_started {
	__u64 start_ns; /* 0: none */
	__u64 thread;   /* what tells its thread from the others; not used in the thread's own storage */
	__u64 number;
};

_Static_assert(sizeof(struct latency) == 256, "mirrored in Python");
_Static_assert(sizeof(struct latency_started) == 24, "");

#endif
