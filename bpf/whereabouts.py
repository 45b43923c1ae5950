"""Where programs are that no link tells of: XDP by netlink, tc filters, the slots of a chain, pins, perf events.

Interfaces are those of the calling thread's network namespace, pins those on the bpffs mounts that it sees. What
vanishes while it is looked at is left out; so are filters of other qdiscs than clsact and ingress. Symbolic links are
not followed. Needs CAP_SYS_ADMIN for what is opened by its id. Milliseconds, so a thread's work.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import stat
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mapek.bpf import rtnl, syscall
from mapek.bpf.xdp_netlink import XdpState, parse_xdp
from mapek.errors import MapekError

_GETLINK, _GETQDISC = 18, 38
_IFLA_IFNAME, _IFLA_XDP = 3, 43
_TCA_KIND, _TCA_OPTIONS, _TCA_BPF_NAME, _TCA_BPF_ID = 1, 2, 7, 11
_HOOKS: Final = {"clsact": {0xFFFFFFF2: "ingress", 0xFFFFFFF3: "egress"}, "ingress": {0xFFFFFFFF: "ingress"}}
_PROG_QUERY, _TASK_FD_QUERY = 16, 20
_EVENTS: Final = ("raw tracepoint", "tracepoint", "kprobe", "kretprobe", "uprobe", "uretprobe")
MOST_PINS: Final = 10_000
"""That are looked at: a bpffs may hold any number."""

Place = tuple[int, str, str]
"""A program's id, how it is attached, and where."""


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface, and the XDP that it runs."""

    name: str
    xdp: XdpState | None


def interfaces() -> dict[int, Interface]:
    """Those of the calling thread's network namespace, by ifindex."""
    found = {}
    for body in _dump(_GETLINK, struct.pack("=BxHiII", 0, 0, 0, 0, 0)):
        told = rtnl.attributes(body, 16)
        name = told.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "replace")
        found[struct.unpack_from("=4xi", body)[0]] = Interface(name, parse_xdp(told.get(_IFLA_XDP, b"")))
    return found


def runs_xdp(here: Mapping[int, Interface], ifindex: int, program_id: int) -> bool:
    """Does an interface of ours run that program? A link does not say which namespace its interface is of."""
    one = here.get(ifindex)
    return one is not None and one.xdp is not None and one.xdp.program_id == program_id


def links_at(ifindex: int, attach_type: int) -> tuple[int, ...]:
    """The ids of links at a tcx or netkit hook of an interface of ours (kernel 6.6)."""
    ids = (ctypes.c_uint32 * 64)()
    programs = (ctypes.c_uint32 * 64)()
    # target_ifindex, attach_type, two flags, prog_ids, count and padding, prog_attach_flags, link_ids, two more.
    attr = bytearray(
        struct.pack(
            "=IIIIQIIQQQQ",
            ifindex,
            attach_type,
            0,
            0,
            ctypes.addressof(programs),
            64,
            0,
            0,
            ctypes.addressof(ids),
            0,
            0,
        )
    )
    if syscall.bpf_raw(_PROG_QUERY, attr) < 0:
        return ()
    return tuple(ids[: min(64, struct.unpack_from("=I", attr, 24)[0])])


def by_netlink(here: Mapping[int, Interface], linked: Collection[tuple[int, str]]) -> Iterator[Place]:
    """XDP programs that hang on an interface itself; `linked` has those (program id, interface) that a link holds."""
    for one in here.values():
        if one.xdp is not None and (one.xdp.program_id, one.name) not in linked:
            yield one.xdp.program_id, "xdp by netlink", f"{one.name} {one.xdp.mode}"


def tc_filters(here: Mapping[int, Interface]) -> Iterator[Place]:
    """Programs that are filters of a clsact or ingress qdisc."""
    for body in _dump(_GETQDISC, rtnl.TCM.pack(0, 0, 0, 0, 0)):
        kind = (
            rtnl.attributes(body, rtnl.TCM.size).get(_TCA_KIND, b"").rstrip(b"\0").decode("ascii", "replace")
        )
        ifindex = rtnl.TCM.unpack_from(body)[1]
        for parent, direction in _HOOKS.get(kind, {}).items():
            for one in _dump(rtnl.GET_TFILTER, rtnl.TCM.pack(0, ifindex, 0, parent, 0)):
                _, _, handle, _, info = rtnl.TCM.unpack_from(one)
                told = rtnl.attributes(one, rtnl.TCM.size)
                bpf = rtnl.attributes(told.get(_TCA_OPTIONS, b""))
                ident = bpf.get(_TCA_BPF_ID, b"")
                if told.get(_TCA_KIND, b"").rstrip(b"\0") != b"bpf" or len(ident) != 4:
                    continue
                where = f"{here[ifindex].name if ifindex in here else f'ifindex {ifindex}'} {direction}"
                place = f"{where} prio {info >> 16} handle {handle:#x}"
                yield struct.unpack("=I", ident)[0], kind, place


