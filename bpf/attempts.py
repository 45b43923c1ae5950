"""What probes are made of: a map or a program that the kernel is asked to make, and what its answer means.

Nothing stays: what was made is closed at once. A probe asks the kernel and not its version number, because
distributions backport.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import os
import struct
import sys
from collections.abc import Iterator
from typing import Final

from mapek.bpf import syscall

UNSUPPORTED: Final = (-errno.EINVAL, -errno.EOPNOTSUPP, -errno.ENOSYS, -524)
"""What a kernel says to what it does not know."""

Code = tuple[int, int, int, int]
"""An instruction: code, registers (see `registers`), offset, immediate."""

RETURN_2: Final[tuple[Code, ...]] = ((0xB7, 0, 0, 2), (0x95, 0, 0, 0))


class Answer(enum.StrEnum):
    """What a probe found out."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


def registers(to: int, source: int) -> int:
    """The byte of an instruction that holds its two registers, in this machine's order."""
    return to | source << 4 if sys.byteorder == "little" else to << 4 | source


def judge(result: int, yes: tuple[int, ...] = ()) -> Answer:
    """YES for success or one of `yes` (errors that only a kernel with the feature gives), NO if it does not
    know it."""
    if result >= 0 or result in yes:
        return Answer.YES
    return Answer.NO if result in UNSUPPORTED else Answer.UNKNOWN


def hides_helper(log: str) -> bool:
    """Does the verifier say that this kernel, or this type of program, has no such helper?"""
    return any(words in log for words in ("unknown func", "invalid func", "cannot use helper"))


@contextlib.contextmanager
def new_map(
    kind: int,
    key: int,
    value: int,
    entries: int,
    flags: int = 0,
    *,
    inner: int = 0,
    btf: tuple[int, int] = (0, 0),
) -> Iterator[int]:
    """A fresh map's fd, or the negative errno; closed afterwards.

    Args:
        inner: fd of a map as those that a map of maps holds.
        btf: fd of a BTF, and the id there of the type of key and value.
    """
    attr = struct.pack("=6I20x4I", kind, key, value, entries, flags, inner, 0, btf[0], btf[1], btf[1])
    fd = syscall.bpf_raw(syscall.MAP_CREATE, attr)
    try:
        yield fd
    finally:
        if fd >= 0:
            os.close(fd)


@contextlib.contextmanager
def new_program(kind: int, *code: Code, attach: tuple[int, int] = (0, 0)) -> Iterator[tuple[int, str]]:
    """A freshly loaded program's fd or negative errno, and the verifier's log; `attach` is the attach type and
    BTF id."""
    held = ctypes.create_string_buffer(b"".join(struct.pack("=BBhi", *one) for one in code))
    license_ = ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(4096)
    attr = struct.pack(
        "=IIQQIIQII", kind, len(code), ctypes.addressof(held), ctypes.addressof(license_), 1, len(log),
        ctypes.addressof(log), 0, 0,
    )  # fmt: skip
    kind_at, btf_id = attach
    fd = syscall.bpf_raw(syscall.PROG_LOAD, attr + struct.pack("=20xI36xII", kind_at, btf_id, 0))
    try:
        yield fd, log.value.decode("utf-8", "replace")
    finally:
        if fd >= 0:
            os.close(fd)
