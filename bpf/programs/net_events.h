/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What net_events and net_events_tp count into and sample, shared with user space; Python's mirror is
 * mapek.sensors.net_events_layout. The first reads kernel structs (CO-RE), the second what tracepoints tell by
 * themselves.
 */
#ifndef MAPEK_NET_EVENTS_H
#define MAPEK_NET_EVENTS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

enum net_event {
	NET_RETRANSMIT,
	NET_RETRANSMIT_SYNACK,
	NET_RESET_SENT,
	NET_RESET_RECEIVED,
	NET_TCP_EVENTS,
	NET_DROP = NET_TCP_EVENTS,
	NET_EVENTS,
};

enum net_family { NET_IPV4, NET_IPV6, NET_OTHER_FAMILY, NET_FAMILIES };

/* include/linux/socket.h, the kernel's own; uapi has no such numbers. */
#define NET_AF_INET 2
#define NET_AF_INET6 10

/* The last one is for reasons beyond, and for those of subsystems, which number their own. */
#define NET_REASONS 256
#define NET_OTHER_REASON (NET_REASONS - 1)
/* Kernels before 5.17 give none, later ones say this where nobody wrote one down. */
#define NET_NO_REASON 0

enum net_loss {
	/* samples that found the ring full */
	NET_RING_DROPS,
	/* samples above the rate */
	NET_UNSAMPLED,
	/* packets of interfaces that found no place in `traffic` */
	NET_MAP_FULL,
	/* drops of packets that belong to no namespace that could be found out */
	NET_UNATTRIBUTED,
	NET_LOSSES,
};

/* One per CPU. An event may interrupt another, so they are added to atomically. */
struct net_counts {
	__u64 tcp[NET_TCP_EVENTS][NET_FAMILIES];
	__u64 drops[NET_REASONS];
	__u64 losses[NET_LOSSES];
};
_Static_assert(sizeof(struct net_counts) == 2176, "shared with user space");

/* Value of `traffic`, by ifindex; 0 is for those that found no place. */
struct net_traffic {
	__u64 received_packets;
	__u64 received_bytes;
	__u64 sent_packets;
	__u64 sent_bytes;
};
_Static_assert(sizeof(struct net_traffic) == 32, "shared with user space");

/* `family` as enum net_family, ports in host order, `state` as in include/net/tcp_states.h; 0: unknown. */
struct net_sample {
	__u64 time_ns;
	__u32 event;
	__u32 reason;
	__u32 ifindex;
	__u16 sport;
	__u16 dport;
	__u8 family;
	__u8 protocol;
	__u8 state;
	__u8 pad;
	__u16 ethertype;
	__u16 reserved;
	__u8 saddr[16];
	__u8 daddr[16];
};
_Static_assert(sizeof(struct net_sample) == 64, "shared with user space");
_Static_assert(__builtin_offsetof(struct net_sample, saddr) == 32, "shared with user space");

/* By CPU, and mapped into user space. max_entries: the possible CPUs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct net_counts);
} counts SEC(".maps");

/* When the bucket of an event would be full again, in ns. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NET_EVENTS);
	__type(key, __u32);
	__type(value, __u64);
} buckets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} samples SEC(".maps");

/* ns between two samples of an event; 0: none, and no code for them. */
const volatile __u64 sample_interval = 0;
/* How many ns' worth of samples may come at once. */
const volatile __u64 sample_burst = 1000000000;

static __always_inline struct net_counts *counts_here(void)
{
	__u32 cpu = bpf_get_smp_processor_id();

	return bpf_map_lookup_elem(&counts, &cpu);
}

static __always_inline void count_tcp(struct net_counts *here, enum net_event event, __u32 family, __u64 n)
{
	if (family < NET_FAMILIES)
		__sync_fetch_and_add(&here->tcp[event][family], n);
}

static __always_inline void count_drop(struct net_counts *here, __u32 reason)
{
	__u32 index = reason < NET_OTHER_REASON ? reason : NET_OTHER_REASON;

	asm volatile("" : "+r"(index));
	if (index < NET_REASONS)
		__sync_fetch_and_add(&here->drops[index], 1);
}

static __always_inline __u32 family_of(__u32 af)
{
	return af == NET_AF_INET ? NET_IPV4 : af == NET_AF_INET6 ? NET_IPV6 : NET_OTHER_FAMILY;
}

/*
 * A record to fill in and submit, or NULL. Two CPUs may take the same token at once: the rate is kept but for that,
 * without an atomic that kernels before 5.12 lack.
 */
static __always_inline struct net_sample *sample_begin(struct net_counts *here, __u32 event)
{
	struct net_sample *record;
	__u64 now, *bucket, full;

	if (!sample_interval)
		return NULL;
	bucket = bpf_map_lookup_elem(&buckets, &event);
	if (!bucket)
		return NULL;
	now = bpf_ktime_get_ns();
	full = *bucket > now ? *bucket : now;
	if (full - now + sample_interval > sample_burst) {
		__sync_fetch_and_add(&here->losses[NET_UNSAMPLED], 1);
		return NULL;
	}
	*bucket = full + sample_interval;
	record = bpf_ringbuf_reserve(&samples, sizeof(*record), 0);
	if (!record) {
		__sync_fetch_and_add(&here->losses[NET_RING_DROPS], 1);
		return NULL;
	}
	__builtin_memset(record, 0, sizeof(*record));
	record->time_ns = now;
	record->event = event;
	return record;
}

#endif
