/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* One source builds bpfel and bpfeb: the byte order is the target's, not the host's. */
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#include <linux/byteorder/big_endian.h>
#else
#include <linux/byteorder/little_endian.h>
#endif
