"""What BPF is in this kernel, ours and others': programs, what they are attached to, and who holds them.

Everything is read from the kernel at the moment it is asked; what vanishes meanwhile is left out. A program is
ours if its BTF names a source of ours, which a foreign program has no reason to claim. Where it is attached is
known from links, and beyond them as far as `mapek.bpf.whereabouts` goes: this network namespace, the mounts of bpffs
and the processes that we see. Walks every program of the machine: tens of milliseconds, so a thread's work.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from mapek.bpf import syscall, whereabouts
from mapek.bpf.holders import Holder, holders
from mapek.bpf.names import PROGRAM_TYPES
from mapek.bpf.spec import object_path
from mapek.errors import MapekError

_PROG_GET_NEXT_ID, _LINK_GET_NEXT_ID = 11, 31
_BTF_GET_FD_BY_ID, _LINK_GET_FD_BY_ID = 19, 30
_LINK_TYPES: Final = (
    "unspec raw_tracepoint tracing cgroup iter netns xdp perf_event kprobe_multi struct_ops netfilter tcx "
    "uprobe_multi netkit sockmap"
).split()
_TCX: Final = {46: "ingress", 47: "egress"}
_SOURCE: Final = re.compile(rb"programs/([a-z0-9_]+)\.bpf\.c\0")
_MAX_BTF: Final = 1 << 20
"""Bytes of BTF that are looked through; ours have some 20 kB."""


@dataclass(frozen=True, slots=True)
class Attached:
    """A link: its id, kind ("xdp", "tcx", "raw_tracepoint", ...) and place ("eth0", "l0 ingress", "sys_enter").

    With id 0 what no link holds: "xdp by netlink" ("eth0 native"), "clsact" ("eth0 ingress prio 3054 handle 0x1"),
    "chain" ("eth0 slot link_watch"), "tracepoint", "kprobe".
    """

    link_id: int
    kind: str
    place: str
    pinned: bool = False
    """Nobody holds it: only a pin keeps it there."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A program in the kernel.

    Args:
        object: the object of ours it comes from ("xdp_counter"), "" for a foreign one.
        loaded_ns: when, by CLOCK_BOOTTIME.
        instructions: after the verifier's rewriting.
        verified: instructions that the verifier walked; 0 where the kernel (before 5.16) does not say.
        runs, run_ns: while bpf_stats is on, else 0.
        map_bytes: kernel memory of its maps, also where others use them too.
        pins: paths of the program itself and of its links, on the bpffs mounts that we see.
    """

    id: int
    name: str
    type: str
    tag: str
    object: str
    loaded_ns: int
    uid: int
    instructions: int
    verified: int
    runs: int
    run_ns: int
    map_ids: tuple[int, ...]
    attached: tuple[Attached, ...] = ()
    holders: tuple[Holder, ...] = ()
    map_bytes: int = 0
    pins: tuple[str, ...] = ()


@dataclass(slots=True)
class _Kernel:
    """One look at it."""

    links: dict[int, list[Attached]] = field(default_factory=dict)
    holders: dict[tuple[str, int], list[Holder]] = field(default_factory=dict)
    sources: dict[int, str] = field(default_factory=dict)
    here: Mapping[int, whereabouts.Interface] = field(default_factory=dict)
    pins: Mapping[tuple[str, int], tuple[str, ...]] = field(default_factory=dict)
    map_bytes: dict[int, int] = field(default_factory=dict)


def programs() -> list[Loaded]:
    """Every program, by id. Raises PrivilegeError without CAP_SYS_ADMIN: ids are for the machine's owner only."""
    kernel = _Kernel(holders=holders(), here=whereabouts.interfaces())
    for ident in _ids(_LINK_GET_NEXT_ID, "links"):
        if (link := _link(ident, kernel)) is not None:
            kernel.links.setdefault(link[0], []).append(link[1])
    kernel.pins = whereabouts.pins()
    linked = {(ident, at.place) for ident, places in kernel.links.items() for at in places}
    pids = {one.pid for who in kernel.holders.values() for one in who}
    for ident, kind, place in (
        *whereabouts.by_netlink(kernel.here, linked),
        *whereabouts.tc_filters(kernel.here),
        *whereabouts.perf_events(pids),
    ):
        kernel.links.setdefault(ident, []).append(Attached(0, kind, place))
    found = [one for ident in _ids(_PROG_GET_NEXT_ID, "programs") if (one := _program(ident, kernel))]
    members: dict[int, list[Attached]] = {}
    for one in found:
        if one.object == "dispatcher":
            for ident, slot in whereabouts.slots(one.map_ids):
                for at in one.attached:
                    members.setdefault(ident, []).append(Attached(0, "chain", f"{at.place} slot {slot}"))
    return [replace(one, attached=(*one.attached, *members.get(one.id, ()))) for one in found]


def source_of(program_id: int) -> str:
    """The object of ours that a program comes from, "" for a foreign one, whatever its name, and for one that is gone.

    Raises PrivilegeError without CAP_SYS_ADMIN.
    """
    return _source(_btf_id(program_id), {})


def btf_of(program_id: int) -> bytes:
    """The BTF that a program was loaded with, as its loader gave it; nothing for none, and for a program that is gone.

    Raises PrivilegeError without CAP_SYS_ADMIN.
    """
    ident = _btf_id(program_id)
    return _btf(ident) if ident else b""


