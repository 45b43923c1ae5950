/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * STAMP of RFC 8762 in unauthenticated mode, as any implementation speaks it: 44 bytes, and behind them whatever the
 * sender put there (padding, TLVs of RFC 8972), which goes back as it came. No field says that we were the sender; what
 * stands in for it is the send time, which an answer must return to the last bit.
 */
#ifndef STAMP_PLAIN_H
#define STAMP_PLAIN_H

#include "stamp_packet.h"

#define NTP_EPOCH 2208988800ULL		/* of 1970, in seconds since 1900 */
#define STAMP_PTP 0x4000		/* Z: PTPv2 truncated timestamps, else NTP's */
#define STAMP_ERROR_PLAIN 0x1601	/* unsynchronised, 2^22 / 2^32 s: user space sets the clock to about 1 ms */
#define STAMP_TEMPLATE 0x6d61706b	/* the sequence number of a probe that is still to be stamped */
#define CHUNK 32
#define CHUNKS 46			/* behind the 44 bytes: what an MTU of 1500 leaves */
#define SUMMED_UDP_LEN (BASE_UDP_LEN + CHUNK * (CHUNKS + 1) - 1)

struct stamp_time {
	__be32 seconds;
	__be32 fraction;
};

static __always_inline struct stamp_time stamp_time(__u64 wall_ns, bool ptp)
{
	__u64 seconds = wall_ns / NSEC_PER_SEC, rest = wall_ns % NSEC_PER_SEC;
	struct stamp_time time;

	time.seconds = bpf_htonl(ptp ? seconds : seconds + NTP_EPOCH);
	time.fraction = bpf_htonl(ptp ? rest : (rest << 32) / NSEC_PER_SEC);
	return time;
}

static __always_inline void read_base(const struct udphdr *udp, union payload *to)
{
	const __u32 *from = (const void *)(udp + 1);

#pragma unroll
	for (__u32 i = 0; i < BASE_WORDS; i++)
		to->words[i] = from[i];
}

static __always_inline void write_base(struct udphdr *udp, const union payload *from)
{
	__u32 *to = (void *)(udp + 1);

#pragma unroll
	for (__u32 i = 0; i < BASE_WORDS; i++)
		to[i] = from->words[i];
}

/* Is it in whole here, do the lengths agree, is the IPv4 header as it was sent? `bytes`: of the frame. */
static __always_inline bool is_sound(void *data, void *end, const struct udphdr *udp, const struct headers *found,
				     __u64 bytes)
{
	struct iphdr *ip = data + link_header;
	__u32 length = bpf_ntohs(udp->len);

	if (length != found->udp_len || length < BASE_UDP_LEN || bytes < link_header + udp_offset(found) + length)
		return false;
	if (found->v6)
		return true;
	return (void *)(ip + 1) <= end && !fold(bpf_csum_diff(0, 0, (__be32 *)ip, sizeof(*ip), 0));
}

/*
 * `at + offset`, an offset below 2048. In assembler, or the compiler would leave out the bound, which 5.10 does not see, and
 * make one pointer for the check and another for the access.
 */
static __always_inline void *part_at(void *at, __u64 offset)
{
	asm volatile("%0 &= 0x7ff" : "+r"(offset));
	at += offset;
	asm volatile("" : "+r"(at));
	return at;
}

/*
 * Adds the `rest` of the payload, from `at` on, to a checksum; false: it is longer than an MTU of 1500 leaves. Backwards,
 * by offsets that the verifier does not know, so that it need not follow each length to its own end.
 */
static __always_inline bool sum_rest(void *at, void *end, __u32 rest, __s64 *sum)
{
	__u32 left = rest & ~(CHUNK - 1), last;
	void *part;

	if (rest > SUMMED_UDP_LEN - BASE_UDP_LEN)
		return false;
	for (int i = 0; i < CHUNKS && left >= CHUNK; i++) {
		left -= CHUNK;
		part = part_at(at, left);
		if (part + CHUNK > end)
			return false;
		*sum = bpf_csum_diff(0, 0, part, CHUNK, *sum);
	}
	at = part_at(at, rest & ~(CHUNK - 1));
	left = rest & (CHUNK - 4);
	for (int i = 0; i < CHUNK / 4 && left >= 4; i++) {
		left -= 4;
		part = part_at(at, left);
		if (part + 4 > end)
			return false;
		*sum = bpf_csum_diff(0, 0, part, 4, *sum);
	}
	at = part_at(at, rest & (CHUNK - 4));
	/* each at an even place, so that its sum alone is what it adds */
	if (rest & 2) {
		if (at + 2 > end)
			return false;
		last = 0;
		*(__u16 *)&last = *(__u16 *)at;
		*sum = bpf_csum_diff(0, 0, &last, sizeof(last), *sum);
	}
	at = part_at(at, rest & 2);
	if (rest & 1) {
		if (at + 1 > end)
			return false;
		last = 0;
		*(__u8 *)&last = *(__u8 *)at;
		*sum = bpf_csum_diff(0, 0, &last, sizeof(last), *sum);
	}
	return true;
}

#endif
