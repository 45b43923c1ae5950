/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The target is BPF, not the build machine: the generic header is right on every host. */
#include <asm-generic/types.h>
