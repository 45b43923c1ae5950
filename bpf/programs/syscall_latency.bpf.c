// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * How long system calls take: log2 histograms, sums and errors per call, of chosen processes. Four pairs of programs that
 * give the same numbers; user space loads one pair. They differ in how they get at the registers, and in where they keep
 * the start: task_storage in the task itself; the others in an array of slots, which is cheaper than any hash and needs
 * no BTF. A thread has two slots, found by its registers' address, which lie at the end of its kernel stack and so are
 * its own while it lives. Should both be taken by calls of other threads, one of those is lost and counted.
 *
 * Offsets into pt_regs are uapi (asm/ptrace.h: pt_regs of x86-64, user_pt_regs of arm64), so no CO-RE is needed.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "syscall_latency.h"

#define MAX_ERRNO 4095

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LATENCY_SYSCALLS);
	__type(key, __u32);
	__type(value, struct latency);
} latencies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LATENCY_LOSSES);
	__type(key, __u32);
	__type(value, __u64);
} losses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct latency_started);
} started_tasks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LATENCY_SLOTS);
	__type(key, __u32);
	__type(value, struct latency_started);
} started_slots SEC(".maps");

/* Process ids (tgid) as the initial namespace sees them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, LATENCY_PROCESSES);
	__type(key, __u32);
	__type(value, __u32);
} processes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} cgroups SEC(".maps");

/* 0: not watched, else 1 + index into latencies. */
const volatile __u8 index_of[LATENCY_NUMBERS] = {};
const volatile __u32 filter = LATENCY_PROCESS;
const volatile __u32 only_process = 0;
const volatile __u8 arm64 = 0;

static __always_inline int watched_task(void)
{
	__u32 process;

	if (filter == LATENCY_ALL)
		return 1;
	if (filter == LATENCY_CGROUP)
		return bpf_current_task_under_cgroup(&cgroups, 0) == 1;
	process = bpf_get_current_pid_tgid() >> 32;
	if (filter == LATENCY_PROCESS)
		return process == only_process;
	return bpf_map_lookup_elem(&processes, &process) != NULL;
}

static __always_inline int watched_number(__u64 number)
{
	return number < LATENCY_NUMBERS && index_of[number];
}

static __always_inline void lost(__u32 key)
{
	__u64 *count = bpf_map_lookup_elem(&losses, &key);

	if (count)
		++*count;
}

static __always_inline __u32 bucket_of(__u64 ns)
{
	__u32 log = 0;

	if (ns >= 1ULL << 35)
		return LATENCY_BUCKETS - 1;
	ns >>= 6;
	if (ns >= 1 << 16) {
		ns >>= 16;
		log += 16;
	}
	if (ns >= 1 << 8) {
		ns >>= 8;
		log += 8;
	}
	if (ns >= 1 << 4) {
		ns >>= 4;
		log += 4;
	}
	if (ns >= 1 << 2) {
		ns >>= 2;
		log += 2;
	}
	return log + (ns >= 2);
}

/* Per CPU and with no other program of ours between read and write, so no atomics are needed. */
static __always_inline void finish(struct latency_started *started, __s64 ret)
{
	__u64 took = bpf_ktime_get_ns() - started->start_ns;
	__u64 number = started->number;
	__u32 index;
	struct latency *latency;

	started->start_ns = 0;
	if (number >= LATENCY_NUMBERS)
		return;
	index = index_of[number] - 1;
	latency = bpf_map_lookup_elem(&latencies, &index);
	if (!latency)
		return;
	latency->sum_ns += took;
	if (ret < 0 && ret >= -MAX_ERRNO)
		latency->errors++;
	index = bucket_of(took);
	if (index < LATENCY_BUCKETS)
		latency->buckets[index]++;
}

/*
 * A 32-bit call has numbers of its own. x86-64: by its code segment (a 64-bit program that uses int 0x80 is not found
 * out); arm64: by the mode bit of pstate.
 */
#define X86_NUMBER 120
#define X86_CS 136
#define X86_USER32_CS 0x23
#define X86_ARGUMENT 112
#define X86_RESULT 80
#define ARM64_NUMBER 64
#define ARM64_PSTATE 264
#define ARM64_MODE32 0x10

static __always_inline __u64 read_u64(__u64 address)
{
	__u64 value = ~0ULL;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)address);
	return value;
}

static __always_inline int foreign_mode(__u64 regs)
{
	__u16 segment = 0;

	if (arm64)
		return !!(read_u64(regs + ARM64_PSTATE) & ARM64_MODE32);
	bpf_probe_read_kernel(&segment, sizeof(segment), (void *)(regs + X86_CS));
	return segment == X86_USER32_CS;
}

static __always_inline __u32 slot_by_regs(__u64 regs)
{
	__u32 low;

	/* The verifier lets a pointer that it knows be copied as 32 bits, and only that be shifted. */
	asm volatile("%0 = %1" : "=w"(low) : "w"((__u32)regs));
	/* Kernel stacks are 16 KiB or more: lower bits are the same for all. */
	return (low >> 14) * 0x9e3779b1U >> 18;
}

static __always_inline void start_in_slot(__u32 first, __u64 thread, __u64 number)
{
	__u32 second = first ^ 1;
	struct latency_started *slot = bpf_map_lookup_elem(&started_slots, &first), *other;

	if (!slot)
		return;
	if (slot->start_ns && slot->thread != thread) {
		other = bpf_map_lookup_elem(&started_slots, &second);
		if (!other)
			return;
		if (other->start_ns && other->thread != thread)
			lost(LATENCY_COLLISIONS);
		else
			slot = other;
	}
	if (slot->start_ns && slot->thread == thread)
		lost(LATENCY_MISSED);
	slot->thread = thread;
	slot->number = number;
	slot->start_ns = bpf_ktime_get_ns();
}

