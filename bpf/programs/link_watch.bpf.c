// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * link_watch: is a path alive, and what does it lose?
 *
 * `stamp` (tc egress) numbers, dates and authenticates the probes that user space sends, and arms
 * the watchdog: a bpf_timer that raises an event when the oldest unanswered probe waits too long.
 * A sender that stands still sends no probes, so its own stall never looks like a silent peer.
 * `link_watch` (XDP, or tc ingress) takes the answers in and is the peer's reflector: a probe goes
 * back from here, no user space involved, so a stalled process does not look like a dead link.
 * The programs keep raw facts (a window of send times and round trips); user space judges them.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "chain.h"
#include "siphash.h"
#include "stamp_packet.h"
#include "stamp_plain.h"

#define CLOCK_MONOTONIC 1
#define FORGET_PEER_NS (60 * NSEC_PER_SEC)	/* a peer whose clock went back is locked out no longer */
#define WATCHDOG_LATE_NS 1000000ULL

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

static __always_inline int stamp_probe(struct __sk_buff *skb, bool timers)
{
	struct headers found;
	union payload old = {}, new;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (!find_stamp(data, end, &found))
		return TC_ACT_UNSPEC;
	struct udphdr *udp = udp_of(data, end, &found, BASE_UDP_LEN);

	if (!udp || udp->dest != bpf_htons(stamp_port))
		return TC_ACT_UNSPEC;
	bool plain = udp->len == bpf_htons(BASE_UDP_LEN);

	if (plain) {
		read_base(udp, &old);
		if (old.probe.seq != bpf_htonl(STAMP_TEMPLATE) || old.probe.sec)
			return TC_ACT_UNSPEC;
	} else {
		udp = udp_of(data, end, &found, PROBE_UDP_LEN);
		if (!udp)
			return TC_ACT_UNSPEC;
		read_payload(udp, &old);
		if (!is_ours(udp, &found, &old) || old.probe.role != ROLE_PROBE)
			return TC_ACT_UNSPEC;
	}

	__u32 path = bpf_ntohs(old.probe.ssid) - 1;
	struct path_config *config = bpf_map_lookup_elem(&configs, &path);
	struct path_state *state = bpf_map_lookup_elem(&paths, &path);

	if (!config || !state || !(config->flags & PATH_IN_USE) || !same_address(config->peer, found.dest) ||
	    (config->ifindex && config->ifindex != skb->ifindex) || !(config->flags & PATH_PLAIN) == plain)
		return TC_ACT_UNSPEC;

	/* one sender at a time: user space holds a lock over its sends */
	__u64 now = bpf_ktime_get_ns();
	__u32 seq = state->next_seq;
	struct slot *slot = &state->window[seq & (WINDOW - 1)];

	struct slot *late = &state->window[(seq - LOST_AFTER) & (WINDOW - 1)];

	if (late->sent_ns && late->seq == seq - LOST_AFTER && !late->rtt_ns)
		__sync_fetch_and_add(&state->lost, 1);
	slot->sent_ns = now;
	slot->seq = seq;
	slot->rtt_ns = 0;
	state->next_seq = seq + 1;
	state->sent++;
	state->last_sent_ns = now;

	__u32 offset = udp_offset(&found) + sizeof(struct udphdr);
	__s64 diff;

	new = old;
	new.probe.seq = bpf_htonl(seq);
	if (plain) {
		struct stamp_time time = stamp_time(now + config->wall_ns, false);

		new.probe.sec = time.seconds;
		new.probe.nsec = time.fraction;
		new.probe.error_estimate = bpf_htons(STAMP_ERROR_PLAIN);
		diff = bpf_csum_diff(old.words, STAMP_BASE, new.words, STAMP_BASE, 0);
		bpf_skb_store_bytes(skb, offset, &new, STAMP_BASE, 0);
	} else {
		new.probe.sec = bpf_htonl(now / NSEC_PER_SEC);
		new.probe.nsec = bpf_htonl(now % NSEC_PER_SEC);
		new.probe.error_estimate = bpf_htons(STAMP_ERROR_ESTIMATE);
		new.probe.tlv_flags = STAMP_TLV_UNRECOGNIZED;
		new.probe.epoch = bpf_cpu_to_be64(config->epoch);
		new.probe.peer_state = config->flags & PATH_ADMIN_DOWN ? PEER_ADMIN_DOWN : PEER_UP;
		new.probe.tag = tag_of(&new, config->own_key);
		diff = bpf_csum_diff(old.words, sizeof(old), new.words, sizeof(new), 0);
		bpf_skb_store_bytes(skb, offset, &new, sizeof(new), 0);
	}
	bpf_l4_csum_replace(skb, udp_offset(&found) + offsetof(struct udphdr, check), 0, diff, BPF_F_MARK_MANGLED_0);
	if (timers && (config->flags & PATH_WATCH) && !(state->marks & MARK_SILENT))
		arm(path, now, config->silence_ns);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int stamp(struct __sk_buff *skb)
{
	return stamp_probe(skb, true);
}

/* for kernels before 5.15: user space looks at the window on a tick instead */
SEC("tc")
int stamp_untimed(struct __sk_buff *skb)
{
	return stamp_probe(skb, false);
}

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
	if (state->next_seq - seq > LOST_AFTER) {
		__sync_fetch_and_add(&state->lost, -1);
		__sync_fetch_and_add(&state->late, 1);
	}
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

static __always_inline __u32 *find_peer(const struct headers *found, __u32 ifindex)
{
	struct peer_key key = { .ifindex = ifindex };

	__builtin_memcpy(key.peer, found->source, 16);
	__builtin_memcpy(key.local, found->dest, 16);
	__u32 *path = bpf_map_lookup_elem(&peers, &key);

	if (path)
		return path;
	key.ifindex = 0;
	return bpf_map_lookup_elem(&peers, &key);
}

static __always_inline void turn_around(void *data, struct udphdr *udp, bool v6)
{
	struct ethhdr *eth = data;
	__u8 mac[ETH_ALEN];
	__be16 port = udp->source;

	__builtin_memcpy(mac, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, mac, ETH_ALEN);
	udp->source = udp->dest;
	udp->dest = port;
	if (v6) {
		struct ipv6hdr *ip = (void *)(eth + 1);
		struct in6_addr address = ip->saddr;

		ip->saddr = ip->daddr;
		ip->daddr = address;
		ip->hop_limit = 255;
	} else {
		struct iphdr *ip = (void *)(eth + 1);
		__be32 address = ip->saddr;

		ip->saddr = ip->daddr;
		ip->daddr = address;
		ip->ttl = 255;
		ip->check = 0;
		ip->check = fold(bpf_csum_diff(0, 0, (__be32 *)ip, sizeof(*ip), 0));
	}
}

enum verdict { NOT_OURS, CONSUMED, REPLY, REPLY_PLAIN };

static __always_inline enum verdict receive_plain(void *data, void *end, __u64 bytes, __u32 ifindex,
						  struct headers *found, union payload *payload,
						  const struct path_config *config, __u32 path)
{
	struct udphdr *udp = udp_of(data, end, found, BASE_UDP_LEN);

	if (!udp || !(config->flags & PATH_IN_USE) || !is_sound(data, end, udp, found, bytes))
		return NOT_OURS;
	read_base(udp, payload);
	if (udp->dest != bpf_htons(stamp_port))
		return take_answer(payload, found, ifindex, path, path, true) ? CONSUMED : NOT_OURS;
	/* from the port of a reflector: two of them would send it to and fro for ever */
	if (udp->source == bpf_htons(stamp_port))
		return NOT_OURS;
	return reflect_plain(payload, found, config, path, udp->source) ? REPLY_PLAIN : CONSUMED;
}

/* `bytes`: of the whole frame, of which `data` to `end` may be the beginning. */
static __always_inline enum verdict receive(void *data, void *end, __u64 bytes, __u32 ifindex,
					    struct headers *found, union payload *payload)
{
	if (!find_stamp(data, end, found))
		return NOT_OURS;
	struct udphdr *udp = udp_of(data, end, found, BASE_UDP_LEN);

	if (!udp || (udp->dest != bpf_htons(stamp_port) && udp->source != bpf_htons(stamp_port)))
		return NOT_OURS;
	__u32 *path = find_peer(found, ifindex);

	if (!path)
		return NOT_OURS;
	struct path_config *config = bpf_map_lookup_elem(&configs, path);

	if (config && config->flags & PATH_PLAIN)
		return receive_plain(data, end, bytes, ifindex, found, payload, config, *path);
	udp = udp_of(data, end, found, PROBE_UDP_LEN);
	if (!udp)
		return NOT_OURS;
	read_payload(udp, payload);
	if (!is_ours(udp, found, payload))
		return NOT_OURS;
	if (payload->probe.role == ROLE_REPLY) {
		take_answer(payload, found, ifindex, bpf_ntohs(payload->probe.ssid) - 1, *path, false);
		return CONSUMED;
	}
	return reflect(payload, found, *path) ? REPLY : CONSUMED;
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

SEC("xdp")
int link_watch(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct headers found = {};
	union payload payload;
	enum verdict verdict = receive(data, end, end - data, ctx->ingress_ifindex, &found, &payload);

	if (verdict == NOT_OURS)
		return chain_next(ctx);
	if (verdict == CONSUMED)
		return XDP_DROP;
	struct udphdr *udp = udp_of(data, end, &found, BASE_UDP_LEN);
	bool v6 = found.v6;
	__s64 sum;

	if (!udp)
		return XDP_DROP;
	/* in whole: what came in may be the partial sum of a sender that offloads it */
	if (verdict == REPLY) {
		udp = udp_of(data, end, &found, PROBE_UDP_LEN);
		if (!udp)
			return XDP_DROP;
		turn_around(data, udp, v6);
		write_payload(udp, &payload);
		udp->check = 0;
		sum = sum_headers(udp, &found, v6);
		sum = bpf_csum_diff(0, 0, payload.words, sizeof(payload), sum);
	} else {
		turn_around(data, udp, v6);
		write_base(udp, &payload);
		udp->check = 0;
		sum = sum_headers(udp, &found, v6);
		sum = bpf_csum_diff(0, 0, payload.words, STAMP_BASE, sum);
		if (!sum_rest((void *)udp + BASE_UDP_LEN, end, bpf_ntohs(udp->len) - BASE_UDP_LEN, &sum))
			return XDP_DROP;
	}
	udp->check = fold(sum) ?: 0xffff;
	return XDP_TX;
}

/* where the driver has no XDP */
SEC("tc")
int link_watch_tc(struct __sk_buff *skb)
{
	const __u32 most = V6_UDP + PROBE_UDP_LEN;

	if (bpf_skb_pull_data(skb, skb->len < most ? skb->len : most))
		return TC_ACT_UNSPEC;
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct headers found = {};
	union payload payload, old;
	enum verdict verdict = receive(data, end, skb->len, skb->ifindex, &found, &payload);

	if (verdict == NOT_OURS)
		return TC_ACT_UNSPEC;
	if (verdict == CONSUMED)
		return TC_ACT_SHOT;
	struct udphdr *udp = udp_of(data, end, &found, verdict == REPLY ? PROBE_UDP_LEN : BASE_UDP_LEN);
	__u32 offset = udp_offset(&found) + sizeof(*udp);
	__s64 diff;

	if (!udp)
		return TC_ACT_SHOT;
	turn_around(data, udp, found.v6);
	if (verdict == REPLY) {
		read_payload(udp, &old);
		diff = bpf_csum_diff(old.words, sizeof(old), payload.words, sizeof(payload), 0);
		bpf_skb_store_bytes(skb, offset, &payload, sizeof(payload), 0);
	} else {
		read_base(udp, &old);
		diff = bpf_csum_diff(old.words, STAMP_BASE, payload.words, STAMP_BASE, 0);
		bpf_skb_store_bytes(skb, offset, &payload, STAMP_BASE, 0);
	}
	bpf_l4_csum_replace(skb, udp_offset(&found) + offsetof(struct udphdr, check), 0, diff, BPF_F_MARK_MANGLED_0);
	return bpf_redirect(skb->ifindex, 0);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
