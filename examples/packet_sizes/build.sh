#!/bin/sh
# packet_sizes.bpf.c -> packet_sizes.o, for this machine's byte order, with the repository's headers only.
set -eu
cd "$(dirname "$0")"
clang -target bpf -mcpu=v3 -O2 -g -std=gnu11 -Wall -Wextra -Werror -nostdinc -isystem ../../bpf/include \
    -I ../../bpf/programs -c packet_sizes.bpf.c -o packet_sizes.o
llvm-strip -g packet_sizes.o    # DWARF goes, BTF stays: maps, types and source lines