def slots(map_ids: Iterable[int]) -> Iterator[tuple[int, str]]:
    """Program id and slot of each member of a dispatcher's chain, which is the program array among its maps."""
    from mapek.bpf.dispatcher import SLOTS
    from mapek.bpf.maps import ProgArrayMap, wrap

    for ident in map_ids:
        try:
            with wrap(syscall.fd_by_id(syscall.MAP_GET_FD_BY_ID, ident)) as found:
                if isinstance(found, ProgArrayMap):
                    for index in range(found.max_entries):
                        if (member := found.program_id(index)) is not None:
                            yield member, SLOTS[index] if index < len(SLOTS) else f"{index}"
        except (MapekError, OSError):
            continue


def pins() -> dict[tuple[str, int], tuple[str, ...]]:
    """Paths by what is pinned there: ("prog" | "map" | "link", id)."""
    found: dict[tuple[str, int], tuple[str, ...]] = {}
    for number, path in enumerate(_pin_files()):
        if number >= MOST_PINS:
            break
        with contextlib.suppress(MapekError, OSError):
            fd = syscall.get_pinned(path)
            try:
                key = _identity(fd)
            finally:
                os.close(fd)
            if key is not None:
                found[key] = (*found.get(key, ()), str(path))
    return found


def mounts(kind: str) -> list[Path]:
    """Where file systems of a kind are mounted, as the calling process sees them; each device once."""
    try:
        text = Path("/proc/thread-self/mountinfo").read_text("utf-8", "surrogateescape")
    except OSError:
        return []
    found: dict[str, Path] = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if after.split(" ")[0] == kind and len(fields) > 4:
            # The kernel writes blanks in paths as octal numbers.
            where = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
            found.setdefault(fields[2], Path(where))
    return list(found.values())


def _pin_files() -> Iterator[Path]:
    for mount in mounts("bpf"):
        for folder, _, names in os.walk(mount, followlinks=False):
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(OSError):
                    if stat.S_ISREG(path.lstat().st_mode):
                        yield path


def _identity(fd: int) -> tuple[str, int] | None:
    kind = syscall.kind(fd)
    if kind not in ("prog", "map", "link"):
        return None
    return kind, struct.unpack_from("=4xI", syscall.info(fd, 64 if kind == "link" else 80))[0]


def perf_events(pids: Iterable[int]) -> Iterator[Place]:
    """Programs on perf events of these processes: classic tracepoints, kprobes and uprobes."""
    for pid in pids:
        folder = Path(f"/proc/{pid}/fd")
        with contextlib.suppress(OSError):
            for handle in folder.iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(handle) != "anon_inode:[perf_event]":
                        continue
                    name = ctypes.create_string_buffer(256)
                    # pid, fd, flags, buf_len, buf; then prog_id, fd_type, probe_offset, probe_addr.
                    attr = bytearray(
                        struct.pack(
                            "=IIIIQIIQQ", pid, int(handle.name), 0, 256, ctypes.addressof(name), 0, 0, 0, 0
                        )
                    )
                    if syscall.bpf_raw(_TASK_FD_QUERY, attr) == 0:
                        program, kind = struct.unpack_from("=II", attr, 24)
                        yield (
                            program,
                            _EVENTS[kind] if kind < len(_EVENTS) else f"event {kind}",
                            name.value.decode("utf-8", "replace"),
                        )


def _dump(kind: int, body: bytes) -> list[bytes]:
    try:
        return rtnl.dump(kind, body)
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.ENOENT, errno.EINVAL):
            return []
        raise syscall.explain(
            error.errno or errno.EIO, "list", "interfaces", wanted=("CAP_NET_ADMIN",)
        ) from error
