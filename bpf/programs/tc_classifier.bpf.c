// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Counts packets, bytes and drops per traffic class in both directions, by a table that is replaced as a whole. Whatever
 * it does not drop goes on to the next program. A merged (GSO) packet counts as what it is on the wire: its segments,
 * each with headers. What is cut short or malformed has no protocol, DSCP or ports.
 */
#include <linux/pkt_cls.h>
#include <linux/stddef.h>
#include <linux/udp.h>
#include "link_header.h"
#include "packet.h"
#include "tc_classifier.h"

#define L4_PORTS ((1ULL << IPPROTO_TCP) | (1ULL << IPPROTO_UDP) | (1ULL << IPPROTO_DCCP))
/* Headers longer than this are not looked for in what an skb keeps outside its linear part. */
#define PULL 256
/* Of the byte with a TCP header's length. */
#define TCP_DOFF 12

struct class_tables {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(key_size, sizeof(__u32));
	/* By size: of the types of an inner map clang 14 keeps the names only. */
	__uint(value_size, sizeof(struct class_table));
};

/*
 * The table in use. The kernel's update of an outer map returns when no program uses the former inner one any more, so
 * that a place to count in can be given to another class.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
	__array(values, struct class_tables);
} table SEC(".maps");

/* By CPU, and mapped into user space: reading costs no system call on any kernel. max_entries: the possible CPUs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct class_counters);
} counters SEC(".maps");

/*
 * What a packet's headers say, in one number: protocol (9 bits), DSCP (7), whether this is no later fragment, whether
 * a header was malformed or reached out of what could be read, and where the network header ends (14 bits).
 */
#define FIELD_PROTOCOL(fields) ((fields) & 0x1ff)
#define FIELD_DSCP(fields) ((fields) >> 9 & 0x7f)
#define FIELD_FIRST 16
#define FIELD_PORTS (1U << FIELD_FIRST)
#define FIELD_CUT (1U << 17)
#define FIELD_END(fields) ((fields) >> 18)
#define FIELDS(protocol, dscp) ((protocol) | (dscp) << 9)
#define NO_FIELDS FIELDS(CLASS_NOT_IP, CLASS_NO_DSCP)

struct ports {
	__be16 source;
	__be16 destination;
};

static __always_inline int carries_ports(__u32 protocol)
{
	if (protocol < 64)
		return L4_PORTS >> protocol & 1;
	return protocol == IPPROTO_SCTP || protocol == IPPROTO_UDPLITE;
}

/* A global function: the verifier walks it by itself and once, which makes loading many times faster. */
__attribute__((noinline)) int look(struct __sk_buff *skb)
{
	void *start = (void *)(long)skb->data, *end = (void *)(long)skb->data_end, *at = start;
	int first = 0, protocol;
	__u32 tags, dscp;
	__u16 kind;

	kind = link_header ? parse_ethernet(&at, end, &tags) : bpf_ntohs(skb->protocol);
	if (kind == ETH_P_IP) {
		struct iphdr *ip = at;

		protocol = parse_ipv4(&at, end, &first);
		if (protocol < 0)
			return NO_FIELDS | FIELD_CUT;
		dscp = ip->tos >> 2;
	} else if (kind == ETH_P_IPV6) {
		__be16 *class = at;

		protocol = parse_ipv6(&at, end, &first);
		if (protocol < 0)
			return NO_FIELDS | FIELD_CUT;
		dscp = bpf_ntohs(*class) >> 6 & 0x3f;
	} else {
		return NO_FIELDS | (kind ? 0 : FIELD_CUT);
	}
	return FIELDS(protocol & 0xff, dscp) | first << FIELD_FIRST | (__u32)(at - start) << 18;
}

/* The verifier of old kernels has no bound for what was swapped, and the compiler knows one too well to keep a mask. */
static __always_inline __u64 port_number(__be16 port)
{
	__u64 number = bpf_ntohs(port);

	asm volatile("%0 &= 0xffff" : "+r"(number));
	return number;
}

