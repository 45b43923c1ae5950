"""Feature probes with three answers: yes, no, and unknown, of which only the first two are cached.

A probe asks the kernel and not its version number, because distributions backport. Where the kernel refuses
to say (no privilege, no memory), the answer is unknown and is asked again: a wrong "no" would turn a feature
off for the life of the process. The version that brings a feature is kept beside its probe, for messages.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import re
import socket
import struct
from collections.abc import Callable
from typing import Final

from mapek.bpf import helpers, syscall
from mapek.bpf.attempts import RETURN_2, hides_helper, judge, new_map, new_program
from mapek.bpf.attempts import Answer as Answer
from mapek.bpf.names import MAP_SINCE
from mapek.bpf.spec import ObjectSpec
from mapek.errors import FeatureError, MapekError


def kernel_version() -> tuple[int, int]:
    """(major, minor) of the running kernel."""
    match = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def probe(feature: str) -> Answer:
    """Whether this kernel has `feature`, one of FEATURES; blocks for up to a few ms the first time.

    Raises ValueError for a name that is not in FEATURES. Needs CAP_BPF for most, else answers UNKNOWN.
    """
    if feature not in FEATURES:
        raise ValueError(f"feature {feature!r} is none of {', '.join(FEATURES)}")
    if feature in _sure:
        return _sure[feature]
    try:
        answer = FEATURES[feature][1]()
    except (MapekError, OSError):
        answer = Answer.UNKNOWN
    if answer is not Answer.UNKNOWN and feature not in _PASSING:
        _sure[feature] = answer
    return answer


def since(feature: str) -> str:
    """What brings the feature, in words ("kernel 5.15")."""
    return FEATURES[feature][0]


def require(feature: str, tried: str, on: object) -> None:
    """Raises FeatureError naming what brings `feature` if the kernel surely lacks it."""
    if probe(feature) is Answer.NO:
        raise FeatureError(tried, on, f"this kernel has no {feature}", f"it needs {since(feature)}")


def deny(feature: str) -> None:
    """Answer NO for `feature` from now on, in this process: for tests of what a program does without it.

    Raises ValueError for a name that is not in FEATURES.
    """
    if feature not in FEATURES:
        raise ValueError(f"feature {feature!r} is none of {', '.join(FEATURES)}")
    _sure[feature] = Answer.NO


def features() -> dict[str, Answer]:
    """All probes' answers, by name; blocks for some ms."""
    return {name: probe(name) for name in FEATURES}


def _probe_map(kind: int, key: int, value: int, entries: int, flags: int = 0) -> Callable[[], Answer]:
    def ask() -> Answer:
        with new_map(kind, key, value, entries, flags) as fd:
            return judge(fd)

    return ask


_SCHED_CLS: Final = 3
_XDP: Final = 6
_RAW_TRACEPOINT: Final = 17
_TRACING: Final = 26
_TRACE_RAW_TP: Final = 23


def _probe_helper(number: int, kind: int = _SCHED_CLS) -> Callable[[], Answer]:
    def ask() -> Answer:
        with new_program(kind, (0x85, 0, 0, number), *RETURN_2) as (fd, log):
            if fd < 0 and not log:
                return Answer.UNKNOWN
            return Answer.NO if f"unknown#{number}" in log else Answer.YES

    return ask


def _btf() -> Answer:
    return Answer.YES if os.path.exists("/sys/kernel/btf/vmlinux") else Answer.NO


def _link_command(command: int) -> Callable[[], Answer]:
    # A bad fd is looked at only by a kernel that knows the command.
    return lambda: judge(syscall.bpf_raw(command, struct.pack("=i", -1) + bytes(44)), (-errno.EBADF,))


def _tcx() -> Answer:
    with new_program(_SCHED_CLS, *RETURN_2) as (fd, _):
        if fd < 0:
            return Answer.UNKNOWN
        # There is no interface 0: a kernel with tcx says ENODEV, one without does not know the attach type.
        attr = struct.pack("=IIII", fd, 0, 46, 0) + bytes(32)
        return judge(syscall.bpf_raw(syscall.LINK_CREATE, attr), (-errno.ENODEV,))


def _test_run() -> Answer:
    with new_program(_XDP, *RETURN_2) as (fd, _):
        if fd < 0:
            return Answer.UNKNOWN
        packet = ctypes.create_string_buffer(64)
        attr = struct.pack("=IIIIQQII", fd, 0, 64, 0, ctypes.addressof(packet), 0, 1, 0)
        return judge(syscall.bpf_raw(syscall.PROG_TEST_RUN, attr + bytes(32)))


def _batch(kind: int) -> Callable[[], Answer]:
    def ask() -> Answer:
        with new_map(kind, 4, 8, 1) as fd:
            if fd < 0:
                return Answer.UNKNOWN
            from mapek.bpf.cpus import possible_cpus

            keep = [ctypes.create_string_buffer(64 + 8 * possible_cpus()) for _ in range(3)]
            token, keys, values = (ctypes.addressof(k) for k in keep)
            attr = struct.pack("=QQQQIIQQ", 0, token, keys, values, 1, fd, 0, 0)
            return judge(syscall.bpf_raw(syscall.MAP_LOOKUP_BATCH, attr), (-errno.ENOENT,))

    return ask


