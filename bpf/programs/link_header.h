/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What stands in front of the IP header: Ethernet, or nothing. User space asks the interface and says so before loading. */
#ifndef MAPEK_LINK_HEADER_H
#define MAPEK_LINK_HEADER_H

#include <linux/if_ether.h>
#include <bpf/bpf_helpers.h>

/* 0 where packets begin with their IP header, as those of tun and WireGuard do. */
const volatile __u32 link_header = sizeof(struct ethhdr);

/* The EtherType, in host order, of what begins with its IP header; 0 for what is no IP. */
static __always_inline __u16 bare_protocol(void *at, void *end)
{
	__u8 *first = at;

	if ((void *)(first + 1) > end)
		return 0;
	if (*first >> 4 == 4)
		return ETH_P_IP;
	return *first >> 4 == 6 ? ETH_P_IPV6 : 0;
}

#endif
