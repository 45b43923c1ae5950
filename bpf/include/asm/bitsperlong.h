/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* BPF registers are 64 bits wide whatever the node's CPU is. */
#ifndef __ASM_BPF_BITSPERLONG_H
#define __ASM_BPF_BITSPERLONG_H
#define __BITS_PER_LONG 64
#include <asm-generic/bitsperlong.h>
#endif
