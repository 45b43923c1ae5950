/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What batadv shares with user space (Python's mirror is mapek.sensors.batadv_table). */
#ifndef MAPEK_BATADV_H
#define MAPEK_BATADV_H

#include <linux/bpf.h>
#include "batadv_wire.h"

/* How far behind the newest a number may be and still be an old one, and how far before it and still the next one. */
#define SEQNO_BEHIND 64
#define SEQNO_AHEAD 65536

/* Key of `neighbours` and of `own`. */
struct control_mac {
	__u8 address[6];
	__u8 pad[2];
} __attribute__((aligned(8)));
_Static_assert(sizeof(struct control_mac) == 8, "shared with user space");

/*
 * Value of `neighbours`. Its frames are one run of numbers: sent = received + lost - late. Bit i of `window` is set if
 * number `newest - i` came, or came before we listened. Times are CLOCK_MONOTONIC.
 */
struct neighbour {
	struct bpf_spin_lock lock;
	__u32 newest;
	__u64 window;
	__u64 received; /* different numbers, late ones too */
	__u64 lost; /* numbers skipped, when they were */
	__u64 late; /* numbers that came after they were counted lost */
	__u64 repeated; /* numbers that came before */
	__u64 restarts;
	__u64 seen_ns;
	__u64 newest_ns;
	__u64 spacing_ns; /* between two numbers, smoothed; 0: not known yet */
	__u32 interval_ms; /* as its ELP says; 0: it says none */
	__u32 packet_type;
};
_Static_assert(sizeof(struct neighbour) == 88, "shared with user space");
_Static_assert(__builtin_offsetof(struct neighbour, seen_ns) == 56, "shared with user space");

/* Key and value of `originators`: one seen through a neighbour. Gaps here are selective forwarding, not loss. */
struct through {
	__u8 originator[6];
	__u8 neighbour[6];
};
_Static_assert(sizeof(struct through) == 12, "shared with user space");

struct originator {
	__u64 received;
	__u64 seen_ns;
	__u32 newest;
	__u32 packet_type;
};
_Static_assert(sizeof(struct originator) == 24, "shared with user space");

/* Keys of `tallies`. */
enum control_tally {
	CONTROL_FRAMES, /* control frames walked */
	CONTROL_OWN, /* frames that we sent ourselves, and our own OGMs sent on by others */
	CONTROL_TAGGED, /* batman-adv in a VLAN: another mesh's */
	CONTROL_MALFORMED, /* cut short, or a length inside that is odd or past the end */
	CONTROL_FOREIGN_VERSION,
	CONTROL_NEIGHBOURS_FULL, /* frames of a neighbour that has no room in the table */
	CONTROL_ORIGINATORS_FULL,
	CONTROL_TALLIES,
};

#endif
