/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * SipHash-2-4 (Aumasson, Bernstein 2012) of a fixed number of 64-bit words: a keyed hash that is
 * short enough for the path of a packet. Not unrolled: that is four times the code and no faster.
 */
#ifndef SIPHASH_H
#define SIPHASH_H

#define ROTL64(x, b) (((x) << (b)) | ((x) >> (64 - (b))))

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define LE64(x) (x)
#else
#define LE64(x) __builtin_bswap64(x)
#endif

#define SIPROUND do {							\
	v0 += v1; v1 = ROTL64(v1, 13); v1 ^= v0; v0 = ROTL64(v0, 32);	\
	v2 += v3; v3 = ROTL64(v3, 16); v3 ^= v2;			\
	v0 += v3; v3 = ROTL64(v3, 21); v3 ^= v0;			\
	v2 += v1; v1 = ROTL64(v1, 17); v1 ^= v2; v2 = ROTL64(v2, 32);	\
} while (0)

/* words: little-endian in memory; key: in the CPU's order */
static __always_inline __u64 siphash24(const __u64 *words, int count, const __u64 *key)
{
	__u64 v0 = 0x736f6d6570736575ULL ^ key[0], v1 = 0x646f72616e646f6dULL ^ key[1];
	__u64 v2 = 0x6c7967656e657261ULL ^ key[0], v3 = 0x7465646279746573ULL ^ key[1];

#pragma nounroll
	for (int i = 0; i < count; i++) {
		__u64 m = LE64(words[i]);

		v3 ^= m;
		SIPROUND;
		SIPROUND;
		v0 ^= m;
	}
	__u64 last = (__u64)(count * 8 & 0xff) << 56;

	v3 ^= last;
	SIPROUND;
	SIPROUND;
	v0 ^= last;
	v2 ^= 0xff;
	SIPROUND;
	SIPROUND;
	SIPROUND;
	SIPROUND;
	return v0 ^ v1 ^ v2 ^ v3;
}

#endif
