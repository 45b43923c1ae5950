/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Nothing to override: linux/swab.h falls back to compiler builtins. */