static __always_inline struct latency_started *started_in_slot(__u32 first, __u64 thread)
{
	__u32 second = first ^ 1;
	struct latency_started *slot = bpf_map_lookup_elem(&started_slots, &first);

	if (slot && slot->thread == thread && slot->start_ns)
		return slot;
	slot = bpf_map_lookup_elem(&started_slots, &second);
	return slot && slot->thread == thread && slot->start_ns ? slot : NULL;
}

/*
 * Reads registers that the verifier knows, at a constant offset: from C, clang would merge the branches below into one
 * load at an offset that it computes, which the verifier refuses for a context.
 */
#define DIRECT(base, offset)                                                                          \
	({                                                                                            \
		__u64 direct_value;                                                                   \
		asm volatile("%0 = *(u64 *)(%1 + %2)" : "=r"(direct_value) : "r"(base), "i"(offset)); \
		direct_value;                                                                         \
	})
#define DIRECT_U16(base, offset)                                                                      \
	({                                                                                            \
		__u64 direct_value;                                                                   \
		asm volatile("%0 = *(u16 *)(%1 + %2)" : "=r"(direct_value) : "r"(base), "i"(offset)); \
		direct_value;                                                                         \
	})

static __always_inline int direct_foreign_mode(void *regs)
{
	if (arm64)
		return !!(DIRECT(regs, ARM64_PSTATE) & ARM64_MODE32);
	return DIRECT_U16(regs, X86_CS) == X86_USER32_CS;
}

static __always_inline __u64 direct_number(void *regs)
{
	return arm64 ? DIRECT(regs, ARM64_NUMBER) : DIRECT(regs, X86_NUMBER);
}

SEC("tp_btf/sys_enter")
int tp_btf_enter(__u64 *ctx)
{
	__u64 number = ctx[1];
	void *regs = (void *)ctx[0];

	if (!watched_number(number) || !watched_task() || direct_foreign_mode(regs))
		return 0;
	start_in_slot(slot_by_regs(ctx[0]), ctx[0], number);
	return 0;
}

SEC("tp_btf/sys_exit")
int tp_btf_exit(__u64 *ctx)
{
	void *regs = (void *)ctx[0];
	__u64 number = direct_number(regs);
	struct latency_started *slot;

	if (!watched_number(number))
		return 0;
	slot = started_in_slot(slot_by_regs(ctx[0]), ctx[0]);
	if (slot && slot->number == number)
		finish(slot, ctx[1]);
	return 0;
}

SEC("tp_btf/sys_enter")
int task_storage_enter(__u64 *ctx)
{
	__u64 number = ctx[1];
	struct latency_started *started;
	void *regs = (void *)ctx[0];

	if (!watched_number(number) || !watched_task() || direct_foreign_mode(regs))
		return 0;
	started = bpf_task_storage_get(&started_tasks, bpf_get_current_task_btf(), NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!started) {
		lost(LATENCY_MISSED);
		return 0;
	}
	if (started->start_ns)
		lost(LATENCY_MISSED);
	started->number = number;
	started->start_ns = bpf_ktime_get_ns();
	return 0;
}

SEC("tp_btf/sys_exit")
int task_storage_exit(__u64 *ctx)
{
	void *regs = (void *)ctx[0];
	__u64 number = direct_number(regs);
	struct latency_started *started;

	if (!watched_number(number))
		return 0;
	started = bpf_task_storage_get(&started_tasks, bpf_get_current_task_btf(), NULL, 0);
	if (started && started->start_ns && started->number == number)
		finish(started, ctx[1]);
	return 0;
}

SEC("raw_tp/sys_enter")
int raw_tp_enter(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 regs = ctx->args[0], number = ctx->args[1];

	if (watched_number(number) && watched_task() && !foreign_mode(regs))
		start_in_slot(slot_by_regs(regs), regs, number);
	return 0;
}

SEC("raw_tp/sys_exit")
int raw_tp_exit(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 regs = ctx->args[0];
	struct latency_started *slot = started_in_slot(slot_by_regs(regs), regs);

	/* A new thread may have got the stack of one that died inside a call: its first return is of another call. */
	if (slot && slot->number == read_u64(regs + (arm64 ? ARM64_NUMBER : X86_NUMBER)))
		finish(slot, ctx->args[1]);
	return 0;
}

/* On __x64_sys_NAME and __arm64_sys_NAME, whose one argument points to the registers of the caller. */
SEC("kprobe")
int kprobe_enter(void *ctx)
{
	__u64 regs = arm64 ? DIRECT(ctx, 0) : DIRECT(ctx, X86_ARGUMENT), number;
	__u32 tid = bpf_get_current_pid_tgid();

	if (!watched_task())
		return 0;
	number = read_u64(regs + (arm64 ? ARM64_NUMBER : X86_NUMBER));
	if (watched_number(number) && !foreign_mode(regs))
		start_in_slot(tid % LATENCY_SLOTS, tid, number);
	return 0;
}

/* Where a function returns, its arguments are gone: here the thread's id has to find the slot. */
SEC("kretprobe")
int kprobe_exit(void *ctx)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct latency_started *slot = started_in_slot(tid % LATENCY_SLOTS, tid);

	if (slot)
		finish(slot, arm64 ? DIRECT(ctx, 0) : DIRECT(ctx, X86_RESULT));
	return 0;
}

/* Our process id as the tracing programs see it, whatever pid namespace we are in: run by PROG_TEST_RUN. */
SEC("raw_tp")
int own_process(void *ctx)
{
	return bpf_get_current_pid_tgid() >> 32;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
