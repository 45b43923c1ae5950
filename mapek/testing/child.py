"""Runs a check in a process of its own, which may give away what cannot be taken back: privileges, mounts, features.

A fork and not a new interpreter, so that it can run whatever the caller has in hand, in the caller's network namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import traceback
import warnings
from collections.abc import Callable

PATIENCE_S = 40
_NOBODY = 65534
_PR_SET_DUMPABLE = 4


def in_child(work: Callable[[], None], what: str) -> None:
    """Run `work` in a forked process and wait for it. Raises AssertionError with what it raised there."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: a fork beside threads
        child = os.fork()
    if not child:
        _be_the_child(work, writer)
    os.close(writer)
    with open(reader, encoding="utf-8", errors="replace") as told:
        said = told.read()
    _, status = os.waitpid(child, 0)
    assert not status, (
        f"{what}: {said.strip() or f'the child ended with {os.waitstatus_to_exitcode(status)}'}"
    )


def _be_the_child(work: Callable[[], None], writer: int) -> None:
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE_S)
        work()
        code = 0
    except BaseException as error:
        said = str(error) if isinstance(error, AssertionError) else traceback.format_exc()
        with contextlib.suppress(OSError):
            os.write(writer, said.encode("utf-8", "replace")[:60_000])
    finally:
        os._exit(code)


def become_nobody() -> None:
    """Give away every capability and root's identity, for good. Raises AssertionError if one stays."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
        # As for a process that nobody started: what is below /proc/self is its own.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    with open("/proc/thread-self/status", "rb") as status:
        held = next(line.split()[1] for line in status if line.startswith(b"CapEff:"))
    assert int(held, 16) == 0, f"capabilities {held!r} stay although nothing should be permitted"
