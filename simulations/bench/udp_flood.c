// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Sends UDP datagrams of 18 bytes (frames of 60) as fast as one core can: udp_flood ADDRESS PORT CPU.
 * Each line on stdin is "SLICES DATAGRAMS"; answered on one line with the picoseconds that a datagram of each slice took.
 * Over a veth the receiving side runs in the sender's own softirq, on this core, so that the time is of both.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define BATCH 64

static uint64_t now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000ull + at.tv_nsec;
}

int main(int count, char **words)
{
	struct sockaddr_in to = { .sin_family = AF_INET };
	static char payload[18];
	struct iovec part = { payload, sizeof(payload) };
	struct mmsghdr messages[BATCH];
	int slices, datagrams, sock;
	cpu_set_t cpus;

	if (count != 4 || !inet_aton(words[1], &to.sin_addr))
		return 2;
	to.sin_port = htons(atoi(words[2]));
	CPU_ZERO(&cpus);
	CPU_SET(atoi(words[3]), &cpus);
	sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (sched_setaffinity(0, sizeof(cpus), &cpus) || sock < 0 ||
	    connect(sock, (struct sockaddr *)&to, sizeof(to))) {
		perror("udp_flood");
		return 1;
	}
	memset(messages, 0, sizeof(messages));
	for (int i = 0; i < BATCH; i++) {
		messages[i].msg_hdr.msg_iov = &part;
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	while (scanf("%d %d", &slices, &datagrams) == 2 && slices > 0 && datagrams >= BATCH) {
		for (int slice = 0; slice < slices; slice++) {
			uint64_t start = now();
			int sent = 0;

			while (sent < datagrams) {
				int some = sendmmsg(sock, messages, BATCH, 0);

				if (some < 0) {
					perror("sendmmsg");
					return 1;
				}
				sent += some;
			}
			printf("%llu ", (unsigned long long)((now() - start) * 1000 / sent));
		}
		printf("\n");
		fflush(stdout);
	}
	return 0;
}
