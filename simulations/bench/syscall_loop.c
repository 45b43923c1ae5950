// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Makes system calls as fast as it can: read of one byte from /dev/zero, and getppid.
 * Each line on stdin is "WHICH SLICES CALLS": WHICH 0 for read, 1 for getppid. Answered on one line with the picoseconds
 * that a call of each slice took, by this thread's CPU time: whoever else gets the core does not count.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static uint64_t now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &at);
	return at.tv_sec * 1000000000ull + at.tv_nsec;
}

int main(void)
{
	int which, slices, calls, zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);

	if (zero < 0) {
		perror("/dev/zero");
		return 1;
	}
	while (scanf("%d %d %d", &which, &slices, &calls) == 3 && slices > 0 && calls > 0) {
		for (int slice = 0; slice < slices; slice++) {
			uint64_t start = now();
			char byte;

			for (int call = 0; call < calls; call++)
				if (which ? syscall(SYS_getppid) < 0 : syscall(SYS_read, zero, &byte, 1) != 1)
					return 1;
			printf("%llu ", (unsigned long long)((now() - start) * 1000 / calls));
		}
		printf("\n");
		fflush(stdout);
	}
	return 0;
}
