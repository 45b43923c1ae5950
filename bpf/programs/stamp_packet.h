/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * STAMP packets: find, copy out, write back. The payload is moved by 32-bit words,
 * the widest that is aligned on the machines where the verifier insists on alignment.
 */
#ifndef STAMP_PACKET_H
#define STAMP_PACKET_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "link_header.h"
#include "link_watch.h"

/* the compiler's own stdbool.h is not vendored */
typedef _Bool bool;
enum { false, true };

#define NSEC_PER_SEC 1000000000ULL
#define PROBE_WORDS (sizeof(struct probe) / 4)
#define V4_UDP sizeof(struct iphdr)
#define V6_UDP sizeof(struct ipv6hdr)
#define PROBE_UDP_LEN (sizeof(struct udphdr) + sizeof(struct probe))
#define BASE_WORDS (STAMP_BASE / 4)
#define BASE_UDP_LEN (sizeof(struct udphdr) + STAMP_BASE)

union payload {
	struct probe probe;
	__u32 words[PROBE_WORDS];
	__u64 quads[sizeof(struct probe) / 8];
};

struct headers {
	__u8 source[16];
	__u8 dest[16];
	bool v6;
	__u8 ttl;
	__u16 udp_len;			/* as the IP header has it */
};

static __always_inline void map_v4(__u8 *to, __be32 address)
{
	__u32 *words = (__u32 *)to;

	words[0] = 0;
	words[1] = 0;
	words[2] = bpf_htonl(0xffff);
	words[3] = address;
}

/* from the IP header on: of two constants: what is read back from the stack the verifier takes for any number */
static __always_inline __u32 udp_offset(const struct headers *found)
{
	return found->v6 ? V6_UDP : V4_UDP;
}

/* The EtherType in host order, 0 if there is none. */
static __always_inline __u16 protocol_of(void *data, void *end)
{
	struct ethhdr *eth = data;

	if (!link_header)
		return bare_protocol(data, end);
	return (void *)(eth + 1) > end ? 0 : bpf_ntohs(eth->h_proto);
}

/* True for an unfragmented UDP packet without IP options that holds at least the 44 bytes of RFC 8762. */
static __always_inline bool find_stamp(void *data, void *end, struct headers *found)
{
	__u16 protocol = protocol_of(data, end);

	if (protocol == ETH_P_IP) {
		struct iphdr *ip = data + link_header;

		if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl != 5 || ip->protocol != IPPROTO_UDP ||
		    (ip->frag_off & bpf_htons(0x3fff)))
			return false;
		map_v4(found->source, ip->saddr);
		map_v4(found->dest, ip->daddr);
		found->ttl = ip->ttl;
		found->udp_len = bpf_ntohs(ip->tot_len) - sizeof(*ip);
		found->v6 = false;
	} else if (protocol == ETH_P_IPV6) {
		struct ipv6hdr *ip = data + link_header;

		if ((void *)(ip + 1) > end || ip->version != 6 || ip->nexthdr != IPPROTO_UDP)
			return false;
		__builtin_memcpy(found->source, &ip->saddr, 16);
		__builtin_memcpy(found->dest, &ip->daddr, 16);
		found->ttl = ip->hop_limit;
		found->udp_len = bpf_ntohs(ip->payload_len);
		found->v6 = true;
	} else {
		return false;
	}
	return data + link_header + udp_offset(found) + BASE_UDP_LEN <= end;
}

/* The UDP header, if `length` bytes from it on are there. */
static __always_inline struct udphdr *udp_of(void *data, void *end, const struct headers *found, __u32 length)
{
	struct udphdr *udp = data + link_header + udp_offset(found);

	return (void *)udp + length > end ? 0 : udp;
}

static __always_inline void read_payload(const struct udphdr *udp, union payload *to)
{
	const __u32 *from = (const void *)(udp + 1);

#pragma unroll
	for (__u32 i = 0; i < PROBE_WORDS; i++)
		to->words[i] = from[i];
}

static __always_inline void write_payload(struct udphdr *udp, const union payload *from)
{
	__u32 *to = (void *)(udp + 1);

#pragma unroll
	for (__u32 i = 0; i < PROBE_WORDS; i++)
		to[i] = from->words[i];
}

/* Is it of our form: lengths that fit, and our TLV behind the 44 bytes of RFC 8762? */
static __always_inline bool is_ours(const struct udphdr *udp, const struct headers *found,
				    const union payload *payload)
{
	return udp->len == bpf_htons(PROBE_UDP_LEN) && found->udp_len == PROBE_UDP_LEN &&
	       payload->probe.tlv_type == STAMP_TLV_MAPEK && payload->probe.tlv_length == bpf_htons(24);
}

static __always_inline __u64 tag_of(const union payload *payload, const __u64 *key)
{
	return LE64(siphash24(payload->quads, offsetof(struct probe, tag) / 8, key));
}

static __always_inline bool same_address(const __u8 *a, const __u8 *b)
{
	const __u32 *x = (const __u32 *)a, *y = (const __u32 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3];
}

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

#endif
