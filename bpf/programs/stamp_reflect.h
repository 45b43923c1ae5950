/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The reflector: a peer's probe is judged and turned into the reply in place. What it says is believed only so far as it
 * is authenticated, new and within the rate.
 */
#ifndef STAMP_REFLECT_H
#define STAMP_REFLECT_H

#include "siphash.h"
#include "stamp_plain.h"
#include "watch_maps.h"

#define FORGET_PEER_NS (60 * NSEC_PER_SEC)	/* a peer whose clock went back is locked out no longer */

/* A token bucket kept as time: each reply costs 1/rate s, and at most `burst` of them lie saved. */
static __always_inline bool may_reply(struct path_state *state, const struct path_config *config, __u64 now)
{
	__u64 cost = NSEC_PER_SEC / (config->reply_rate ? config->reply_rate : 1);
	__u64 saved = cost * config->reply_burst, paid = state->tokens_ns;

	if (paid + saved < now)
		paid = now - saved;
	if (paid + cost > now)
		return false;
	state->tokens_ns = paid + cost;
	return true;
}

/* RFC 4303's sliding window over 64 numbers, and the sender's epoch that may only grow. */
static __always_inline bool is_fresh(struct path_state *state, __u64 epoch, __u32 seq, __u64 now)
{
	if (epoch != state->peer_epoch) {
		if (epoch < state->peer_epoch && now < state->peer_seen_ns + FORGET_PEER_NS)
			return false;
		state->peer_epoch = epoch;
		state->peer_newest = seq;
		state->peer_bitmap = 1;
		state->own_reflector_seq = 0;
		return true;
	}
	__s32 ahead = seq - state->peer_newest;

	if (ahead > 0) {
		state->peer_bitmap = ahead < 64 ? state->peer_bitmap << ahead | 1 : 1;
		state->peer_newest = seq;
		return true;
	}
	__u32 behind = -ahead;

	if (behind >= 64 || (state->peer_bitmap >> behind & 1))
		return false;
	state->peer_bitmap |= 1ULL << behind;
	return true;
}

/* Turns the peer's probe into the reply, in place in `payload`; false: drop it. */
static __always_inline bool reflect(union payload *payload, const struct headers *found, __u32 path)
{
	struct path_config *config = bpf_map_lookup_elem(&configs, &path);
	struct path_state *state = bpf_map_lookup_elem(&paths, &path);

	if (!config || !state || !(config->flags & PATH_IN_USE))
		return false;
	struct probe *probe = &payload->probe;
	__u64 now = bpf_ktime_get_ns(), epoch = bpf_be64_to_cpu(probe->epoch);
	__u64 before = state->peer_epoch;

	if (probe->role != ROLE_PROBE || probe->tag != tag_of(payload, config->peer_key)) {
		__sync_fetch_and_add(&state->forged, 1);
		return false;
	}
	if (!is_fresh(state, epoch, bpf_ntohl(probe->seq), now)) {
		__sync_fetch_and_add(&state->replayed, 1);
		return false;
	}
	state->peer_seen_ns = now;
	if (before && before != epoch)
		raise(state, path, EVENT_PEER_RESTART, now, now, 0, 0);
	if (state->peer_state != probe->peer_state) {
		state->peer_state = probe->peer_state;
		raise(state, path, EVENT_PEER_STATE, now, now, 0, probe->peer_state);
	}
	if (!may_reply(state, config, now)) {
		__sync_fetch_and_add(&state->limited, 1);
		return false;
	}
	state->reflected++;
	state->own_reflector_seq++;

	probe->sender_seq = probe->seq;
	probe->sender_sec = probe->sec;
	probe->sender_nsec = probe->nsec;
	probe->sender_error_estimate = probe->error_estimate;
	probe->sender_ttl = found->ttl;
	probe->seq = bpf_htonl(state->own_reflector_seq);
	probe->sec = probe->received_sec = bpf_htonl(now / NSEC_PER_SEC);
	probe->nsec = probe->received_nsec = bpf_htonl(now % NSEC_PER_SEC);
	probe->error_estimate = bpf_htons(STAMP_ERROR_ESTIMATE);
	probe->tlv_flags = 0;
	probe->role = ROLE_REPLY;
	probe->tag = tag_of(payload, config->peer_key);
	return true;
}

