"""The kernel's pressure files as values: their place, their text, and triggers on them.

The text is the kernel's own, but a cgroup's file may be anything that lies under that name, so it is bounded and
held against the one form that the kernel writes; everything else is an error and never a zero.
"""

from __future__ import annotations

import errno
import os
import re
import select
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from mapek.bpf.features import kernel_version
from mapek.errors import AttachError, FeatureError, MapekError, PrivilegeError

ROOT: Final = "/"
"""The cgroup that holds everything; its pressure is that of `/proc/pressure`, with or without cgroups."""

LINES: Final = (
    *((resource, share) for resource in ("cpu", "memory", "io") for share in ("some", "full")),
    ("irq", "full"),
)
"""(resource, share) as the kernel names them: `irq` came with 6.1, `full` of `cpu` with 5.13."""

RESOURCES: Final = tuple(dict.fromkeys(resource for resource, _ in LINES))
WINDOWS: Final = ("10s", "60s", "300s")

_MOST: Final = 4096
_LINE: Final = re.compile(
    rb"(some|full) avg10=(\d{1,3}\.\d\d) avg60=(\d{1,3}\.\d\d) avg300=(\d{1,3}\.\d\d) total=(\d{1,20})"
)


@dataclass(frozen=True, slots=True)
class Pressure:
    """One line: shares of time in 0 to 1 over 10, 60 and 300 s, and the stalled time since boot."""

    averages: tuple[float, float, float]
    total_us: int


def parse(text: bytes) -> Mapping[str, Pressure]:
    """The lines of a pressure file by share ("some", "full"). Raises ValueError for what no kernel writes."""
    if not text.endswith(b"\n"):
        raise ValueError("it does not end with a line")
    found: dict[str, Pressure] = {}
    for line in text[:-1].split(b"\n"):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"no pressure: {line[:60]!r}")
        share, total = match[1].decode("ascii"), int(match[5])
        averages = (float(match[2]) / 100, float(match[3]) / 100, float(match[4]) / 100)
        if share in found or total >= 1 << 64 or max(averages) > 1:
            raise ValueError(f"no pressure: {line[:60]!r}")
        found[share] = Pressure(averages, total)
    return found


@dataclass(slots=True)
class Group:
    """The pressure files of one cgroup, held open; `name` is its path below `mount`, or `ROOT`."""

    name: str
    mount: str = ""
    fds: dict[str, int] = field(default_factory=dict)

    def path(self, resource: str) -> str:
        """The file of a resource."""
        if self.name == ROOT:
            return f"/proc/pressure/{resource}"
        return f"{self.mount}/{self.name}/{resource}.pressure"

    def open(self) -> None:
        """Open the files that are there.

        Raises:
            FeatureError: this kernel keeps no account of pressure. AttachError: there is no such cgroup.
        """
        if self.name != ROOT and not self.mount:
            do = "mount it, or leave `cgroups` empty"
            raise AttachError("read the pressure of", self.name, "cgroup v2 is not mounted", do)
        self.close()
        refused = 0
        for resource in RESOURCES:
            try:
                fd = os.open(self.path(resource), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                self.fds[resource] = fd
                os.pread(fd, _MOST, 0)
            except OSError as error:
                refused = refused or error.errno or errno.EIO
                if resource in self.fds:
                    os.close(self.fds.pop(resource))
        if not self.fds:
            raise self._refusal(refused)

    def _refusal(self, code: int) -> MapekError:
        if self.name == ROOT or code == errno.EOPNOTSUPP:
            on = "/proc/pressure" if self.name == ROOT else self.name
            why = f"the kernel keeps no account of pressure ({os.strerror(code)})"
            do = "it needs kernel 4.20 with CONFIG_PSI, and psi=1 on its command line where it is off by default"
            return FeatureError("read", on, why, do)
        why = "there is no such cgroup" if code == errno.ENOENT else os.strerror(code)
        return AttachError("read the pressure of", self.name, why, "it is read when it is there")

    def read(self) -> dict[tuple[str, str], Pressure]:
        """Every line of every file; some microseconds. Raises OSError (ENODEV: the cgroup is gone) or ValueError."""
        return {
            (resource, share): one
            for resource, fd in self.fds.items()
            for share, one in parse(os.pread(fd, _MOST, 0)).items()
        }

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.popitem()[1])


@dataclass(frozen=True, slots=True)
class Trigger:
    """Tell when `resource` was short for `threshold_us` within `window_us`, in the kernel's words."""

    resource: str
    share: str
    threshold_us: int
    window_us: int
    group: str = ROOT

    def __str__(self) -> str:
        return f"{self.resource} {self.share} {self.threshold_us} {self.window_us} of {self.group}"

    def is_privileged(self) -> bool:
        """Whether this kernel wants CAP_SYS_RESOURCE for it."""
        return kernel_version() < (6, 4) or self.window_us % 2_000_000 != 0


@dataclass(slots=True)
class Armed:
    """A trigger in force, and an epoll of its own that is readable when it fired.

    Of its own, because looking at the trigger takes its event away: an event loop's epoll that looks through a second
    one leaves nothing to find there, and of several triggers nobody could say which.
    """

    trigger: Trigger
    fd: int
    epoll: select.epoll

    @classmethod
    def on(cls, trigger: Trigger, mount: str = "") -> Armed:
        """Arm `trigger`, below the cgroup mount; blocks for up to a millisecond (the kernel starts a thread).

        Raises:
            PrivilegeError: CAP_SYS_RESOURCE is missing. AttachError: no such cgroup or file.
        """
        try:
            fd = os.open(
                Group(trigger.group, mount).path(trigger.resource), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
            )
            try:
                words = f"{trigger.share} {trigger.threshold_us} {trigger.window_us}\0"
                os.write(fd, words.encode("ascii"))
                epoll = select.epoll()
                epoll.register(fd, select.EPOLLPRI)
            except BaseException:
                os.close(fd)
                raise
        except OSError as error:
            raise _unarmed(trigger, error.errno or errno.EIO) from error
        return cls(trigger, fd, epoll)

    def dead(self) -> bool:
        """Did its cgroup go away? Asked when the epoll was readable: then it either fired or is dead."""
        return any(mask & (select.EPOLLERR | select.EPOLLHUP) for _, mask in self.epoll.poll(0))

    def close(self) -> None:
        """Disarm; twice is fine."""
        self.epoll.close()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def _unarmed(trigger: Trigger, code: int) -> MapekError:
    if code in (errno.EPERM, errno.EACCES):
        do = "grant it, or use a window of whole 2 s on kernel 6.4 or newer"
        return PrivilegeError("set the trigger", trigger, "CAP_SYS_RESOURCE is missing", do)
    if code == errno.EINVAL and trigger.window_us % 2_000_000:
        do = "grant it, or use a window of whole 2 s"
        return PrivilegeError("set the trigger", trigger, "this window needs CAP_SYS_RESOURCE", do)
    return AttachError("set the trigger", trigger, os.strerror(code), "see the kernel's accounting/psi.rst")
