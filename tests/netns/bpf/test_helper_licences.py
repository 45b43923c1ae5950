"""Which helpers only serve GPL-compatible programs: the table against this kernel's own answer, helper by helper."""

from __future__ import annotations

import ctypes
import os
import struct

import pytest

from mapek.bpf import helpers, syscall

pytestmark = [pytest.mark.netns, pytest.mark.kernel]

KINDS = [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 21, 22, 23, 25, 30, 31]
NOT_HERE = ("cannot use", "unknown func", "invalid func", "not allowed", "unavailable")
SYSCALL, SLEEPABLE = 31, 1 << 4
# Only programs that are attached to a place of the kernel's code may call these, or the kernel lacks what they are for.
MOST_UNASKED = 60


def ask(kind: int, number: int) -> str:
    """What the verifier of this kernel says to a program of this type under the MIT licence that only calls it."""
    code = ctypes.create_string_buffer(
        struct.pack("=BBhi", 0x85, 0, 0, number)
        + struct.pack("=BBhi", 0xB7, 0, 0, 0)
        + struct.pack("=BBhi", 0x95, 0, 0, 0)
    )
    licence, log = ctypes.create_string_buffer(b"MIT"), ctypes.create_string_buffer(65536)
    attr = struct.pack(
        "=IIQQIIQII",
        kind,
        3,
        ctypes.addressof(code),
        ctypes.addressof(licence),
        1,
        65536,
        ctypes.addressof(log),
        0,
        SLEEPABLE if kind == SYSCALL else 0,
    )
    fd = syscall.bpf_raw(syscall.PROG_LOAD, attr + bytes(64))
    if fd >= 0:
        os.close(fd)
        return "loaded"
    return log.value.decode("utf-8", "replace")


def test_the_licence_table_is_the_kernels():
    wrong, unasked = [], []
    for number, name in enumerate(helpers.NAMES[1:], 1):
        answers = [ask(kind, number) for kind in KINDS]
        said = [one for one in answers if one and not any(no in one for no in NOT_HERE)]
        if not said and any(f"unknown#{number}" in one for one in answers):
            continue
        if not said:
            unasked.append(name)
        elif any("GPL" in one for one in said) != (name in helpers.GPL_ONLY):
            wrong.append(name)
    assert wrong == []
    assert len(unasked) < MOST_UNASKED, unasked