/* The same for a sender of RFC 8762: no number or epoch of it can be believed, and none is. */
static __always_inline bool reflect_plain(union payload *payload, const struct headers *found,
					  const struct path_config *config, __u32 path, __be16 source)
{
	struct path_state *state = bpf_map_lookup_elem(&paths, &path);
	struct probe *probe = &payload->probe;
	__u64 now = bpf_ktime_get_ns();

	if (!state)
		return false;
	if (!may_reply(state, config, now)) {
		__sync_fetch_and_add(&state->limited, 1);
		return false;
	}
	struct stamp_time time = stamp_time(now + config->wall_ns, probe->error_estimate & bpf_htons(STAMP_PTP));

	state->reflected++;
	state->peer_seen_ns = now;
	probe->sender_seq = probe->seq;
	if (config->flags & PATH_STATEFUL) {
		__u64 session = 1ULL << 32 | (__u32)source << 16 | probe->ssid;

		if (state->peer_epoch != session) {
			state->peer_epoch = session;
			state->own_reflector_seq = 0;
		}
		probe->seq = bpf_htonl(state->own_reflector_seq++);
	}
	probe->sender_sec = probe->sec;
	probe->sender_nsec = probe->nsec;
	probe->sender_error_estimate = probe->error_estimate;
	probe->sender_ttl = found->ttl;
	probe->mbz = 0;
	probe->mbz3[0] = probe->mbz3[1] = probe->mbz3[2] = 0;
	probe->sec = probe->received_sec = time.seconds;
	probe->nsec = probe->received_nsec = time.fraction;
	/* in the sender's format: it may know no other */
	probe->error_estimate = bpf_htons(STAMP_ERROR_PLAIN) | (probe->error_estimate & bpf_htons(STAMP_PTP));
	return true;
}

static __always_inline void turn_around(void *data, struct udphdr *udp, bool v6)
{
	struct ethhdr *eth = data;
	__u8 mac[ETH_ALEN];
	__be16 port = udp->source;

	if (link_header) {
		__builtin_memcpy(mac, eth->h_source, ETH_ALEN);
		__builtin_memcpy(eth->h_source, eth->h_dest, ETH_ALEN);
		__builtin_memcpy(eth->h_dest, mac, ETH_ALEN);
	}
	udp->source = udp->dest;
	udp->dest = port;
	if (v6) {
		struct ipv6hdr *ip = data + link_header;
		struct in6_addr address = ip->saddr;

		ip->saddr = ip->daddr;
		ip->daddr = address;
		ip->hop_limit = 255;
	} else {
		struct iphdr *ip = data + link_header;
		__be32 address = ip->saddr;

		ip->saddr = ip->daddr;
		ip->daddr = address;
		ip->ttl = 255;
		ip->check = 0;
		ip->check = fold(bpf_csum_diff(0, 0, (__be32 *)ip, sizeof(*ip), 0));
	}
}

static __always_inline __s64 sum_headers(const struct udphdr *udp, const struct headers *found, bool v6)
{
	__u32 pseudo[2] = { udp->len, bpf_htonl(IPPROTO_UDP) };
	__u32 header[2] = { ((__u32 *)udp)[0], ((__u32 *)udp)[1] };
	__s64 sum = bpf_csum_diff(0, 0, pseudo, sizeof(pseudo), 0);

	sum = bpf_csum_diff(0, 0, (__be32 *)found->source + (v6 ? 0 : 3), v6 ? 16 : 4, sum);
	sum = bpf_csum_diff(0, 0, (__be32 *)found->dest + (v6 ? 0 : 3), v6 ? 16 : 4, sum);
	return bpf_csum_diff(0, 0, header, sizeof(header), sum);
}

#endif
