/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* linux/if.h wants the libc's sockaddr; there is no libc on this target. */
#ifndef __SYS_SOCKET_BPF_H
#define __SYS_SOCKET_BPF_H
struct sockaddr {
	unsigned short sa_family;
	char sa_data[14];
};
#endif
