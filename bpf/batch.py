"""Reads a whole map in a few system calls, straight into numpy: what makes a large map cost microseconds and
not seconds.

A reader keeps its buffers from one read to the next, because for a map of 64 entries making them costs as
much as the kernel's part; so what it returns is overwritten by its next read. A hash bucket that does not
fit the buffer is ENOSPC: the buffer grows and the read starts again, a bounded number of times. A kernel
without batches for the map's type (per-CPU arrays below 5.13) is said to the caller, who then walks it.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from typing import Final

import numpy as np
import numpy.typing as npt

from mapek.bpf import syscall

Bytes = npt.NDArray[np.uint8]
_SLICE: Final = 4096
_RETRIES: Final = 8
_ATTR: Final = struct.Struct("=QQQQIIQQ")
_COUNT: Final = struct.Struct("=I")
_NO_BATCH: Final = (-errno.EINVAL, -errno.EOPNOTSUPP, -524)


class BatchReader:
    """Buffers for one map. `keys` and `values` are flat and hold the last read's entries, packed from the
    start.

    Args:
        entries: the map's max_entries.
        value_bytes: what one value takes in user memory: all CPUs' rounded up values for a per-CPU map.
    """

    def __init__(self, name: str, entries: int, key_size: int, value_bytes: int) -> None:
        self._name, self._entries, self._key_size, self._value_bytes = name, entries, key_size, value_bytes
        # The token is a bucket number for hashes, a whole key for arrays.
        self._tokens = [ctypes.create_string_buffer(max(key_size, 8)) for _ in range(2)]
        self._token_at = [ctypes.addressof(token) for token in self._tokens]
        self._attr = bytearray(_ATTR.size)
        self._attr_view = (ctypes.c_char * _ATTR.size).from_buffer(self._attr)
        self._attr_at = ctypes.addressof(self._attr_view)
        self._allocate(min(entries, _SLICE))

    def _allocate(self, batch: int) -> None:
        # A batch beyond max_entries is the answer to a bucket that does not fit.
        self._batch, self._room = batch, max(self._entries, batch)
        self.keys: Bytes = np.zeros(self._room * self._key_size, np.uint8)
        self.values: Bytes = np.zeros(self._room * self._value_bytes, np.uint8)
        self._key_at, self._value_at = self.keys.ctypes.data, self.values.ctypes.data

    def read(self, fd: int) -> int:
        """Fill the buffers; returns how many entries, or -1 when the kernel has no batch for this map."""
        for _ in range(_RETRIES):
            n = self._read(fd)
            if n != -errno.ENOSPC:
                return n
            self._allocate(self._batch * 2)
        return -1

    def _read(self, fd: int) -> int:
        done, turn, token = 0, 0, 0
        while done < self._room:
            _ATTR.pack_into(
                self._attr, 0, token, self._token_at[turn], self._key_at + done * self._key_size,
                self._value_at + done * self._value_bytes, min(self._batch, self._room - done), fd, 0, 0,
            )  # fmt: skip
            result = syscall.bpf_at(syscall.MAP_LOOKUP_BATCH, self._attr_at, _ATTR.size)
            if result == -errno.ENOSPC:
                return result
            if result in _NO_BATCH:
                return -1
            if result not in (0, -errno.ENOENT):
                raise syscall.explain(-result, "read map", self._name)
            done += _COUNT.unpack_from(self._attr, 32)[0]
            # What the kernel gave as the end of this batch is the start of the next.
            token, turn = self._token_at[turn], 1 - turn
            if result == -errno.ENOENT:
                break
        return done
