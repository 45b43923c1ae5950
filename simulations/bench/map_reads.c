// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The yardstick for map reads: the same read in C with libbpf's batches, as fast as it is plainly written.
 * map_reads MAP_ID: each line on stdin holds a count, so many reads are timed, and their nanoseconds answered
 * on one line. Per-CPU values are summed, an mmapable array is copied from its memory, others are just read.
 */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/bpf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static struct bpf_map_info info;
static int fd, cpus;
static char *keys, *values, *sums;
static const char *memory;
static volatile uint64_t sink;

static void read_batches(void)
{
	uint64_t token[32];
	uint32_t done = 0, step = 4096;
	size_t value = cpus * ((info.value_size + 7) & ~7u);
	void *in = NULL;

	if (cpus == 1)
		value = info.value_size;
	for (;;) {
		uint32_t count = info.max_entries - done < step ? info.max_entries - done : step;

		int error = count ? bpf_map_lookup_batch(fd, in, token, keys + (size_t)done * info.key_size,
							 values + done * value, &count, NULL) : -ENOENT;
		if (error && error != -ENOENT) {
			fprintf(stderr, "batch: %s\n", strerror(-error));
			exit(1);
		}
		done += count;
		if (error)
			break;
		in = token;
	}
	if (cpus == 1)
		return;
	size_t words = info.value_size / 8;

	for (uint32_t i = 0; i < done; i++) {
		uint64_t *from = (uint64_t *)(values + i * value), *to = (uint64_t *)(sums + i * info.value_size);

		for (size_t w = 0; w < words; w++)
			to[w] = from[w];
		for (int cpu = 1; cpu < cpus; cpu++)
			for (size_t w = 0; w < words; w++)
				to[w] += from[cpu * words + w];
	}
	sink += *(uint64_t *)sums;
}

static void read_memory(void)
{
	memcpy(values, memory, (size_t)info.max_entries * info.value_size);
	sink += *(uint64_t *)values;
}

int main(int argc, char **argv)
{
	uint32_t size = sizeof(info);
	char line[32];

	fd = argc == 2 ? bpf_map_get_fd_by_id(atoi(argv[1])) : -1;
	if (fd < 0 || bpf_obj_get_info_by_fd(fd, &info, &size)) {
		fprintf(stderr, "no such map\n");
		return 1;
	}
	cpus = 1;
	if (info.type == BPF_MAP_TYPE_PERCPU_ARRAY || info.type == BPF_MAP_TYPE_PERCPU_HASH)
		cpus = libbpf_num_possible_cpus();
	keys = calloc(info.max_entries, info.key_size);
	values = calloc((size_t)info.max_entries * cpus, info.value_size);
	sums = calloc(info.max_entries, info.value_size);
	if (cpus < 1 || !keys || !values || !sums)
		return 1;
	if (info.map_flags & BPF_F_MMAPABLE) {
		memory = mmap(NULL, (size_t)info.max_entries * info.value_size, PROT_READ, MAP_SHARED, fd, 0);
		if (memory == MAP_FAILED)
			return 1;
	}
	while (fgets(line, sizeof(line), stdin)) {
		for (int left = atoi(line); left > 0; left--) {
			struct timespec start, end;

			clock_gettime(CLOCK_MONOTONIC, &start);
			if (memory)
				read_memory();
			else
				read_batches();
			clock_gettime(CLOCK_MONOTONIC, &end);
			printf("%lld ", (end.tv_sec - start.tv_sec) * 1000000000LL + end.tv_nsec - start.tv_nsec);
		}
		printf("\n");
		fflush(stdout);
	}
	return 0;
}
