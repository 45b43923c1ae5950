"""The few system calls that Python 3.11 has no wrapper for, typed, through ctypes on the C library.

ctypes releases the GIL during each call. Trade-off: constants are written out here, because no module of
the standard library of 3.11 has them; they are the kernel's uapi and do not change.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

CLONE_NEWNS: Final = 0x00020000
CLONE_FS: Final = 0x00000200
CLONE_NEWNET: Final = 0x40000000
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_TIMERSLACK: Final = 29
_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2
_CLOCK_MONOTONIC: Final = 1
_TIMER_ABSTIME: Final = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


_lib = ctypes.CDLL(None, use_errno=True)
_lib.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_lib.setns.restype = ctypes.c_int
_lib.unshare.argtypes = (ctypes.c_int,)
_lib.unshare.restype = ctypes.c_int
_lib.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_lib.mount.restype = ctypes.c_int
_lib.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_lib.prctl.restype = ctypes.c_int
_lib.mlockall.argtypes = (ctypes.c_int,)
_lib.mlockall.restype = ctypes.c_int
_lib.clock_nanosleep.argtypes = (
    ctypes.c_int,
    ctypes.c_int,
    ctypes.POINTER(_Timespec),
    ctypes.POINTER(_Timespec),
)
_lib.clock_nanosleep.restype = ctypes.c_int


def _check(result: int, call: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")


def setns(fd: int, kind: int) -> None:
    """Move the calling *thread* into the namespace `fd`; for mounts, `unshare(CLONE_FS)` first."""
    _check(_lib.setns(fd, kind), "setns")


def unshare(flags: int) -> None:
    """Give the calling thread new namespaces (`CLONE_NEW*`) or an unshared fs context (`CLONE_FS`)."""
    _check(_lib.unshare(flags), "unshare")


def mount(source: str, target: str, fstype: str, flags: int = 0, data: str = "") -> None:
    """mount(2); raises OSError."""
    result = _lib.mount(source.encode(), target.encode(), fstype.encode(), flags, data.encode())
    _check(result, f"mount {fstype} on {target}")


def die_with_parent(signum: int) -> None:
    """Ask for `signum` when the thread that forked this process ends."""
    _check(_lib.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def name_thread(name: str) -> None:
    """Set the comm of the calling thread, as seen in ps (15 bytes)."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _check(_lib.prctl(_PR_SET_NAME, ctypes.addressof(buffer), 0, 0, 0), "prctl(PR_SET_NAME)")


def timer_slack(nanoseconds: int) -> None:
    """Let timers of this thread fire at most so late on purpose (real-time threads have none)."""
    _check(_lib.prctl(_PR_SET_TIMERSLACK, nanoseconds, 0, 0, 0), "prctl(PR_SET_TIMERSLACK)")


def lock_memory() -> None:
    """Keep all pages of this process resident; raises OSError without CAP_IPC_LOCK."""
    _check(_lib.mlockall(_MCL_CURRENT | _MCL_FUTURE), "mlockall")


def sleep_until(time_ns: int) -> None:
    """Sleep until CLOCK_MONOTONIC reaches `time_ns`; a time in the past returns at once."""
    when = _Timespec(time_ns // 1_000_000_000, time_ns % 1_000_000_000)
    while True:
        # clock_nanosleep returns the error instead of setting errno.
        code = int(_lib.clock_nanosleep(_CLOCK_MONOTONIC, _TIMER_ABSTIME, ctypes.byref(when), None))
        if code == 0:
            return
        if code != 4:  # EINTR
            raise OSError(code, f"clock_nanosleep: {os.strerror(code)}")


def enter(pid: int) -> None:
    """Move this single-threaded process into the network and mount namespaces of `pid`."""
    with open(f"/proc/{pid}/ns/net", "rb") as net, open(f"/proc/{pid}/ns/mnt", "rb") as mnt:
        setns(net.fileno(), CLONE_NEWNET)
        unshare(CLONE_FS)
        setns(mnt.fileno(), CLONE_NEWNS)


def real_time(priority: int) -> bool:
    """Run this process at SCHED_FIFO `priority` with locked memory; False where that is not permitted."""
    timer_slack(1)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
        lock_memory()
    except PermissionError:
        return False
    except OSError:
        return False
    return True
