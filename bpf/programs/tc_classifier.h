/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What tc_classifier shares with user space; Python's mirror is mapek.sensors.tc_classifier_table. */
#ifndef MAPEK_TC_CLASSIFIER_H
#define MAPEK_TC_CLASSIFIER_H

#include <linux/types.h>

#define CLASSES 64

/*
 * Twice as many places to count in as there are classes, so that a class that is new always finds one that the table
 * in use does not count in; the last is for what no class matched.
 */
#define CLASS_OTHER (2 * CLASSES)
#define CLASS_SLOTS (CLASS_OTHER + 1)

#define CLASS_NOT_IP 256
#define CLASS_NO_DSCP 64
#define CLASS_RANGES 256

/* 64 - 6 bits of this sequence, multiplied by a power of two, tell which power it was. */
#define CLASS_DE_BRUIJN 0x03f79d71b4cb0a89ULL

enum class_direction { CLASS_INGRESS, CLASS_EGRESS, CLASS_DIRECTIONS };

/* Dropped packets are counted in `packets` too. */
struct class_counter {
	__u64 packets;
	__u64 bytes;
	__u64 drops;
};
_Static_assert(sizeof(struct class_counter) == 24, "shared with user space");

/* One of these per CPU. */
struct class_counters {
	struct class_counter at[CLASS_DIRECTIONS][CLASS_SLOTS];
};
_Static_assert(sizeof(struct class_counters) == 6192, "shared with user space");

/* Which classes a port satisfies; a class without such a condition is in every set. */
struct class_ports {
	__u64 source;
	__u64 destination;
	__u64 either;
};
_Static_assert(sizeof(struct class_ports) == 24, "shared with user space");

struct class_mark {
	__u32 value;
	__u32 mask;
	__u64 classes;
};
_Static_assert(sizeof(struct class_mark) == 16, "shared with user space");

/*
 * A bit per class, the first class lowest: for each value of a field, the classes that it satisfies. Their AND is what
 * matches, and costs the same however many classes there are.
 */
struct class_table {
	__u64 protocol[CLASS_NOT_IP + 1];
	__u64 dscp[CLASS_NO_DSCP + 1];
	/* of packets that carry no ports */
	__u64 portless;
	__u64 any_mark;
	__u64 drop;
	__u64 marks_used;
	struct class_mark marks[CLASSES];
	struct class_ports ports[CLASS_RANGES];
	/* where a class counts, at bit * CLASS_DE_BRUIJN >> 58 */
	__u8 slot[CLASSES];
	/* port number to index in `ports` */
	__u8 range[65536];
};
_Static_assert(sizeof(struct class_table) == 75376, "shared with user space");
_Static_assert(__builtin_offsetof(struct class_table, slot) == 9776, "shared with user space");

#endif
