/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the programs of link_watch share with each other and with user space: the maps, and how an event is raised. The
 * layout of what the maps hold is in link_watch.h.
 */
#ifndef WATCH_MAPS_H
#define WATCH_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "stamp_packet.h"

/* of all reflectors, ours and the peers' */
const volatile __u16 stamp_port = STAMP_PORT;

struct watchdog {
	struct bpf_timer timer;
	__u64 expires_ns;
	__u16 ready;
	__u16 running;
	__u32 excused;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct path_config);
} configs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct path_state);
} paths SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct watchdog);
} watchdogs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 64);
	__type(key, struct peer_key);
	__type(value, __u32);
} peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} events SEC(".maps");

static __always_inline void raise(struct path_state *state, __u32 path, __u32 kind, __u64 now, __u64 onset,
				  __u32 seq, __u32 count)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event) {
		__sync_fetch_and_add(&state->ring_drops, 1);
		return;
	}
	event->time_ns = now;
	event->onset_ns = onset;
	event->path = path;
	event->kind = kind;
	event->seq = seq;
	event->count = count;
	bpf_ringbuf_submit(event, 0);
}

#endif
