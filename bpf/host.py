"""What this machine grants to BPF besides the kernel's own abilities: lockdown, limits, bpffs, JIT, switches.

Read from /proc and /sys, which is as good without privileges; what may not be read is said to be unknown. Each
condition that stands in the way brings one line of what to do about it.
"""

from __future__ import annotations

import os
import re
import resource
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mapek.bpf.attempts import Answer
from mapek.bpf.bpffs import BPFFS, OURS, mounted
from mapek.bpf.capabilities import effective
from mapek.bpf.features import kernel_version

_LOCKDOWN: Final = "/sys/kernel/security/lockdown"
_FORBIDS: Final = {
    "none": "",
    "integrity": "programs may not write user memory; ours do not",
    "confidentiality": "programs may not read kernel memory, and kprobes and tracefs are closed",
}


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing of the machine.

    Args:
        name: short, and stable for scripts.
        answer: whether it is as it should be; UNKNOWN where it may not be read.
        said: what was found, in words.
        do: what to do about a "no", or about an "unknown"; "" for a "yes".
    """

    name: str
    answer: Answer
    said: str
    do: str = ""


def conditions() -> tuple[Condition, ...]:
    """All of them. Reads a few small files and raises nothing."""
    return tuple(ask() for ask in _ASKED)


def _kernel() -> Condition:
    good = kernel_version() >= (5, 10)
    answer = Answer.YES if good else Answer.NO
    return Condition("kernel", answer, os.uname().release, "" if good else "use a kernel from 5.10 on")


def _btf() -> Condition:
    if os.path.exists("/sys/kernel/btf/vmlinux"):
        return Condition("btf", Answer.YES, "/sys/kernel/btf/vmlinux")
    do = "use a kernel with CONFIG_DEBUG_INFO_BTF, or mount /sys; XDP and tc programs run without"
    return Condition("btf", Answer.NO, "/sys/kernel/btf/vmlinux is not there", do)


def _lockdown() -> Condition:
    text = _read(_LOCKDOWN)
    if text is None:
        if os.path.isdir("/sys/kernel/security") and os.listdir("/sys/kernel/security"):
            return Condition("lockdown", Answer.YES, "this kernel has none")
        do = "mount -t securityfs securityfs /sys/kernel/security"
        return Condition("lockdown", Answer.UNKNOWN, "securityfs is not mounted", do)
    found = re.search(r"\[(\w+)\]", text)
    mode = found[1] if found else "unknown"
    if mode not in _FORBIDS:
        return Condition("lockdown", Answer.UNKNOWN, text.strip() or "an empty answer")
    said = f"{mode}: {_FORBIDS[mode]}" if _FORBIDS[mode] else mode
    if mode != "confidentiality":
        return Condition("lockdown", Answer.YES, said)
    return Condition(
        "lockdown", Answer.NO, said, "boot with lockdown=integrity, or leave tracing sensors out"
    )


def _memlock() -> Condition:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    if kernel_version() >= (5, 11):
        return Condition("memlock", Answer.YES, f"{limit}; BPF is not counted since 5.11")
    if soft == resource.RLIM_INFINITY or soft >= 64 << 20:
        return Condition("memlock", Answer.YES, limit)
    do = "ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit: before 5.11 maps count against it"
    return Condition("memlock", Answer.NO, limit, do)


def _bpffs() -> Condition:
    mount = mounted(BPFFS)
    if mount is None or mount[0] != "bpf":
        said = f"nothing is mounted on {BPFFS}" if mount is None else f"{BPFFS} is a {mount[0]}"
        return Condition("bpffs", Answer.NO, said, f"mount -t bpf bpf {BPFFS}")
    if "ro" in mount[1]:
        return Condition("bpffs", Answer.NO, f"{BPFFS} is read only", f"mount -o remount,rw {BPFFS}")
    try:
        # Made for us by somebody who may, it is all that we need.
        place = OURS if OURS.is_dir() else BPFFS
        status = os.stat(place)
    except OSError as error:
        return Condition("bpffs", Answer.UNKNOWN, f"{BPFFS}: {error.strerror}", "run as root")
    owned = f"uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}"
    if os.access(place, os.W_OK, effective_ids=True):
        return Condition("bpffs", Answer.YES, f"{place}, writable ({owned})")
    said = f"{place} is not writable for uid {os.geteuid()} ({owned})"
    do = f"install -d -m 0700 -o {os.geteuid()} {OURS}, as root and where this user may enter {BPFFS}; or run as root"
    return Condition("bpffs", Answer.NO, said, do)


def _jit() -> Condition:
    text = _read("/proc/sys/net/core/bpf_jit_enable")
    if text is None:
        said = "not visible: a network namespace of its own, or a kernel without JIT"
        return Condition("jit", Answer.UNKNOWN, said, "ask outside of the namespace")
    if text.strip() == "0":
        return Condition(
            "jit", Answer.NO, "off: programs are interpreted", "sysctl net.core.bpf_jit_enable=1"
        )
    return Condition("jit", Answer.YES, "on" if text.strip() == "1" else "on, with debugging output")


def _unprivileged() -> Condition:
    text = _read("/proc/sys/kernel/unprivileged_bpf_disabled")
    if text is None:
        return Condition(
            "unprivileged_bpf",
            Answer.UNKNOWN,
            "kernel.unprivileged_bpf_disabled cannot be read",
            "mount /proc",
        )
    if text.strip() == "0":
        said = "any user may load socket filters"
        return Condition("unprivileged_bpf", Answer.NO, said, "sysctl kernel.unprivileged_bpf_disabled=2")
    lasting = ", until the next boot" if text.strip() == "1" else ""
    return Condition("unprivileged_bpf", Answer.YES, f"only with CAP_BPF{lasting}")


_ASKED: Final[tuple[Callable[[], Condition], ...]] = (
    _kernel, _btf, _lockdown, _memlock, _bpffs, _jit, _unprivileged,
)  # fmt: skip

GRANTS: Final = {
    "CAP_BPF": "load programs and make maps",
    "CAP_NET_ADMIN": "attach to interfaces, set routes",
    "CAP_PERFMON": "programs that follow pointers; tracing",
    "CAP_DAC_READ_SEARCH": "tracefs, for tracepoints without BTF",
    "CAP_SYS_RESOURCE": "psi: triggers of any window",
    "CAP_SYS_NICE": "real-time priority",
    "CAP_IPC_LOCK": "lock memory with it",
}
"""Capabilities that mapek can use, and what for."""


def granted() -> dict[str, bool]:
    """Which of GRANTS this thread has in effect; CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON."""
    have = effective()
    implied = {"CAP_BPF", "CAP_PERFMON"} if "CAP_SYS_ADMIN" in have else set[str]()
    return {name: name in have or name in implied for name in GRANTS}


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(4096)
    except OSError:
        return None
