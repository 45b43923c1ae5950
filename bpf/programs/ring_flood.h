/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef RING_FLOOD_H
#define RING_FLOOD_H

#include <linux/types.h>

/* One record of the flood; `seq` counts those that found no room too, so a gap is a loss. */
struct flood {
	__u64 seq;
	__u64 time_ns;
	__u64 key;
};

_Static_assert(sizeof(struct flood) == 24, "mapek.simulations.bench.ring reads it");

/* What became of them. */
struct flood_count {
	__u64 sent;
	__u64 no_room;
	__u64 discarded;
};

_Static_assert(sizeof(struct flood_count) == 24, "mapek.simulations.bench.ring reads it");

#endif
