/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What lab_wire shares with user space; simulations/wire.py holds the same structs as numpy dtypes. */
#ifndef LAB_WIRE_H
#define LAB_WIRE_H

/* Entries are indexed by the ifindex of the wire end where a frame comes in: small numbers, the namespace is new. */
#define LAB_ENDS 1024

#define LAB_FLOW_PORT 47808	/* the measured flow's UDP destination ports */
#define LAB_FLOW_PORTS 64

/* written by user space */
struct lab_end {
	__u64 drop_below;	/* a frame is lost if a random u32 is below: 0 none, 1 << 32 all */
	__u32 out;		/* ifindex of the other end; 0: not a wire */
	__u32 unused;
};
_Static_assert(sizeof(struct lab_end) == 16, "lab_end");

/* written by the program */
struct lab_count {
	__u64 forwarded;
	__u64 dropped;
	__u64 flow_forwarded;
	__u64 flow_dropped;
};
_Static_assert(sizeof(struct lab_count) == 32, "lab_count");

#endif
