// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * net_events for kernels without BTF: counts what the tracepoints tell by themselves, at the offsets that their format
 * files have on the running kernel. They do not tell the namespace, so it counts those of all, and no interfaces.
 */
#include <bpf/bpf_endian.h>
#include <linux/in.h>
#include <linux/stddef.h>
#include <linux/types.h>
#include "net_events.h"

/* An offset of -1: this kernel does not tell. `saddr` may be a whole socket address, of 28 bytes, as `saddr_size` says. */
struct tcp_format {
	__s16 family;
	__s16 state;
	__s16 sport;
	__s16 dport;
	__s16 saddr;
	__s16 daddr;
	__s16 saddr_v6;
	__s16 daddr_v6;
	__s16 saddr_size;
	__s16 pad;
};
_Static_assert(sizeof(struct tcp_format) == 20, "shared with user space");

const volatile struct tcp_format formats[NET_TCP_EVENTS] = {};
const volatile __s32 drop_reason = -1;
const volatile __s32 drop_protocol = -1;

#define SOCKADDR 28

struct address {
	__u16 family;
	__be16 port;
	/* IPv4 here, IPv6 behind the flow label that comes first there */
	__u8 four[4];
	__u8 six[16];
};

static __always_inline void get(void *to, __u32 size, const void *ctx, __s32 offset)
{
	if (offset >= 0)
		bpf_probe_read_kernel(to, size, ctx + offset);
}

static __always_inline __u32 family_told(const void *ctx, const volatile struct tcp_format *format)
{
	__u16 family = 0;
	__u32 six[4] = {};

	if (format->family < 0 && format->saddr_size != SOCKADDR) {
		/* Before 5.13 it is not told, but an IPv4 address stands in the IPv6 field as a mapped one. */
		if (format->saddr_v6 < 0)
			return NET_OTHER_FAMILY;
		get(six, sizeof(six), ctx, format->saddr_v6);
		return !six[0] && !six[1] && six[2] == bpf_htonl(0xffff) ? NET_IPV4 : NET_IPV6;
	}
	/* A socket address begins with its family. */
	get(&family, sizeof(family), ctx, format->saddr_size == SOCKADDR ? format->saddr : format->family);
	return family_of(family);
}

static __always_inline void fill(struct net_sample *record, const void *ctx, const volatile struct tcp_format *format)
{
	__u32 state = 0;

	record->protocol = IPPROTO_TCP;
	get(&state, sizeof(state), ctx, format->state);
	record->state = state;
	if (format->saddr_size == SOCKADDR) {
		struct address source = {}, destination = {};

		get(&source, sizeof(source), ctx, format->saddr);
		get(&destination, sizeof(destination), ctx, format->daddr);
		record->sport = bpf_ntohs(source.port);
		record->dport = bpf_ntohs(destination.port);
		if (record->family == NET_IPV6) {
			__builtin_memcpy(record->saddr, source.six, 16);
			__builtin_memcpy(record->daddr, destination.six, 16);
		} else {
			__builtin_memcpy(record->saddr, source.four, 4);
			__builtin_memcpy(record->daddr, destination.four, 4);
		}
		return;
	}
	get(&record->sport, 2, ctx, format->sport);
	get(&record->dport, 2, ctx, format->dport);
	if (record->family == NET_IPV6) {
		get(&record->saddr, 16, ctx, format->saddr_v6);
		get(&record->daddr, 16, ctx, format->daddr_v6);
	} else {
		get(&record->saddr, 4, ctx, format->saddr);
		get(&record->daddr, 4, ctx, format->daddr);
	}
}

static __always_inline int tcp_event(const void *ctx, enum net_event event)
{
	struct net_counts *here = counts_here();
	struct net_sample *record;
	__u32 family;

	if (!here)
		return 0;
	family = family_told(ctx, &formats[event]);
	count_tcp(here, event, family, 1);
	record = sample_begin(here, event);
	if (record) {
		record->family = family;
		fill(record, ctx, &formats[event]);
		bpf_ringbuf_submit(record, 0);
	}
	return 0;
}

SEC("tp/tcp/tcp_retransmit_skb")
int net_retransmit(void *ctx)
{
	return tcp_event(ctx, NET_RETRANSMIT);
}

SEC("tp/tcp/tcp_retransmit_synack")
int net_synack(void *ctx)
{
	return tcp_event(ctx, NET_RETRANSMIT_SYNACK);
}

SEC("tp/tcp/tcp_send_reset")
int net_reset_out(void *ctx)
{
	return tcp_event(ctx, NET_RESET_SENT);
}

SEC("tp/tcp/tcp_receive_reset")
int net_reset_in(void *ctx)
{
	return tcp_event(ctx, NET_RESET_RECEIVED);
}

SEC("tp/skb/kfree_skb")
int net_drop(void *ctx)
{
	struct net_counts *here = counts_here();
	struct net_sample *record;
	__u32 reason = NET_NO_REASON;

	if (!here)
		return 0;
	get(&reason, sizeof(reason), ctx, drop_reason);
	count_drop(here, reason);
	record = sample_begin(here, NET_DROP);
	if (record) {
		record->reason = reason;
		record->family = NET_OTHER_FAMILY;
		get(&record->ethertype, 2, ctx, drop_protocol);
		bpf_ringbuf_submit(record, 0);
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
