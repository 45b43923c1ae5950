"""Asks the kernel for single parts: a program type, a map type, a helper in a program type, an instruction, a way to
attach. Three answers; only yes and no are kept.

A helper is asked for by a program that calls it with nothing in its registers: who knows the helper complains about
the registers. Where a privilege is missing the verifier hides helpers, so that a "no" counts only with all of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Final

from mapek.bpf import features, helpers, rtnl, syscall
from mapek.bpf.attempts import Answer, Code, hides_helper, judge, new_map, new_program, registers
from mapek.bpf.demands import Part
from mapek.bpf.names import MAP_SINCE, MAP_TYPES, PROGRAM_SINCE, PROGRAM_TYPES
from mapek.errors import MapekError

_EXIT: Final[tuple[Code, ...]] = ((0xB7, 0, 0, 0), (0x95, 0, 0, 0))
_BTF_LOAD: Final = 18
_RTM_NEWQDISC: Final = 36
_CREATE_EXCL: Final = 0x600
_TCA_KIND, _TCA_INGRESS_BLOCK = 1, 13
# One type, a 32-bit int, for maps that want to know what they hold.
_INT_BTF: Final = (
    struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 16, 16, 5)
    + struct.pack("=IIII", 1, 1 << 24, 4, 1 << 24 | 32)
    + b"\0int\0"
)
_NO_PREALLOC: Final = 1

# key, value, entries, flags: of each type the least that is accepted
_SHAPES: Final = {
    **dict.fromkeys(("hash", "array", "percpu_hash", "percpu_array", "lru_hash", "lru_percpu_hash"), (4, 8, 1, 0)),
    **dict.fromkeys(("prog_array", "perf_event_array", "cgroup_array", "devmap", "xskmap"), (4, 4, 1, 0)),
    "stack_trace": (4, 8, 1, 0),
    "lpm_trie": (8, 8, 1, _NO_PREALLOC),
    "array_of_maps": (4, 4, 1, 0),
    "hash_of_maps": (4, 4, 1, 0),
    "queue": (0, 4, 1, 0),
    "stack": (0, 4, 1, 0),
    "ringbuf": (0, 0, os.sysconf("SC_PAGE_SIZE"), 0),
    "task_storage": (4, 4, 0, _NO_PREALLOC),
    "sk_storage": (4, 4, 0, _NO_PREALLOC),
    "inode_storage": (4, 4, 0, _NO_PREALLOC),
}  # fmt: skip
_PLAIN_PROGRAMS: Final = frozenset(
    "socket_filter kprobe sched_cls sched_act tracepoint xdp perf_event cgroup_skb raw_tracepoint".split()
)
# What the tracing programs can call beyond raw tracepoints cannot be asked for without a tracepoint's BTF.
_TRACING_ONLY: Final = frozenset("skb_output xdp_output seq_printf seq_write seq_printf_btf d_path".split())
# Where a helper came to a program type later than it came into being; before, it was for others.
_LATER: Final = {("task_storage_get", "tracing"): "5.13", ("task_storage_delete", "tracing"): "5.13"}

_INSTRUCTIONS: Final[dict[str, tuple[str, tuple[Code, ...]]]] = {
    "function_call": ("4.16", ((0x85, registers(0, 1), 0, 1), (0x95, 0, 0, 0), *_EXIT)),
    "jmp32": ("5.1", (_EXIT[0], (0x16, 0, 0, 0), _EXIT[1])),
    "bounded_loop": ("5.3", (_EXIT[0], (0x07, 0, 0, 1), (0xA5, 0, -2, 3), _EXIT[1])),
    "atomic_fetch": (
        "5.12",
        (_EXIT[0], (0x7B, registers(10, 0), -8, 0), (0xDB, registers(10, 0), -8, 1), _EXIT[1]),
    ),
    "callback": ("5.13", ((0x18, registers(1, 4), 0, 3), (0, 0, 0, 0), *_EXIT, *_EXIT)),
}
_WAYS: Final[dict[str, str]] = {
    "xdp_link": "xdp_link",
    "tcx": "tcx",
    "raw_tp": "raw_tp",
    "tp_btf": "tp_btf",
    "kprobe": "kprobe",
    "tracepoint": "tracefs",
}

_sure: Final[dict[Part, Answer]] = {}


def probe(part: Part) -> Answer:
    """Whether this kernel has `part`; blocks for some 0.1 ms the first time. UNKNOWN for what there is no probe for."""
    if part in _sure:
        return _sure[part]
    try:
        answer = _ask(part)
    except (MapekError, OSError):
        answer = Answer.UNKNOWN
    if answer is not Answer.UNKNOWN and part.kind != "attachment":
        # An attachment asks `features`, which keeps what can be kept.
        _sure[part] = answer
    return answer


def since(part: Part) -> str:
    """What brings `part`, in words ("kernel 5.8"); "" where that is not known."""
    if part.kind == "attachment":
        if part.name in _WAYS:
            return features.since(_WAYS[part.name])
        return {"xdp_netlink": "kernel 4.8", "clsact": "kernel 4.5 with CONFIG_NET_CLS_BPF"}.get(
            part.name, ""
        )
    version = {
        "program type": PROGRAM_SINCE.get(part.name, ""),
        "map type": MAP_SINCE.get(part.name, ""),
        "instruction": {**{n: v for n, (v, _) in _INSTRUCTIONS.items()}, "global_data": "5.2"}.get(
            part.name, ""
        ),
        "helper": _helper_since(part),
    }[part.kind]
    return f"kernel {version}" if version else ""


def _helper_since(part: Part) -> str:
    number = helpers.NAMES.index(part.name) if part.name in helpers.NAMES else 0
    return _LATER.get((part.name, part.of)) or helpers.since(number)


def _ask(part: Part) -> Answer:
    match part.kind:
        case "program type":
            return _program_type(part.name)
        case "map type":
            return _map_type(part.name)
        case "helper":
            return _helper(part.name, part.of)
        case "instruction":
            return _instruction(part.name)
        case _:
            return _attachment(part.name)


def _believed(answer: Answer) -> Answer:
    """A verifier that withholds what needs a privilege says "no" as if it did not know it."""
    if answer is Answer.NO and syscall.missing_capabilities("CAP_BPF", "CAP_PERFMON"):
        return Answer.UNKNOWN
    return answer


def _program_type(name: str) -> Answer:
    if name == "tracing":
        return features.probe("tp_btf")
    if name not in _PLAIN_PROGRAMS:
        return Answer.UNKNOWN
    with new_program(PROGRAM_TYPES.index(name), *_EXIT) as (fd, log):
        # Only a type that is known has its code looked at.
        return Answer.YES if log else judge(fd)


def _map_type(name: str) -> Answer:
    if name not in _SHAPES:
        return Answer.UNKNOWN
    number = MAP_TYPES.index(name)
    if name.endswith("_storage"):
        with _int_btf() as btf:
            if btf < 0:
                return Answer.UNKNOWN
            with new_map(number, *_SHAPES[name], btf=(btf, 1)) as fd:
                return judge(fd)
    if name.endswith("_of_maps"):
        with new_map(MAP_TYPES.index("array"), 4, 8, 1) as inner:
            if inner < 0:
                return Answer.UNKNOWN
            with new_map(number, *_SHAPES[name], inner=inner) as fd:
                return judge(fd)
    with new_map(number, *_SHAPES[name]) as fd:
        return judge(fd)


@contextlib.contextmanager
def _int_btf() -> Iterator[int]:
    import ctypes

    held = ctypes.create_string_buffer(_INT_BTF, len(_INT_BTF))
    fd = syscall.bpf_raw(_BTF_LOAD, struct.pack("=QQIIII", ctypes.addressof(held), 0, len(_INT_BTF), 0, 0, 0))
    try:
        yield fd
    finally:
        if fd >= 0:
            os.close(fd)


def _helper(name: str, of: str) -> Answer:
    if name not in helpers.NAMES:
        return Answer.UNKNOWN
    if of == "tracing":
        if features.probe("tp_btf") is not Answer.YES:
            return features.probe("tp_btf")
        # A tracing program is verified against its tracepoint. It has every helper that raw tracepoints have.
        of = "" if name in _TRACING_ONLY else "raw_tracepoint"
    if of not in _PLAIN_PROGRAMS:
        return Answer.UNKNOWN
    call = (0x85, 0, 0, helpers.NAMES.index(name))
    with new_program(PROGRAM_TYPES.index(of), call, *_EXIT) as (fd, log):
        if fd < 0 and not log:
            return _believed(judge(fd))
        if "unknown#" in log:
            return Answer.NO
        return _believed(Answer.NO) if hides_helper(log) else Answer.YES


def _instruction(name: str) -> Answer:
    if name == "global_data":
        with new_map(MAP_TYPES.index("array"), 4, 8, 1) as fd:
            return (
                _code(((0x18, registers(1, 2), 0, fd), (0, 0, 0, 0), *_EXIT)) if fd >= 0 else Answer.UNKNOWN
            )
    if name not in _INSTRUCTIONS:
        return Answer.UNKNOWN
    return _code(_INSTRUCTIONS[name][1])


def _code(code: tuple[Code, ...]) -> Answer:
    with new_program(PROGRAM_TYPES.index("socket_filter"), *code) as (fd, log):
        # Code that takes a function's address comes without the BTF that would describe it; only a kernel that has
        # callbacks misses that.
        if fd >= 0 or "func_info" in log:
            return Answer.YES
        return Answer.UNKNOWN if fd in (-errno.EPERM, -errno.ENOMEM) else _believed(Answer.NO)


def _attachment(name: str) -> Answer:
    if name in _WAYS:
        return features.probe(_WAYS[name])
    ask: dict[str, Callable[[], Answer]] = {"xdp_netlink": _xdp_netlink, "clsact": _clsact}
    return ask[name]() if name in ask else Answer.UNKNOWN


def _xdp_netlink() -> Answer:
    # The attribute came with the program type.
    return _program_type("xdp")


def _clsact() -> Answer:
    """Asks for a clsact with a block of number 0, which cannot be: who does not know the kind says so first."""
    if features.kernel_version() < (5, 10):
        return Answer.UNKNOWN  # long before, the number was not looked at
    body = struct.pack("=BxxxiIII", 0, socket.if_nametoindex("lo"), 0, 0xFFFFFFF1, 0)
    body += struct.pack("=HH8s", 11, _TCA_KIND, b"clsact") + struct.pack("=HHI", 8, _TCA_INGRESS_BLOCK, 0)
    try:
        rtnl.ask(_RTM_NEWQDISC, body, _CREATE_EXCL)
    except OSError as error:
        answers = {errno.EINVAL: Answer.YES, errno.EEXIST: Answer.YES, errno.ENOENT: Answer.NO}
        return answers.get(error.errno or 0, Answer.UNKNOWN)
    return Answer.UNKNOWN
