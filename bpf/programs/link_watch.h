/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What link_watch shares with user space. sensors/link_watch_layout.py holds the same
 * structs as numpy dtypes, and a test compares the sizes.
 */
#ifndef LINK_WATCH_H
#define LINK_WATCH_H

#define STAMP_PORT 862
#define STAMP_BASE 44		/* RFC 8762, unauthenticated */
#define STAMP_TLV_MAPEK 253	/* RFC 8972: 252-254 are for private use */
#define STAMP_TLV_UNRECOGNIZED 0x80
#define STAMP_ERROR_ESTIMATE 0x4001	/* unsynchronised, PTPv2 truncated format (Z = 1) */

#define WINDOW 512	/* probes remembered per path; a power of two */
#define LOST_AFTER 64	/* probes sent later, when one without an answer counts as lost */
#define RTT_BUCKETS 32	/* log2 of nanoseconds */

enum role { ROLE_PROBE, ROLE_REPLY };
enum peer_state { PEER_UP, PEER_ADMIN_DOWN };

/* The UDP payload. Sender and reflector packets of RFC 8762 (unauthenticated, 44 bytes)
 * share their first 16 bytes; our TLV authenticates all of it.
 */
struct probe {
	__be32 seq;
	__be32 sec, nsec;
	__be16 error_estimate;
	__be16 ssid;			/* index of the sender's path + 1 */
	__be32 received_sec, received_nsec;
	__be32 sender_seq;
	__be32 sender_sec, sender_nsec;
	__be16 sender_error_estimate;
	__be16 mbz;
	__u8 sender_ttl;
	__u8 mbz3[3];
	__u8 tlv_flags;
	__u8 tlv_type;
	__be16 tlv_length;
	__be64 epoch;			/* session of this sender: start of the agent, in ns */
	__u8 role;
	__u8 peer_state;
	__be16 reserved;
	__be32 reserved4;
	__u64 tag;			/* SipHash-2-4, little-endian, of all before it */
};
_Static_assert(sizeof(struct probe) == 72, "probe");

struct slot {
	__u64 sent_ns;
	__u32 seq;
	__u32 rtt_ns;			/* 0: no answer yet */
};

enum path_flags {
	PATH_IN_USE = 1,
	PATH_WATCH = 2,			/* raise EVENT_SILENT */
	PATH_GAPS = 4,			/* raise EVENT_MISSING */
	PATH_ANSWERS = 8,		/* raise EVENT_ANSWER for every answer */
	PATH_ADMIN_DOWN = 16,		/* tell the peer so in every probe */
	PATH_PLAIN = 32,		/* the peer speaks RFC 8762 without our TLV: nothing is authenticated */
	PATH_STATEFUL = 64,		/* with PATH_PLAIN: our reflector counts its replies itself */
};

/* written by user space only */
struct path_config {
	__u8 local[16];			/* IPv4 as ::ffff:a.b.c.d */
	__u8 peer[16];
	__u32 ifindex;			/* 0: whatever interface the route takes */
	__u32 flags;
	__u64 silence_ns;		/* how long the oldest unanswered probe may wait */
	__u64 epoch;
	__u64 own_key[2];		/* our probes and the replies to them */
	__u64 peer_key[2];		/* the peer's probes and our replies */
	__u32 reply_rate;		/* replies a second */
	__u32 reply_burst;
	__u64 wall_ns;			/* PATH_PLAIN: CLOCK_REALTIME minus CLOCK_MONOTONIC */
};
_Static_assert(sizeof(struct path_config) == 104, "path_config");

enum path_marks { MARK_SILENT = 1, MARK_MISSING = 2 };

/* written by the programs only, but for `marks`' MARK_MISSING, which user space clears */
struct path_state {
	__u64 sent;
	__u64 answered;
	__u64 lost;			/* no answer while LOST_AFTER more were sent; never falls: loss is lost - late */
	__u64 late;			/* were counted as lost, and then answered */
	__u64 duplicates;
	__u64 rejected;			/* answers forged, of another session or outside the window */
	__u64 forward_lost;		/* between two answers: never reached the reflector */
	__u64 reverse_lost;		/* reached the reflector, the answer did not come */
	__u64 reflected;
	__u64 forged;
	__u64 replayed;
	__u64 limited;
	__u64 stalls;			/* watchdog ran late: the machine stood still */
	__u64 ring_drops;
	__u64 last_sent_ns;
	__u64 last_answer_ns;
	__u64 last_answered_sent_ns;	/* send time of the newest answered probe */
	__u64 peer_epoch;		/* PATH_STATEFUL: which of the peer's sessions is counted */
	__u64 peer_seen_ns;		/* last authentic probe of the peer */
	__u64 peer_bitmap;		/* of the 64 sequence numbers up to peer_newest */
	__u64 tokens_ns;		/* token bucket of the reflector, in time */
	__u32 next_seq;
	__u32 newest_answered;
	__u32 reflector_seq;		/* newest, as the peer's reflector counts */
	__u32 own_reflector_seq;	/* as ours counts for the peer's probes */
	__u32 peer_newest;
	__u32 peer_state;
	__u32 marks;
	__u32 reserved;
	__u64 rtt_buckets[RTT_BUCKETS];
	struct slot window[WINDOW];
};
_Static_assert(sizeof(struct path_state) == 200 + 8 * RTT_BUCKETS + 16 * WINDOW, "path_state");

enum event_kind {
	EVENT_SILENT = 1,
	EVENT_BACK,
	EVENT_MISSING,
	EVENT_ANSWER,
	EVENT_PEER_STATE,
	EVENT_PEER_RESTART,
};

struct event {
	__u64 time_ns;
	__u64 onset_ns;			/* SILENT: send time of the newest answered probe; MISSING: of the first missing */
	__u32 path;
	__u32 kind;
	__u32 seq;
	__u32 count;
};
_Static_assert(sizeof(struct event) == 32, "event");

/* whom the reflector answers */
struct peer_key {
	__u32 ifindex;			/* 0: on any interface */
	__u8 peer[16];
	__u8 local[16];
};
_Static_assert(sizeof(struct peer_key) == 36, "peer_key");

#endif