def _btf_id(program_id: int) -> int:
    try:
        fd = syscall.fd_by_id(syscall.PROG_GET_FD_BY_ID, program_id)
    except FileNotFoundError:
        return 0
    try:
        ident: int = struct.unpack_from("=I", syscall.info(fd, 232), 128)[0]
        return ident
    finally:
        os.close(fd)


def _ids(command: int, what: str) -> Iterator[int]:
    attr = bytearray(12)
    while True:
        code = syscall.bpf_raw(command, attr)
        if code == -errno.ENOENT:
            return
        if code < 0:
            raise syscall.explain(-code, "list", what, wanted=("CAP_SYS_ADMIN",))
        ident = struct.unpack_from("=I", attr, 4)[0]
        yield ident
        struct.pack_into("=III", attr, 0, ident, 0, 0)


def _program(ident: int, kernel: _Kernel) -> Loaded | None:
    try:
        fd = syscall.fd_by_id(syscall.PROG_GET_FD_BY_ID, ident)
    except FileNotFoundError:
        return None
    try:
        data = syscall.info(fd, 232)
        map_ids = syscall.map_ids(fd)
    finally:
        os.close(fd)
    number = struct.unpack_from("=I", data)[0]
    loaded_ns, uid = struct.unpack_from("=QI", data, 40)
    run_ns, runs = struct.unpack_from("=QQ", data, 192)
    return Loaded(
        ident,
        _text(bytes(data[64:80])),
        PROGRAM_TYPES[number] if number < len(PROGRAM_TYPES) else f"type {number}",
        bytes(data[8:16]).hex(),
        _source(struct.unpack_from("=I", data, 128)[0], kernel.sources),
        loaded_ns,
        uid,
        struct.unpack_from("=I", data, 20)[0] // 8,
        struct.unpack_from("=I", data, 216)[0],
        runs,
        run_ns,
        map_ids,
        tuple(kernel.links.get(ident, ())),
        tuple(dict.fromkeys(_holding(ident, kernel))),
        sum(_memory(one, kernel.map_bytes) for one in map_ids),
        tuple(_pinned(ident, kernel)),
    )


def _memory(map_id: int, known: dict[int, int]) -> int:
    if map_id not in known:
        known[map_id] = syscall.map_bytes(map_id)
    return known[map_id]


def _pinned(ident: int, kernel: _Kernel) -> Iterator[str]:
    yield from kernel.pins.get(("prog", ident), ())
    for link in kernel.links.get(ident, ()):
        yield from kernel.pins.get(("link", link.link_id), ())


def _holding(ident: int, kernel: _Kernel) -> Iterator[Holder]:
    yield from kernel.holders.get(("prog", ident), ())
    for link in kernel.links.get(ident, ()):
        yield from kernel.holders.get(("link", link.link_id), ())


def _source(btf_id: int, known: dict[int, str]) -> str:
    """The object of ours whose source a program's BTF names, or ""; many programs share one BTF."""
    if btf_id and btf_id not in known:
        known[btf_id] = _ours(_btf(btf_id))
    return known.get(btf_id, "")


def _ours(btf: bytes) -> str:
    match = _SOURCE.search(btf)
    if match is None:
        return ""
    name = match[1].decode("ascii")
    try:
        object_path(name)
    except MapekError:
        return ""
    return name


def _btf(ident: int) -> bytes:
    try:
        fd = syscall.fd_by_id(_BTF_GET_FD_BY_ID, ident)
    except (FileNotFoundError, MapekError):
        return b""
    try:
        raw = ctypes.create_string_buffer(_MAX_BTF)
        data = bytearray(40)
        struct.pack_into("=QI", data, 0, ctypes.addressof(raw), _MAX_BTF)
        if syscall.fill_info(fd, data) < 0:
            return b""
        return raw.raw[: min(_MAX_BTF, struct.unpack_from("=I", data, 8)[0])]
    finally:
        os.close(fd)


def _link(ident: int, kernel: _Kernel) -> tuple[int, Attached] | None:
    """Its program's id and what it is."""
    try:
        fd = syscall.fd_by_id(_LINK_GET_FD_BY_ID, ident)
    except FileNotFoundError:
        return None
    try:
        data = syscall.info(fd, 80)
        name = ctypes.create_string_buffer(128)
        if struct.unpack_from("=I", data)[0] == _LINK_TYPES.index("raw_tracepoint"):
            # Only now: other types would take the address for one of an array of theirs, of another size.
            struct.pack_into("=QI", data, 16, ctypes.addressof(name), len(name))
            syscall.fill_info(fd, data)
    finally:
        os.close(fd)
    number, _, program = struct.unpack_from("=III", data)
    kind = _LINK_TYPES[number] if number < len(_LINK_TYPES) else f"type {number}"
    first, second = struct.unpack_from("=II", data, 16)
    place = ""
    if kind in ("xdp", "tcx", "netkit"):
        # The number alone means another interface in every network namespace.
        if kind == "xdp":
            here = whereabouts.runs_xdp(kernel.here, first, program)
        else:
            here = ident in whereabouts.links_at(first, second)
        place = f"{_interface(kernel, first, here)} {_TCX.get(second, '') if kind != 'xdp' else ''}".strip()
    elif kind == "raw_tracepoint":
        place = _text(name.raw)
    return program, Attached(ident, kind, place, ("link", ident) not in kernel.holders)


def _interface(kernel: _Kernel, ifindex: int, here: bool) -> str:
    if not ifindex:
        return "an interface that is gone"
    if here and ifindex in kernel.here:
        return kernel.here[ifindex].name
    return f"ifindex {ifindex} of another network namespace"


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode("utf-8", "replace")
