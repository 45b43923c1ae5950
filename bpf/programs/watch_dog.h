/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The watchdog of a path: a timer that raises an event when the oldest unanswered probe waits too long. Armed by the
 * probe that is sent, so a sender that stands still never takes its own stall for a silent peer.
 */
#ifndef WATCH_DOG_H
#define WATCH_DOG_H

#include "watch_maps.h"

#define CLOCK_MONOTONIC 1
#define WATCHDOG_LATE_NS 1000000ULL

static int bark(void *map, __u32 *path, struct watchdog *dog)
{
	struct path_config *config = bpf_map_lookup_elem(&configs, path);
	struct path_state *state = bpf_map_lookup_elem(&paths, path);
	__u64 now = bpf_ktime_get_ns();

	/* before the look at next_seq: a probe sent from here on arms the timer itself */
	dog->running = 0;
	if (!config || !state || !(config->flags & PATH_WATCH) || (state->marks & MARK_SILENT))
		return 0;
	__u32 oldest = state->newest_answered + 1;

	if (oldest == state->next_seq)
		return 0;
	__u64 silence = config->silence_ns, sent = state->window[oldest & (WINDOW - 1)].sent_ns;
	__u64 waited = now > sent ? now - sent : 0, wait = 0;

	if (waited < silence) {
		wait = silence - waited;
		dog->excused = 0;
	} else if (now > dog->expires_ns + WATCHDOG_LATE_NS && !dog->excused) {
		/* the machine stood still, the answer may lie in a queue: look once more */
		dog->excused = 1;
		state->stalls++;
		wait = silence;
	}
	if (wait) {
		dog->running = 1;
		dog->expires_ns = now + wait;
		bpf_timer_start(&dog->timer, wait, 0);
		return 0;
	}
	dog->excused = 0;
	state->marks |= MARK_SILENT;
	raise(state, *path, EVENT_SILENT, now, state->last_answered_sent_ns, oldest, state->next_seq - oldest);
	return 0;
}

static __always_inline void arm(__u32 path, __u64 now, __u64 silence)
{
	struct watchdog *dog = bpf_map_lookup_elem(&watchdogs, &path);

	if (!dog || dog->running)
		return;
	if (!dog->ready) {
		if (bpf_timer_init(&dog->timer, &watchdogs, CLOCK_MONOTONIC))
			return;
		bpf_timer_set_callback(&dog->timer, bark);
		dog->ready = 1;
	}
	dog->running = 1;
	dog->expires_ns = now + silence;
	bpf_timer_start(&dog->timer, silence, 0);
}

#endif