static __always_inline __u64 matching(const struct class_table *classes, __u32 fields, const struct ports *ports,
					   __u32 mark)
{
	__u32 protocol = FIELD_PROTOCOL(fields), dscp = FIELD_DSCP(fields);
	__u64 found = classes->any_mark, differs;

	for (__u32 i = 0; i < CLASSES; i++) {
		if (i >= classes->marks_used)
			break;
		differs = (mark & classes->marks[i].mask) ^ classes->marks[i].value;
		/* All ones if nothing differs; a branch here would double the verifier's work with each mark. */
		found |= classes->marks[i].classes & -((differs - 1) >> 63);
	}
	if (protocol > CLASS_NOT_IP || dscp > CLASS_NO_DSCP)
		return 0;
	found &= classes->protocol[protocol] & classes->dscp[dscp];
	if (fields & FIELD_PORTS) {
		const struct class_ports *source = &classes->ports[classes->range[port_number(ports->source)]];
		const struct class_ports *destination =
			&classes->ports[classes->range[port_number(ports->destination)]];

		found &= source->source & destination->destination & (source->either | destination->either);
	} else {
		found &= classes->portless;
	}
	return found;
}

/* Bytes in front of the payload of a merged packet, 0 if that is not known. */
static __always_inline __u32 headers_of(struct __sk_buff *skb, __u32 fields)
{
	__u32 end = FIELD_END(fields);
	__u8 offset;

	if (!(fields & FIELD_PORTS))
		return 0;
	if (FIELD_PROTOCOL(fields) != IPPROTO_TCP)
		return end + sizeof(struct udphdr);
	if (bpf_skb_load_bytes(skb, end + TCP_DOFF, &offset, sizeof(offset)))
		return 0;
	return end + (offset >> 4) * 4;
}

static __always_inline void count(struct __sk_buff *skb, struct class_counter *counter, __u32 fields, int dropped)
{
	__u32 segments = 1, bytes = skb->len, size = skb->gso_size;

	if (size) {
		__u32 headers = headers_of(skb, fields);

		segments = skb->gso_segs;
		/* A guest or a tun device may leave this to be found out. */
		if (!segments)
			segments = (bytes - headers + size - 1) / size;
		bytes += (segments - 1) * headers;
	}
	/* The tag that hardware keeps apart is on the wire all the same. */
	if (skb->vlan_present)
		bytes += segments * 4;
	/* Nothing else counts on this CPU meanwhile: softirqs are off on the way out, and on the way in this is one. */
	counter->packets += segments;
	counter->bytes += bytes;
	if (dropped)
		counter->drops += segments;
}

static __always_inline int classify(struct __sk_buff *skb, enum class_direction direction)
{
	__u32 cpu = bpf_get_smp_processor_id(), zero = 0, slot = CLASS_OTHER, fields, pull;
	struct class_counters *counted = bpf_map_lookup_elem(&counters, &cpu);
	const struct class_table *classes;
	struct ports ports;
	__u64 match = 0;
	int drop = 0;
	void *inner;

	if (!counted)
		return TC_ACT_UNSPEC;
	fields = look(skb);
	pull = skb->len < PULL ? skb->len : PULL;
	/* Only for what it cannot read does a packet have to be changed. */
	if (fields & FIELD_CUT && skb->data_end - skb->data < pull && !bpf_skb_pull_data(skb, pull))
		fields = look(skb);
	if (!carries_ports(FIELD_PROTOCOL(fields)) ||
	    (fields & FIELD_PORTS && bpf_skb_load_bytes(skb, FIELD_END(fields), &ports, sizeof(ports))))
		fields &= ~FIELD_PORTS;
	inner = bpf_map_lookup_elem(&table, &zero);
	classes = inner ? bpf_map_lookup_elem(inner, &zero) : NULL;
	if (classes)
		match = matching(classes, fields, &ports, skb->mark);
	if (match) {
		match &= -match;
		slot = classes->slot[match * CLASS_DE_BRUIJN >> 58];
		drop = !!(classes->drop & match);
		/* Or the compiler compares a copy, and the verifier has no bound for what is used. */
		asm volatile("" : "+r"(slot));
		if (slot > CLASS_OTHER)
			slot = CLASS_OTHER;
	}
	count(skb, &counted->at[direction][slot], fields, drop);
	return drop ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

SEC("tc")
int tc_class_in(struct __sk_buff *skb)
{
	return classify(skb, CLASS_INGRESS);
}

SEC("tc")
int tc_class_out(struct __sk_buff *skb)
{
	return classify(skb, CLASS_EGRESS);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
