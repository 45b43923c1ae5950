"""Real-time priority and locked memory for the process that runs the loop: an option, never a need.

SCHED_FIFO is not inherited (SCHED_RESET_ON_FORK), so worker threads and children stay ordinary. Pages are
locked as they are touched (MCL_ONFAULT, kernel 4.4): locking all that is mapped would lock the stacks of
threads that never use them. Limits do as well as capabilities (RLIMIT_RTPRIO, RLIMIT_MEMLOCK).
"""

from __future__ import annotations

import ctypes
import os
import resource
from contextlib import suppress
from typing import Final, Literal

from mapek.cli import memory
from mapek.errors import PrivilegeError

PRIORITY: Final = 30
CAPABILITIES: Final = frozenset(("CAP_SYS_NICE", "CAP_IPC_LOCK", "CAP_SYS_RESOURCE"))
"""What `enable` makes use of where it is there."""
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
LOCKED: Final = "fifo"
"""What `enable` says when it could do both."""


def enable(wanted: Literal["auto"] | bool) -> str:
    """Make this process real-time as far as it may; says in words how far that was.

    Raises PrivilegeError if `wanted` is True and it may not.
    """
    if wanted is False:
        return "off"
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
    except OSError as cause:
        if wanted is True:
            raise PrivilegeError(
                "set", "SCHED_FIFO", "CAP_SYS_NICE is missing", 'grant it or set [loop] realtime = "auto"'
            ) from cause
        return "not permitted (CAP_SYS_NICE)"
    with suppress(OSError, ValueError):
        # So that CAP_IPC_LOCK can go afterwards: without it and with a limit, locked memory could not grow.
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if not _lock():
        if wanted is True:
            why = f"{os.strerror(ctypes.get_errno())} (CAP_IPC_LOCK)"
            raise PrivilegeError("lock", "memory", why, 'grant it or set [loop] realtime = "auto"')
        return "fifo, memory not locked (CAP_IPC_LOCK)"
    return LOCKED


def still_needed(level: str) -> frozenset[str]:
    """What has to stay after `enable` said `level`: CAP_IPC_LOCK for memory that is locked against a limit."""
    limited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY
    return frozenset(("CAP_IPC_LOCK",) if level == LOCKED and limited else ())


def _lock() -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mlockall.argtypes, libc.mlockall.restype = (ctypes.c_int,), ctypes.c_int
    return bool(libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0)


def give_back(level: str) -> None:
    """Give the kernel back what the start took and freed; `level` is what `enable` said. Locked pages cannot be given
    back, so they are unlocked meanwhile."""
    if level == LOCKED:
        ctypes.CDLL(None).munlockall()
    memory.give_back()
    if level == LOCKED:
        _lock()
