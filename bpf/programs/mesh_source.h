/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who sent a frame: the source of the innermost Ethernet frame, also inside batman-adv's unicast and broadcast frames, whose
 * outer source is only the last hop. The reference decoder that tests hold against this is tests/support/decode_mesh.py.
 */
#ifndef MAPEK_MESH_SOURCE_H
#define MAPEK_MESH_SOURCE_H

#include <linux/icmpv6.h>
#include <linux/udp.h>
#include "batadv_wire.h"
#include "link_header.h"
#include "packet.h"

#define ND_NEIGHBOUR_SOLICIT 135
#define ND_NEIGHBOUR_ADVERT 136
#define HOPS_OF_A_NEIGHBOUR 255
/* More fragments, or an offset. */
#define IP_FRAGMENT_MASK 0x3fff

enum form {
	FORM_DATA,
	FORM_VITAL, /* without it the link itself fails: ARP, neighbour discovery, probes, link control */
	FORM_CONTROL, /* batman-adv's own */
	FORM_UNDECODED, /* whose it is cannot be said */
};

/* `proto` is that of the address in `source`: ETH_P_IP, ETH_P_IPV6, or 0 for none. */
struct mesh_source {
	__u8 source[16];
	__u8 mac[6];
	__u16 proto;
};

/* 01:80:C2:00:00:0X, which no bridge forwards: spanning tree, pause, LACP, EAPOL, LLDP. */
static __always_inline int is_link_control(const struct ethhdr *eth)
{
	return eth->h_dest[0] == 0x01 && eth->h_dest[1] == 0x80 && eth->h_dest[2] == 0xc2 && !eth->h_dest[3] &&
	       !eth->h_dest[4] && eth->h_dest[5] < 0x10;
}

/*
 * A probe goes to the port; an answer comes from it and from a neighbour, or a foe could send to any port what it likes.
 */
static __always_inline int is_probe(struct udphdr *udp, void *end, __u8 hops, __u16 port)
{
	if (!port || (void *)(udp + 1) > end)
		return 0;
	return udp->dest == bpf_htons(port) || (udp->source == bpf_htons(port) && hops == HOPS_OF_A_NEIGHBOUR);
}

static __always_inline enum form source_of_ipv4(void *at, void *end, __u16 port, struct mesh_source *found)
{
	struct iphdr *ip = at;

	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
		return FORM_DATA;
	__builtin_memcpy(found->source, &ip->saddr, 4);
	found->proto = ETH_P_IP;
	if (ip->protocol == IPPROTO_UDP && ip->ihl == 5 && !(ip->frag_off & bpf_htons(IP_FRAGMENT_MASK)) &&
	    is_probe((void *)(ip + 1), end, ip->ttl, port))
		return FORM_VITAL;
	return FORM_DATA;
}

static __always_inline enum form source_of_ipv6(void *at, void *end, __u16 port, struct mesh_source *found)
{
	struct ipv6hdr *ip = at;
	struct icmp6hdr *icmp = (void *)(ip + 1);

	if ((void *)(ip + 1) > end || ip->version != 6)
		return FORM_DATA;
	__builtin_memcpy(found->source, &ip->saddr, 16);
	found->proto = ETH_P_IPV6;
	if (ip->nexthdr == IPPROTO_UDP && is_probe((void *)(ip + 1), end, ip->hop_limit, port))
		return FORM_VITAL;
	if (ip->nexthdr == IPPROTO_ICMPV6 && ip->hop_limit == HOPS_OF_A_NEIGHBOUR && (void *)(icmp + 1) <= end &&
	    (icmp->icmp6_type == ND_NEIGHBOUR_SOLICIT || icmp->icmp6_type == ND_NEIGHBOUR_ADVERT))
		return FORM_VITAL;
	return FORM_DATA;
}

/* Moves `*at` to the Ethernet frame inside; FORM_DATA if there is one. */
static __always_inline enum form enter_batadv(void **at, void *end)
{
	__u8 *header = *at;

	if ((void *)(header + 2) > end || header[1] != BATADV_VERSION)
		return FORM_UNDECODED;
	switch (header[0]) {
	case BATADV_IV_OGM:
	case BATADV_ELP:
	case BATADV_OGM2:
	case BATADV_ICMP:
	case BATADV_UNICAST_TVLV:
		return FORM_CONTROL;
	case BATADV_UNICAST:
		*at = header + BATADV_UNICAST_LEN;
		return FORM_DATA;
	case BATADV_UNICAST_4ADDR:
		*at = header + BATADV_4ADDR_LEN;
		return FORM_DATA;
	case BATADV_BCAST:
		*at = header + BATADV_BCAST_LEN;
		return FORM_DATA;
	}
	/* Fragments too: only one of them holds the header, and which it is cannot be seen from it. */
	return FORM_UNDECODED;
}

static __always_inline enum form source_of(__u16 proto, void *at, void *end, __u16 port, struct mesh_source *found)
{
	switch (proto) {
	case ETH_P_IP:
		return source_of_ipv4(at, end, port, found);
	case ETH_P_IPV6:
		return source_of_ipv6(at, end, port, found);
	case ETH_P_ARP:
	case ETH_P_PAE:
	case ETH_P_LLDP:
		return FORM_VITAL;
	}
	return FORM_DATA;
}

/*
 * The innermost source of the frame in [at, end). `port` is that of probes, 0 for none. Without an Ethernet header there
 * is neither a MAC nor anything that the link itself needs.
 */
static __always_inline enum form mesh_source(void *at, void *end, __u16 port, struct mesh_source *found)
{
	struct ethhdr *eth = at;
	enum form form;
	__u32 tags;
	__u16 proto;

	if (!link_header)
		return source_of(bare_protocol(at, end), at, end, port, found);
	if ((void *)(eth + 1) > end)
		return FORM_UNDECODED;
	proto = parse_ethernet(&at, end, &tags);
	if (proto == ETH_P_BATMAN) {
		form = enter_batadv(&at, end);
		if (form != FORM_DATA)
			return form;
		eth = at;
		if ((void *)(eth + 1) > end)
			return FORM_UNDECODED;
		proto = parse_ethernet(&at, end, &tags);
	}
	__builtin_memcpy(found->mac, eth->h_source, 6);
	if (is_link_control(eth))
		return FORM_VITAL;
	return source_of(proto, at, end, port, found);
}

#endif
