"""Capabilities: read from /proc, and let go of; named as in linux/capability.h.

The kernel keeps them for each thread, and no thread can take them from another. So what is to hold for the whole
process is done before it has threads, each thread that lives long begins with `hold_only`, and `of_threads` shows
what came of it. Whatever is let go of cannot be had back.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import threading
from collections.abc import Callable, Collection
from typing import Final, TypeVar

from mapek.bpf.apart import apart
from mapek.errors import PrivilegeError

T = TypeVar("T")

_NAMES: Final = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
    "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
    "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
    "PERFMON BPF CHECKPOINT_RESTORE"
).split()
_VERSION_3: Final = 0x20080522
_SETPCAP: Final = 8
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 23, 24, 38
_SETS: Final = {"permitted": "CapPrm:", "effective": "CapEff:", "ambient": "CapAmb:", "bounding": "CapBnd:"}


def decode(mask: int) -> frozenset[str]:
    """Names ("CAP_BPF") of the bits set in a capability mask; bits without a name are left out."""
    return frozenset(f"CAP_{name}" for bit, name in enumerate(_NAMES) if mask >> bit & 1)


def encode(names: Collection[str]) -> int:
    """The mask of capabilities by name. Raises ValueError for a name that is none.

    >>> decode(encode(["CAP_BPF"]))
    frozenset({'CAP_BPF'})
    """
    return sum(1 << _NAMES.index(name.removeprefix("CAP_")) for name in set(names))


def effective() -> frozenset[str]:
    """The effective set of the calling thread; empty where /proc is not mounted."""
    return decode(_mask("thread-self", "effective"))


def permitted() -> frozenset[str]:
    """The permitted set of the calling thread, which bounds what it may ever make effective; empty without /proc."""
    return decode(_mask("thread-self", "permitted"))


def of_threads() -> dict[str, frozenset[str]]:
    """The permitted set of each thread of this process, by its id and Python's name for it ("4711 mapek-prober")."""
    names = {str(one.native_id): one.name for one in threading.enumerate()}
    return {
        f"{thread} {names.get(thread, '')}".strip(): decode(_mask(f"self/task/{thread}", "permitted"))
        for thread in os.listdir("/proc/self/task")
    }


def hold_only(names: Collection[str]) -> None:
    """Let the calling thread go of every capability but `names`, for good; those that it lacks it does not get.

    Threads and programs that it starts from now on have no more than it: the ambient and the inheritable set become
    empty, so that a program that is executed begins with nothing unless root executes it. The bounding set goes too
    where the thread may (CAP_SETPCAP), else `no_new_privileges` does the same.

    Raises:
        ValueError: one of the names is none. PrivilegeError: the kernel refused, which it should never do.
    """
    wanted = encode(names)
    if _mask("thread-self", "effective") >> _SETPCAP & 1:
        for bit in range(64):
            if not wanted >> bit & 1 and _prctl(_PR_CAPBSET_READ, bit) == 1:
                _prctl(_PR_CAPBSET_DROP, bit)
    kept = wanted & _mask("thread-self", "permitted")
    low, high = kept & 0xFFFFFFFF, kept >> 32
    header = ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0), 8)
    data = ctypes.create_string_buffer(struct.pack("=6I", low, low, 0, high, high, 0), 24)
    # An ambient capability that is no longer inheritable is lowered by the kernel itself.
    if _libc().capset(header, data) != 0:
        why = os.strerror(ctypes.get_errno())
        raise PrivilegeError("let go of", "capabilities", why, "look for a seccomp rule that forbids capset")


def hold_none() -> None:
    """`hold_only` for a thread that needs nothing of the kernel.

    CAP_IPC_LOCK stays where locked memory is limited: if the process locks its memory (mlockall), no thread without it
    could allocate beyond the limit. Raises as `hold_only`.
    """
    limited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY
    hold_only(("CAP_IPC_LOCK",) if limited else ())


def without_any(call: Callable[[], T]) -> T:
    """The result of `call()`, run in a thread that did `hold_none`: threads that it starts have no more than it.

    For what starts threads that live as long as the process, such as importing numpy.
    """

    def run() -> T:
        hold_none()
        return call()

    return apart("mapek-bare", run)


def no_new_privileges() -> None:
    """Nothing that the calling thread, or a thread or program that it starts, ever executes gains a privilege by it.

    For good, from kernel 3.5. Raises PrivilegeError if the kernel refuses.
    """
    if _prctl(_PR_SET_NO_NEW_PRIVS, 1) != 0:
        raise PrivilegeError(
            "set", "no_new_privs", os.strerror(ctypes.get_errno()), "use kernel 3.5 or newer"
        )


def _mask(of: str, which: str) -> int:
    try:
        with open(f"/proc/{of}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith(_SETS[which]):
                    return int(line.split()[1], 16)
    except (OSError, ValueError, IndexError):
        pass
    return 0


def _prctl(option: int, argument: int) -> int:
    result: int = _libc().prctl(option, ctypes.c_ulong(argument), 0, 0, 0)
    return result


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)
    libc.prctl.restype = ctypes.c_int
    libc.capset.argtypes, libc.capset.restype = (ctypes.c_void_p, ctypes.c_void_p), ctypes.c_int
    return libc
