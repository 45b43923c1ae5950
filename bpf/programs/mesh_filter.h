/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What mesh_filter shares with user space; Python's mirror is mapek.sensors.mesh_filter_tables. */
#ifndef MAPEK_MESH_FILTER_H
#define MAPEK_MESH_FILTER_H

#include <linux/bpf.h>
#include <linux/types.h>

/* Whose source address no table has. */
#define IDENTITY_UNKNOWN 0

enum verdict { VERDICT_ALLOW, VERDICT_DENY, VERDICT_LIMIT };

struct prefix4 {
	__u32 length;
	__u8 address[4];
};
_Static_assert(sizeof(struct prefix4) == 8, "shared with user space");

struct prefix6 {
	__u32 length;
	__u8 address[16];
};
_Static_assert(sizeof(struct prefix6) == 20, "shared with user space");

struct mac {
	__u8 address[6];
	__u8 pad[2];
};
_Static_assert(sizeof(struct mac) == 8, "shared with user space");

/*
 * Value of `policies`, by identity. One packet takes `interval_ns` of the credit, which grows by one each nanosecond up to
 * `burst_ns`. User space writes a full credit and 0 for the stamp.
 */
struct policy {
	struct bpf_spin_lock lock;
	__u32 verdict;
	__u64 interval_ns;
	__u64 burst_ns;
	__u64 credit_ns;
	__u64 stamp_ns;
};
_Static_assert(sizeof(struct policy) == 40, "shared with user space");

/* Value of `counts`, by identity. `packets` and `bytes` are all that came, dropped or not. */
struct count {
	__u64 packets;
	__u64 bytes;
	__u64 drops;
	__u64 would_drop;
};
_Static_assert(sizeof(struct count) == 32, "shared with user space");

/* Keys of `tallies`: frames that are nobody's, and what was not dropped although a verdict said so. */
enum tally {
	TALLY_CONTROL, /* batman-adv's own frames: passed, no identity's */
	TALLY_UNDECODED, /* fragments and unknown forms of batman-adv, cut frames: passed, counted as unknown */
	TALLY_SPARED, /* ARP, neighbour discovery, probes, link control: passed in spite of the verdict */
	TALLY_MAP_FULL, /* the identity has no row in `counts`: passed */
	TALLIES,
};

/* The one value of `settings`; may change at any time. */
struct settings {
	__u32 observe;
};
_Static_assert(sizeof(struct settings) == 4, "shared with user space");

#endif
