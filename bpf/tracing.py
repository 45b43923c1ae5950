"""Attachment of tracing programs: raw and BTF tracepoints, classic tracepoints, kprobes and kretprobes.

Whatever is attached hangs on a file descriptor of this process, so that closing it, or dying, detaches.
Classic tracepoints and kprobes go through perf events and not through tracefs' text files, which would
outlive us. Each call blocks for milliseconds (RCU, patching of code): the async functions do it in a thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import re
import struct
from pathlib import Path
from typing import Final, Self

from mapek.bpf import syscall
from mapek.bpf.program import Program
from mapek.bpf.worker import in_thread, in_thread_with
from mapek.bpf.xdp import Link
from mapek.errors import FeatureError, MapekError, PrivilegeError

RAW_TRACEPOINT_OPEN: Final = 17
_PERF_TYPE_TRACEPOINT: Final = 2
_PERF_FLAG_FD_CLOEXEC: Final = 8
_KPROBE: Final = Path("/sys/bus/event_source/devices/kprobe")
# Up to config2 (PERF_ATTR_SIZE_VER1): type, size, config, sample_period, sample_type, read_format, flags,
# wakeup_events, bp_type, config1, config2.
_ATTR: Final = struct.Struct("=IIQQQQQIIQQ")
_NUMBERS: Final = {
    "x86_64": 298, "aarch64": 241, "riscv64": 241, "loongarch64": 241, "armv7l": 364, "armv6l": 364,
    "armv8l": 364, "i686": 336, "i586": 336, "ppc64le": 319, "ppc64": 319, "ppc": 319, "s390x": 331,
    "mips": 4333, "mips64": 5292,
}  # fmt: skip
# _IO('$', 0) and _IOW('$', 8, __u32): MIPS, PowerPC and their like lay the direction bits out differently.
_MIPS_LIKE: Final = platform.machine().startswith(("mips", "ppc"))
_IOC_ENABLE: Final = 0x20002400 if _MIPS_LIKE else 0x2400
_IOC_SET_BPF: Final = 0x80042408 if _MIPS_LIKE else 0x40042408

_libc = ctypes.CDLL(None, use_errno=True)


class PerfAttachment:
    """A program on a perf event (a classic tracepoint, a kprobe): an owned fd, whose close detaches it."""

    def __init__(self, fd: int, where: str) -> None:
        self.fd, self.where = fd, where

    def __repr__(self) -> str:
        return f"<PerfAttachment {self.where} fd={self.fd}>"

    def close(self) -> None:
        """Detach. Twice is fine. Blocks for milliseconds."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await in_thread(self.close)


Attachment = Link | PerfAttachment
"""What is attached; `close()` detaches it and blocks for milliseconds."""


def attach_raw_tracepoint(program: Program, name: str) -> Link:
    """Attach a `raw_tp` program to the tracepoint `name` ("sys_enter"), on all CPUs.

    Needs kernel 5.8 for the link to tell about itself, CAP_BPF and CAP_PERFMON.

    Raises:
        FeatureError: this kernel has no such tracepoint. PrivilegeError: names the missing capability.
    """
    text = ctypes.create_string_buffer(name.encode())
    attr = struct.pack("=QIIQ", ctypes.addressof(text), program.fd, 0, 0)
    return _raw_link(attr, "attach raw tracepoint", name)


def attach_btf_tracepoint(program: Program) -> Link:
    """Attach a `tp_btf` program to the tracepoint that its section names, on all CPUs.

    Needs kernel 5.8, BTF, CAP_BPF and CAP_PERFMON. Raises as `attach_raw_tracepoint`.
    """
    return _raw_link(struct.pack("=QIIQ", 0, program.fd, 0, 0), "attach tp_btf program", program.name)