def _nexthop() -> Answer:
    # RTM_GETNEXTHOP needs no privilege; a kernel without nexthop objects answers with an error at once.
    dump = struct.pack("=IHHII", 24, 106, 0x301, 1, 0) + bytes(8)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as link:
        link.settimeout(1)
        link.send(dump)
        data = link.recv(65536)
    kind = struct.unpack_from("=H", data, 4)[0]
    if kind == 2:
        return judge(struct.unpack_from("=i", data, 16)[0])
    return Answer.YES


def _raw_tp() -> Answer:
    # The program's fd is looked at first.
    return judge(syscall.bpf_raw(17, struct.pack("=QiI", 0, -1, 0)), (-errno.EBADF,))


def _tp_btf() -> Answer:
    # Whoever loads such a program has the id of its function from the kernel's BTF, whatever the kernel has inside.
    if (btf := probe("btf")) is not Answer.YES:
        return btf
    # BTF id 1 is no tracepoint: who knows the type and has BTF says so in the log, who does not is silent.
    with new_program(_TRACING, *RETURN_2, attach=(_TRACE_RAW_TP, 1)) as (fd, log):
        if fd >= 0 or log:
            return Answer.YES
        return judge(fd)


def _task_storage() -> Answer:
    if (btf := probe("btf")) is not Answer.YES:
        return btf
    with new_program(_RAW_TRACEPOINT, (0x85, 0, 0, 156), *RETURN_2) as (fd, log):
        if fd < 0 and not log:
            return Answer.UNKNOWN
        return Answer.NO if hides_helper(log) else Answer.YES


def _kprobe() -> Answer:
    there = os.path.exists("/sys/bus/event_source/devices/kprobe/type")
    return Answer.YES if there else Answer.NO


def _mounted(*kinds: str) -> Callable[[], Answer]:
    def ask() -> Answer:
        with open("/proc/mounts", encoding="utf-8", errors="replace") as mounts:
            found = {line.split(" ")[2] for line in mounts}
        return Answer.YES if found.intersection(kinds) else Answer.NO

    return ask


def _psi() -> Answer:
    # The files may be there and refuse to be read, with psi=0 on the kernel's command line.
    try:
        with open("/proc/pressure/memory", "rb") as file:
            file.read(64)
    except OSError as error:
        return Answer.NO if error.errno in (errno.ENOENT, errno.EOPNOTSUPP) else Answer.UNKNOWN
    return Answer.YES


FEATURES: Final[dict[str, tuple[str, Callable[[], Answer]]]] = {
    "tracefs": ("kernel 4.1 with tracefs or debugfs mounted", _mounted("tracefs", "debugfs")),
    "cgroup2": ("kernel 4.5 with cgroup2 mounted", _mounted("cgroup2")),
    "kprobe": ("kernel 4.17 with CONFIG_KPROBES", _kprobe),
    "raw_tp": ("kernel 4.17", _raw_tp),
    "tp_btf": ("kernel 5.5 with CONFIG_DEBUG_INFO_BTF", _tp_btf),
    "psi": ("kernel 4.20 with CONFIG_PSI", _psi),
    "prog_test_run": ("kernel 4.12", _test_run),
    "lpm_trie": ("kernel 4.11", _probe_map(11, 8, 8, 1, 1)),
    "nexthop": ("kernel 5.3", _nexthop),
    "btf": ("kernel 5.4 with CONFIG_DEBUG_INFO_BTF", _btf),
    "mmapable_array": ("kernel 5.5", _probe_map(2, 4, 8, 1, 1 << 10)),
    "batch_hash": ("kernel 5.6", _batch(1)),
    "bpf_link": ("kernel 5.7", _link_command(syscall.LINK_UPDATE)),
    "ringbuf": ("kernel 5.8", _probe_map(27, 0, 0, os.sysconf("SC_PAGE_SIZE"))),
    # The kernel's answers to a bad XDP attachment are no different before 5.9; LINK_DETACH came with it.
    "xdp_link": ("kernel 5.9", _link_command(syscall.LINK_DETACH)),
    # Since 5.11 for LSM programs alone.
    "task_storage": ("kernel 5.13 with CONFIG_DEBUG_INFO_BTF", _task_storage),
    "batch_percpu_array": ("kernel 5.13", _batch(6)),
    "bpf_timer": ("kernel 5.15", _probe_helper(169)),
    "tcx": ("kernel 6.6", _tcx),
}
# What is not here now may be mounted later, and BTF may be mounted over.
_PASSING: Final = frozenset(("tracefs", "cgroup2", "btf"))
_sure: Final[dict[str, Answer]] = {}


@functools.cache
def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


def version_of_complaint(line: str) -> str:
    """The kernel that brings the helper, or the callbacks, which a verifier's complaint does not know; or
    ""."""
    if "number of funcs in func_info" in line and kernel_version() < (5, 13):
        # It does not see that an address of a function is taken, and so counts one function less.
        return "kernel 5.13 for functions as callbacks"
    match = re.search(r"unknown#(\d+)", line)
    if not match:
        return ""
    version = helpers.since(int(match[1]))
    return f"kernel {version}" if version else "a kernel newer than 6.18"


def version_of_map(spec: ObjectSpec, prints: list[str]) -> str:
    """The kernel that brings the type of the map that libbpf could not create, if this one is older; else
    ""."""
    for line in prints:
        match = re.search(r"map '([^']+)': failed to create", line)
        found = spec.maps.get(match[1]) if match else None
        needed = MAP_SINCE.get(found.type, "") if found else ""
        if needed and kernel_version() < _version(needed):
            return f"kernel {needed} for maps of type {found.type if found else ''}"
    return ""
