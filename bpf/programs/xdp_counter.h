/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What xdp_counter shares with user space; Python's mirror is mapek.sensors.xdp_counter. */
#ifndef MAPEK_XDP_COUNTER_H
#define MAPEK_XDP_COUNTER_H

#include <linux/types.h>

enum counter_family { COUNTER_IPV4, COUNTER_IPV6, COUNTER_OTHER_FAMILY, COUNTER_FAMILIES };
enum counter_proto { COUNTER_TCP, COUNTER_UDP, COUNTER_ICMP, COUNTER_OTHER_PROTO, COUNTER_PROTOS };

/* Key of `counters`: (family * COUNTER_PROTOS + proto) * 2 + vlan. */
#define COUNTER_SLOTS (COUNTER_FAMILIES * COUNTER_PROTOS * 2)

struct counter {
	__u64 packets;
	__u64 bytes;
};
_Static_assert(sizeof(struct counter) == 16, "shared with user space");

/* One sampled packet. `time_ns` is CLOCK_MONOTONIC; `vlan` the number of tags. */
struct counter_sample {
	__u64 time_ns;
	__u32 ifindex;
	__u32 bytes;
	__u8 family;
	__u8 proto;
	__u8 vlan;
	__u8 pad;
	__u32 reserved;
};
_Static_assert(sizeof(struct counter_sample) == 24, "shared with user space");
_Static_assert(__builtin_offsetof(struct counter_sample, family) == 16, "shared with user space");

#endif