def _raw_link(attr: bytes, tried: str, on: str) -> Link:
    fd = syscall.bpf_raw(RAW_TRACEPOINT_OPEN, attr)
    if fd == -errno.ENOENT:
        do = "see /sys/kernel/tracing/available_events for what there is"
        raise FeatureError(tried, on, "this kernel has no such tracepoint", do) from _os_error(fd)
    if fd < 0:
        needs = "a raw_tp program, or for tp_btf one that libbpf found a target for"
        raise syscall.explain(-fd, tried, on, wanted=("CAP_BPF", "CAP_PERFMON"), needs=needs)
    try:
        return Link(fd)
    except BaseException:
        os.close(fd)
        raise


def tracefs() -> Path:
    """Where tracefs is mounted, alone or inside debugfs. Raises FeatureError when it is not."""
    do = "mount -t tracefs tracefs /sys/kernel/tracing"
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise FeatureError("find", "tracefs", error.strerror or "unreadable /proc/mounts", do) from error
    found: dict[str, Path] = {}
    for line in mounts.splitlines():
        _, where, kind, *_ = [*line.split(" "), "", "", ""]
        # The kernel writes blanks in paths as octal numbers.
        path = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), where))
        if kind == "tracefs":
            found.setdefault(kind, path)
        elif kind == "debugfs":
            found.setdefault(kind, path / "tracing")
    for kind in ("tracefs", "debugfs"):
        # A directory that may not be entered is told about by whoever reads below it.
        if kind in found:
            return found[kind]
    raise FeatureError("find", "tracefs", "it is not mounted", do)


def read_event(category: str, name: str, file: str) -> str:
    """The text of `events/CATEGORY/NAME/FILE` of tracefs ("format", "id"), at most 64 KiB.

    Raises:
        FeatureError: tracefs is not mounted, or has no such event. PrivilegeError: it may not be read.
    """
    if not all(part and "/" not in part and not part.startswith(".") for part in (category, name)):
        raise FeatureError("read tracepoint", f"{category}/{name}", "not a tracepoint's name", "check it")
    path = tracefs() / "events" / category / name / file
    try:
        with open(path, encoding="utf-8", errors="replace") as found:
            return found.read(1 << 16)
    except PermissionError as error:
        missing = syscall.missing_capabilities("CAP_DAC_READ_SEARCH")
        why = "CAP_DAC_READ_SEARCH missing" if missing else "not permitted"
        raise PrivilegeError("read", path, why, "run as root or grant it") from error
    except OSError as error:
        do = "see available_events there for what there is"
        raise FeatureError("read", path, error.strerror or "unreadable", do) from error


def attach_tracepoint(program: Program, category: str, name: str) -> PerfAttachment:
    """Attach a `tracepoint` program to `category`/`name` ("net", "netif_rx"), on all CPUs.

    Needs tracefs, which is closed to all but root: CAP_DAC_READ_SEARCH, CAP_BPF and CAP_PERFMON.

    Raises:
        FeatureError: tracefs is not mounted, or this kernel has no such tracepoint.
        PrivilegeError: names the missing capability.
    """
    where = f"{category}/{name}"
    text = read_event(category, name, "id").strip()
    if not text.isdecimal():
        raise FeatureError("attach tracepoint", where, f"its id is {text[:20]!r}", "check what is mounted")
    attr = _ATTR.pack(_PERF_TYPE_TRACEPOINT, _ATTR.size, int(text), 0, 0, 0, 0, 0, 0, 0, 0)
    fd = _perf_event_open(attr)
    if fd < 0:
        raise _explain(-fd, "attach tracepoint", where)
    return _run(fd, program, "attach tracepoint", where)


