/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Taking an answer in: is it one to a probe of ours, how long was it on its way, and which probes before it are lost.
 */
#ifndef STAMP_ANSWER_H
#define STAMP_ANSWER_H

#include "siphash.h"
#include "stamp_plain.h"
#include "watch_maps.h"

static __always_inline __u32 bucket_of(__u64 ns)
{
	__u32 bucket = 0;

#pragma unroll
	for (int shift = 16; shift; shift >>= 1)
		if (ns >> shift) {
			ns >>= shift;
			bucket += shift;
		}
	return bucket & (RTT_BUCKETS - 1);
}

static __always_inline bool is_authentic(const union payload *payload, const struct path_config *config)
{
	return payload->probe.epoch == bpf_cpu_to_be64(config->epoch) &&
	       payload->probe.tag == tag_of(payload, config->own_key);
}

/* An unauthenticated answer proves that its sender has seen the probe by the time that it returns, and no more. */
static __always_inline bool returns_time(const union payload *payload, const struct path_config *config,
					 const struct slot *slot)
{
	struct stamp_time sent = stamp_time(slot->sent_ns + config->wall_ns, false);

	return payload->probe.sender_sec == sent.seconds && payload->probe.sender_nsec == sent.fraction;
}

/* False: nothing of ours waits for it. `path` is what the packet says, `known` what its addresses say. */
static __always_inline bool take_answer(const union payload *payload, const struct headers *found, __u32 ifindex,
					__u32 path, __u32 known, bool plain)
{
	struct path_config *config = bpf_map_lookup_elem(&configs, &path);
	struct path_state *state = bpf_map_lookup_elem(&paths, &path);

	if (!config || !state) {
		state = bpf_map_lookup_elem(&paths, &known);
		if (state)
			__sync_fetch_and_add(&state->rejected, 1);
		return false;
	}
	__u32 seq = bpf_ntohl(payload->probe.sender_seq);
	struct slot *slot = &state->window[seq & (WINDOW - 1)];

	if (!(config->flags & PATH_IN_USE) || !(config->flags & PATH_PLAIN) == plain ||
	    !same_address(config->peer, found->source) || (config->ifindex && config->ifindex != ifindex) ||
	    slot->seq != seq || !slot->sent_ns ||
	    !(plain ? returns_time(payload, config, slot) : is_authentic(payload, config))) {
		__sync_fetch_and_add(&state->rejected, 1);
		return false;
	}
	if (slot->rtt_ns) {
		__sync_fetch_and_add(&state->duplicates, 1);
		return true;
	}
	__u64 now = bpf_ktime_get_ns(), rtt = now > slot->sent_ns ? now - slot->sent_ns : 1;

	if (rtt > 0xffffffff)
		rtt = 0xffffffff;
	slot->rtt_ns = rtt;
	/* `lost` stays: a counter that fell would be taken for one that began anew */
	if (state->next_seq - seq > LOST_AFTER)
		__sync_fetch_and_add(&state->late, 1);
	__sync_fetch_and_add(&state->answered, 1);
	__sync_fetch_and_add(&state->rtt_buckets[bucket_of(rtt)], 1);
	state->last_answer_ns = now;

	__u32 oldest = state->newest_answered + 1, gap = seq - oldest;
	__u32 reflected = bpf_ntohl(payload->probe.seq);

	if ((__s32)gap >= 0) {
		__u32 passed = reflected - state->reflector_seq;

		/*
		 * Both ends count: what the reflector did not see was lost on the way there. One that repeats our
		 * own number may not count at all (RFC 8762, stateless), and then nothing is known.
		 */
		bool counts = !plain || reflected != seq;

		if (counts && state->reflector_seq && (__s32)passed > 0 && passed <= gap + 1) {
			state->forward_lost += gap + 1 - passed;
			state->reverse_lost += passed - 1;
		}
		state->reflector_seq = reflected;
		state->newest_answered = seq;
		state->last_answered_sent_ns = slot->sent_ns;
		if (gap && (config->flags & PATH_GAPS) && !(state->marks & (MARK_MISSING | MARK_SILENT))) {
			state->marks |= MARK_MISSING;
			raise(state, path, EVENT_MISSING, now, state->window[oldest & (WINDOW - 1)].sent_ns,
			      oldest, gap);
		}
	}
	if (state->marks & MARK_SILENT) {
		state->marks &= ~MARK_SILENT;
		if (config->flags & PATH_WATCH)
			raise(state, path, EVENT_BACK, now, slot->sent_ns, seq, 0);
	}
	if (config->flags & PATH_ANSWERS)
		raise(state, path, EVENT_ANSWER, now, slot->sent_ns, seq, 0);
	return true;
}

#endif
