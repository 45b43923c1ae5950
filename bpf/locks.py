"""One agent at a time: a lock by flock(2) on a file of a runtime directory, keyed by network namespace.

The kernel lets go of it when its holder dies, however that happens, so no lock is ever stale. Its descriptor is not
inherited by programs that the agent starts. The file names the holder's pid, for people; it is removed when the lock is
given back, and whoever locked a file that was removed meanwhile tries again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Final

from mapek.errors import AttachError, DegradedError

DIRECTORY: Final = Path("/run/mapek")


class Lock:
    """Held from `take` until `release`. Closing twice is fine."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path, self._fd = path, fd

    @classmethod
    def take(cls, name: str, tried: str, on: object, namespace: str = "") -> Lock:
        """The lock `name` of a network namespace.

        Args:
            tried, on: what it is for, for messages ("keep", "xdp_counter of wlan0").
            namespace: its inode number; "" for that of the calling thread.

        Raises:
            AttachError: another one holds it; names its pid.
            DegradedError: there is no place for locks.
        """
        space = namespace or os.stat("/proc/thread-self/ns/net").st_ino
        path = directory() / f"{space}-{name}.lock"
        try:
            while True:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    with contextlib.suppress(FileNotFoundError):
                        if os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False)):
                            os.ftruncate(fd, 0)
                            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                            return cls(path, fd)
                except BlockingIOError as error:
                    holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
                    who = f"the agent with pid {holder or 'unknown'} has it"
                    do = "stop that one, or give one of the two other interfaces or another state_dir"
                    os.close(fd)
                    raise AttachError(tried, on, who, do) from error
                except BaseException:
                    os.close(fd)
                    raise
                os.close(fd)
        except OSError as error:
            why = f"no lock in {path.parent}: {error.strerror}"
            raise DegradedError(tried, on, why, f"make {path.parent} writable") from error

    def release(self) -> None:
        """Give it back; twice is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            os.close(fd)


def directory() -> Path:
    """Where locks are: `DIRECTORY`, or below XDG_RUNTIME_DIR where that may not be written. Raises DegradedError."""
    own = os.environ.get("XDG_RUNTIME_DIR", "")
    choices = (DIRECTORY, *([Path(own, "mapek")] if os.path.isabs(own) else []))
    why = ""
    for path in choices:
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.geteuid()):
                raise OSError(errno.EPERM, "it is not ours")
            if os.access(path, os.W_OK):
                return path
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            why = why or f"{path}: {error.strerror}"
    raise DegradedError("lock in", DIRECTORY, why, "make it writable, or set XDG_RUNTIME_DIR")
