/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The few members of kernel structs that our tracing programs read, instead of the 100 000 lines of a vmlinux.h. Only
 * names and types matter: libbpf puts in where a member lies on the running kernel (CO-RE), so a struct here may be
 * short and in another order. A name that a kernel lacks is an error only where it is read: ask bpf_core_field_exists.
 * A flavour (name___suffix) is another shape of the same struct. Including this makes a program need the kernel's BTF.
 */
#ifndef MAPEK_CORE_H
#define MAPEK_CORE_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct net_device {
	int ifindex;
	possible_net_t nd_net;
};

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
};

struct sock {
	struct sock_common __sk_common;
};

struct sk_buff {
	struct net_device *dev;
	struct sock *sk;
	unsigned int len;
	__be16 protocol;
	__u16 transport_header;
	__u16 network_header;
	__u16 mac_header;
	unsigned char *head;
};

struct task_struct {
	int pid;
	int tgid;
};

#pragma clang attribute pop

#endif
