"""How this process holds memory: what loading programs took for a moment is not to be held for a lifetime.

By glibc's defaults it would be: a buffer of megabytes (the kernel's BTF), freed once, teaches malloc to take the next
ones from the heap of the thread, and the end of such a heap is never given back.
"""

from __future__ import annotations

import ctypes
from typing import Final

_M_MMAP_THRESHOLD: Final = -3
_MMAPPED: Final = 256 << 10
"""From so many bytes on a block is a mapping of its own, which ends when it is freed."""


def hold_little() -> None:
    """To be called before anything is loaded. Does nothing where the C library has no such switch."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAPPED)


def give_back() -> None:
    """Give the kernel all whole pages that are free; those that are locked stay."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(ctypes.c_size_t(0))
