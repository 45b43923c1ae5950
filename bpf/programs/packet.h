/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Bounded parsing of frames: Ethernet, up to two VLAN tags, IPv4, IPv6 with its extension headers. */
#ifndef MAPEK_PACKET_H
#define MAPEK_PACKET_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct vlan_tag {
	__be16 tci;
	__be16 proto;
};

struct ext_header {
	__u8 nexthdr;
	__u8 hdrlen;
	__be16 frag_off;
};

/* More chained headers than this is not traffic that a mesh node forwards; they count as "other". */
#define MAX_EXT_HEADERS 4
#define IP_OFFSET_MASK 0x1fff
#define IP6_OFFSET_MASK 0xfff8

/* Moves `*at` past the Ethernet header and at most two tags; returns the EtherType in host order, 0 if it is cut short. */
static __always_inline __u16 parse_ethernet(void **at, void *end, __u32 *tags)
{
	struct ethhdr *eth = *at;
	__be16 proto;

	*tags = 0;
	if ((void *)(eth + 1) > end)
		return 0;
	proto = eth->h_proto;
	*at = eth + 1;
#pragma unroll
	for (int i = 0; i < 2; i++) {
		struct vlan_tag *tag = *at;

		if (proto != bpf_htons(ETH_P_8021Q) && proto != bpf_htons(ETH_P_8021AD))
			break;
		(*tags)++;
		if ((void *)(tag + 1) > end)
			return 0;
		proto = tag->proto;
		*at = tag + 1;
	}
	return bpf_ntohs(proto);
}

/*
 * Returns the protocol of an IPv4 packet, or -1 if the header is cut short or not IPv4. `*at` moves past the header
 * and its options. A later fragment keeps its protocol but `*first` is 0: it carries no transport header.
 */
static __always_inline int parse_ipv4(void **at, void *end, int *first)
{
	struct iphdr *ip = *at;

	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
		return -1;
	*first = !(ip->frag_off & bpf_htons(IP_OFFSET_MASK));
	*at += ip->ihl * 4;
	return *at > end ? -1 : ip->protocol;
}

/* The same for IPv6, past its extension headers; -1 also when there are more of them than MAX_EXT_HEADERS. */
static __always_inline int parse_ipv6(void **at, void *end, int *first)
{
	struct ipv6hdr *ip = *at;
	__u8 proto;

	if ((void *)(ip + 1) > end || ip->version != 6)
		return -1;
	proto = ip->nexthdr;
	*first = 1;
	*at = ip + 1;
#pragma unroll
	for (int i = 0; i < MAX_EXT_HEADERS; i++) {
		struct ext_header *ext = *at;

		if (proto != IPPROTO_HOPOPTS && proto != IPPROTO_ROUTING && proto != IPPROTO_DSTOPTS &&
		    proto != IPPROTO_FRAGMENT && proto != IPPROTO_AH)
			return proto;
		if ((void *)(ext + 1) > end)
			return -1;
		if (proto == IPPROTO_FRAGMENT) {
			if (ext->frag_off & bpf_htons(IP6_OFFSET_MASK))
				*first = 0;
			*at += 8;
		} else if (proto == IPPROTO_AH) {
			*at += (ext->hdrlen + 2) * 4;
		} else {
			*at += (ext->hdrlen + 1) * 8;
		}
		if (*at > end)
			return -1;
		proto = ext->nexthdr;
		/* What follows the header of a later fragment is its payload. */
		if (!*first)
			return proto;
	}
	if (proto == IPPROTO_HOPOPTS || proto == IPPROTO_ROUTING || proto == IPPROTO_DSTOPTS ||
	    proto == IPPROTO_FRAGMENT || proto == IPPROTO_AH)
		return -1;
	return proto;
}

#endif