def attach_kprobe(program: Program, symbol: str, returns: bool = False) -> PerfAttachment:
    """Attach a `kprobe` program to the entry of the kernel function `symbol`, or where it returns.

    Needs CAP_BPF and CAP_PERFMON. A return probe has as many instances as there are CPUs (with CONFIG_PREEMPTION twice
    that, at least 10), for the whole machine: calls beyond that are in flight at once are not seen.

    Raises:
        FeatureError: the kernel has no kprobes, no such function, or forbids probes in it.
        PrivilegeError: names the missing capability.
    """
    tried = "attach kretprobe to" if returns else "attach kprobe to"
    try:
        kind = int((_KPROBE / "type").read_text())
        bit = int((_KPROBE / "format" / "retprobe").read_text().strip().removeprefix("config:"))
    except (OSError, ValueError) as error:
        raise FeatureError(tried, symbol, "this kernel has no kprobes", "it needs CONFIG_KPROBES") from error
    text = ctypes.create_string_buffer(symbol.encode())
    config = 1 << bit if returns else 0
    attr = _ATTR.pack(kind, _ATTR.size, config, 0, 0, 0, 0, 0, 0, ctypes.addressof(text), 0)
    fd = _perf_event_open(attr)
    if fd in (-errno.ENOENT, -errno.EADDRNOTAVAIL, -errno.EINVAL):
        why = "this kernel has no such function, or forbids probes in it"
        raise FeatureError(tried, symbol, why, "look for it in /proc/kallsyms") from _os_error(fd)
    if fd < 0:
        raise _explain(-fd, tried, symbol)
    return _run(fd, program, tried, symbol)


async def attach_raw_tracepoint_async(program: Program, name: str) -> Link:
    """`attach_raw_tracepoint` in a thread."""
    return await in_thread_with(program, lambda mine: attach_raw_tracepoint(mine, name), Link.close)


async def attach_btf_tracepoint_async(program: Program) -> Link:
    """`attach_btf_tracepoint` in a thread."""
    return await in_thread_with(program, attach_btf_tracepoint, Link.close)


async def attach_tracepoint_async(program: Program, category: str, name: str) -> PerfAttachment:
    """`attach_tracepoint` in a thread."""
    return await in_thread_with(
        program, lambda mine: attach_tracepoint(mine, category, name), PerfAttachment.close
    )


async def attach_kprobe_async(program: Program, symbol: str, returns: bool = False) -> PerfAttachment:
    """`attach_kprobe` in a thread."""
    return await in_thread_with(
        program, lambda mine: attach_kprobe(mine, symbol, returns), PerfAttachment.close
    )


def _perf_event_open(attr: bytes) -> int:
    """The event's fd, or the negative errno. One CPU is named, as must be; programs run on all."""
    machine = platform.machine()
    if ctypes.sizeof(ctypes.c_void_p) == 4:
        machine = {"x86_64": "i686", "aarch64": "armv7l", "mips64": "mips"}.get(machine, machine)
    if machine not in _NUMBERS:
        raise FeatureError("call", "perf_event_open(2)", f"unknown machine {machine}", "add its number")
    buffer = ctypes.create_string_buffer(attr, len(attr))
    call = _libc.syscall
    call.restype = ctypes.c_long
    arguments = (_NUMBERS[machine], ctypes.addressof(buffer), -1, 0, -1, _PERF_FLAG_FD_CLOEXEC)
    result = int(call(*(ctypes.c_long(one) for one in arguments)))
    return result if result >= 0 else -ctypes.get_errno()


def _run(fd: int, program: Program, tried: str, where: str) -> PerfAttachment:
    try:
        fcntl.ioctl(fd, _IOC_SET_BPF, program.fd)
        fcntl.ioctl(fd, _IOC_ENABLE, 0)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.close(fd)
        if isinstance(error, OSError) and error.errno is not None:
            raise _explain(error.errno, tried, where) from error
        raise
    return PerfAttachment(fd, where)


def _explain(code: int, tried: str, on: str) -> MapekError:
    needs = "a program of the fitting type, built for this kernel's version of the event"
    return syscall.explain(code, tried, on, wanted=("CAP_BPF", "CAP_PERFMON"), needs=needs)


def _os_error(result: int) -> OSError:
    return OSError(-result, os.strerror(-result))
