/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* batman-adv's frames as linux/batadv_packet.h has them, compatibility version 15; only what programs here read. */
#ifndef MAPEK_BATADV_WIRE_H
#define MAPEK_BATADV_WIRE_H

#include <linux/types.h>

#define BATADV_VERSION 15
#define BATADV_IV_OGM 0x00
#define BATADV_BCAST 0x01
#define BATADV_ELP 0x03
#define BATADV_OGM2 0x04
#define BATADV_UNICAST 0x40
#define BATADV_UNICAST_4ADDR 0x42
#define BATADV_ICMP 0x43
#define BATADV_UNICAST_TVLV 0x44
#define BATADV_UNICAST_LEN 10
#define BATADV_BCAST_LEN 14
#define BATADV_4ADDR_LEN 18

struct ogm {
	__u8 packet_type;
	__u8 version;
	__u8 ttl;
	__u8 flags;
	__be32 seqno;
	__u8 orig[6];
	__u8 prev_sender[6];
	__u8 reserved;
	__u8 tq;
	__be16 tvlv_len;
} __attribute__((packed));
_Static_assert(sizeof(struct ogm) == 24, "on the wire");

struct ogm2 {
	__u8 packet_type;
	__u8 version;
	__u8 ttl;
	__u8 flags;
	__be32 seqno;
	__u8 orig[6];
	__be16 tvlv_len;
	__be32 throughput;
} __attribute__((packed));
_Static_assert(sizeof(struct ogm2) == 20, "on the wire");

struct elp {
	__u8 packet_type;
	__u8 version;
	__u8 orig[6];
	__be32 seqno;
	__be32 elp_interval;
} __attribute__((packed));
_Static_assert(sizeof(struct elp) == 16, "on the wire");

#endif
