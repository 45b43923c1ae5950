"""Reads files that others put there or name: whole, and neither without end nor without a limit."""

from __future__ import annotations

import os
import stat


def read_regular(path: str | os.PathLike[str], most: int) -> bytes:
    """What is in the regular file at `path`, a fifo or a device is none.

    Raises OSError, and ValueError for what is no regular file or has more than `most` bytes.
    """
    # O_NONBLOCK: a fifo in the place of a file must not hang the caller.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("not a regular file")
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most} bytes")
    return data


def reason(error: OSError | ValueError) -> str:
    """Why it failed, without the path: that is in the message already."""
    return getattr(error, "strerror", None) or str(error)
