/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Sending: the probe that user space wrote is found on its way out, numbered, dated and authenticated.
 */
#ifndef STAMP_SEND_H
#define STAMP_SEND_H

#include <linux/pkt_cls.h>
#include "siphash.h"
#include "stamp_plain.h"
#include "watch_dog.h"

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

	__u32 udp_at = link_header + udp_offset(&found), offset = udp_at + sizeof(struct udphdr);
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
	bpf_l4_csum_replace(skb, udp_at + offsetof(struct udphdr, check), 0, diff, BPF_F_MARK_MANGLED_0);
	if (timers && (config->flags & PATH_WATCH) && !(state->marks & MARK_SILENT))
		arm(path, now, config->silence_ns);
	return TC_ACT_UNSPEC;
}

#endif
