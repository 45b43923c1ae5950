"""clsact filters: tc attachment below kernel 6.6, by netlink, which no process owns.

A filter stays until it is removed, also when its process is killed; it gets a priority by its place among ours (within
one the newest runs first), a free handle and a name that says whose it is. The name says too whether the qdisc is ours,
and every filter that is attached beside such a one takes that over: whoever of ours leaves last, in whatever order and
process, takes the qdisc along if nobody else has a filter there. Only two processes that attach to an interface at the
same moment may leave an empty qdisc behind. pyroute2 is imported when it is needed, for it costs memory.
"""

from __future__ import annotations

import errno
import re
import socket
import struct
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from mapek.bpf import rtnl, syscall
from mapek.bpf.program import Program
from mapek.bpf.tc_order import PLACES, Direction, place_of
from mapek.bpf.worker import in_thread
from mapek.bpf.xdp import interface_name
from mapek.errors import AttachError

if TYPE_CHECKING:
    from pyroute2 import IPRoute

_PARENT: Final[dict[Direction, int]] = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_ETH_P_ALL: Final = 3
_TCA_KIND, _TCA_OPTIONS, _TCA_BPF_NAME, _TCA_BPF_ID = 1, 2, 7, 11
# Our own priorities among the filters of an interface; people and CNIs use small or round ones.
PRIORITY: Final = 0xBEE
_PRIORITIES: Final = range(PRIORITY + PLACES.start, PRIORITY + PLACES.stop)
_MADE: Final = ":qdisc"
_NAME: Final = re.compile(rf"mapek:(\w+):(\d{{1,10}})(?:{_MADE})?")
_At = tuple[int, Direction, int, int]
"""Interface, direction, priority and handle."""
_TURN: Final = threading.Lock()
"""Between looking at a qdisc and acting on what was seen, another thread of ours must not change it."""


class ClsactFilter:
    """A clsact filter of ours; `way` is "clsact". It outlives the process: `detach` removes it, `close` only
    lets go."""

    way: Final = "clsact"

    def __init__(
        self, ifindex: int, direction: Direction, priority: int, handle: int, name: str, program_id: int
    ) -> None:
        self.ifindex, self.direction, self.priority = ifindex, direction, priority
        self.handle, self.name = handle, name
        self.program_id, self._open = program_id, True

    @property
    def program(self) -> str:
        """The name of the program that it was attached with."""
        return self.name.split(":")[1]

    def lost(self) -> str:
        """How it was taken off behind our back, in words; "" while it is there, and for one that we let go.

        The kernel says RTNLGRP_TC when that happens. Waits for rtnl: a thread's work. Raises OSError where the
        kernel does not answer.
        """
        ours = self.name, self.program_id
        if not self._open:
            return ""
        info = self.priority << 16 | socket.htons(_ETH_P_ALL)
        asked = rtnl.TCM.pack(0, self.ifindex, self.handle, _PARENT[self.direction], info)
        kind = struct.pack("=HH4s", 8, _TCA_KIND, b"bpf")
        try:
            told = rtnl.attributes(rtnl.ask(rtnl.GET_TFILTER, asked + kind), rtnl.TCM.size)
        except OSError as error:
            # The qdisc, the chain or the filter is not there.
            if error.errno in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
                return "its filter is gone"
            raise
        bpf = rtnl.attributes(told.get(_TCA_OPTIONS, b""))
        name = bpf.get(_TCA_BPF_NAME, b"").rstrip(b"\0").decode("utf-8", "replace")
        # Kernels that do not tell the program's number (before 4.14) are none of ours.
        found = name, int.from_bytes(bpf.get(_TCA_BPF_ID, b""), sys.byteorder)
        if found == ours or ours != (self.name, self.program_id):
            return ""
        return f"another filter is in its place: {name or 'without a name'}, program id {found[1]}"

    def update(self, program: Program) -> None:
        """Replace our program atomically. Raises AttachError when the filter is not there any more."""
        from pyroute2.netlink.exceptions import NetlinkError

        from mapek.bpf.xdp_netlink import with_iproute

        if not self._is_there():
            on = interface_name(self.ifindex)
            raise AttachError("find our tc filter on", on, "it is gone or replaced", "attach again")
        name = _name(program, made=self.name.endswith(_MADE))
        at = self.ifindex, self.direction, self.priority, self.handle
        try:
            with_iproute(partial(_put, "replace-filter", at, program, name))
        except NetlinkError as error:
            raise _explain(error.code, self.ifindex, self.direction) from error
        self.name, self.program_id = name, program.id

    def _is_there(self) -> bool:
        return _filters(self.ifindex, self.direction).get((self.priority, self.handle)) == self.name

    def detach(self) -> None:
        """Remove our filter, and the qdisc if one of ours made it and it is empty. Twice is fine, and after a
        failure it may be tried again; a foreign filter is left alone."""
        from pyroute2.netlink.exceptions import NetlinkError

        from mapek.bpf.xdp_netlink import with_iproute

        if not self._open:
            return
        try:
            with _TURN:
                if self._is_there():
                    with_iproute(
                        lambda ip: ip.tc(
                            "del-filter", index=self.ifindex, parent=_PARENT[self.direction],
                            handle=self.handle, prio=self.priority, protocol=_ETH_P_ALL, kind="bpf",
                        )
                    )  # fmt: skip
                if self.name.endswith(_MADE):
                    _drop_empty_qdisc(self.ifindex)
        except NetlinkError as error:
            if error.code not in (errno.ENODEV, errno.ENOENT, errno.EINVAL):
                raise _explain(error.code, self.ifindex, self.direction) from error
        self._open = False

    def close(self) -> None:
        """Let go of it; the filter stays."""
        self._open = False

    async def update_async(self, program: Program) -> None:
        """`update` in a thread."""
        await in_thread(lambda: self.update(program))

    async def detach_async(self) -> None:
        """`detach` in a thread."""
        await in_thread(self.detach)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.detach_async()


def attach_clsact(program: Program, ifindex: int, direction: Direction) -> ClsactFilter:
    """Attach a tc program in the calling thread's namespace, with the qdisc if there is none. Blocks for
    milliseconds. Raises as `mapek.bpf.tc.attach_tc`."""
    from pyroute2.netlink.exceptions import NetlinkError

    from mapek.bpf.xdp_netlink import with_iproute

    priority = PRIORITY + place_of(program.name, direction)
    try:
        with _TURN:
            made = _make_qdisc(ifindex)
            name = _name(program, made=made or _is_qdisc_ours(ifindex))
            try:
                taken = {} if made else _filters(ifindex, direction)
                for handle in (one for one in range(1, 64) if (priority, one) not in taken):
                    put = partial(_put, "add-filter", (ifindex, direction, priority, handle), program, name)
                    try:
                        with_iproute(put)
                    except NetlinkError as error:
                        if error.code != errno.EEXIST:
                            raise
                    else:
                        return ClsactFilter(ifindex, direction, priority, handle, name, program.id)
            except BaseException:
                if made:
                    _drop_empty_qdisc(ifindex)
                raise
    except NetlinkError as error:
        raise _explain(error.code, ifindex, direction) from error
    raise AttachError(
        "attach tc to",
        f"{interface_name(ifindex)} {direction}",
        "63 filters of ours are there, left by agents that were killed",
        "mapek release removes them",
    )


def find_clsact() -> list[ClsactFilter]:
    """Every filter with a name and a priority of ours in the calling thread's namespace, whoever attached it.
    Blocks for milliseconds. Raises FeatureError or PrivilegeError where the kernel refuses."""
    from pyroute2.netlink.exceptions import NetlinkError

    from mapek.bpf.xdp_netlink import with_iproute

    def dump(ip: IPRoute) -> list[ClsactFilter]:
        # An older `ingress` qdisc takes our filters, too, and shows them whatever direction is asked for.
        kinds = {
            one["index"]: kind
            for one in ip.get_qdiscs()
            if (kind := one.get_attr("TCA_KIND")) in ("clsact", "ingress")
        }
        return [
            ClsactFilter(ifindex, direction, priority, handle, name, int(match[2]))
            for ifindex, kind in sorted(kinds.items())
            for direction in _PARENT
            if kind == "clsact" or direction == "ingress"
            for (priority, handle), name in sorted(_read(ip, ifindex, direction).items())
            if priority in _PRIORITIES and (match := _NAME.fullmatch(name))
        ]

    try:
        return with_iproute(dump)
    except NetlinkError as error:
        raise syscall.explain(error.code, "list", "tc filters", wanted=("CAP_NET_ADMIN",)) from error


def _name(program: Program, *, made: bool) -> str:
    return f"mapek:{program.name}:{program.id}{_MADE if made else ''}"


def _make_qdisc(ifindex: int) -> bool:
    """Whether there was none."""
    from pyroute2.netlink.exceptions import NetlinkError

    from mapek.bpf.xdp_netlink import with_iproute

    try:
        with_iproute(lambda ip: ip.tc("add", "clsact", ifindex))
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
        return False
    return True


def _is_qdisc_ours(ifindex: int) -> bool:
    return any(
        priority in _PRIORITIES and name.endswith(_MADE) and _NAME.fullmatch(name)
        for direction in _PARENT
        for (priority, _), name in _filters(ifindex, direction).items()
    )


def _drop_empty_qdisc(ifindex: int) -> None:
    from mapek.bpf.xdp_netlink import with_iproute

    if not any(_filters(ifindex, direction) for direction in _PARENT):
        with_iproute(lambda ip: ip.tc("del", "clsact", ifindex))


def _put(command: str, at: _At, program: Program, name: str, ip: IPRoute) -> None:
    ifindex, direction, priority, handle = at
    ip.tc(
        command, "bpf", ifindex, handle, fd=program.fd, name=name, parent=_PARENT[direction],
        prio=priority, protocol=_ETH_P_ALL, direct_action=True,
    )  # fmt: skip


def _filters(ifindex: int, direction: Direction) -> dict[tuple[int, int], str]:
    from mapek.bpf.xdp_netlink import with_iproute

    return with_iproute(lambda ip: _read(ip, ifindex, direction))


def _read(ip: IPRoute, ifindex: int, direction: Direction) -> dict[tuple[int, int], str]:
    """Every filter of one direction: (priority, handle) -> bpf name, "" for other kinds."""
    found = {}
    for message in ip.get_filters(index=ifindex, parent=_PARENT[direction]):
        # The kernel dumps a chain head with handle 0 beside its filters.
        if message["handle"] == 0:
            continue
        options = message.get_attr("TCA_OPTIONS") if message.get_attr("TCA_KIND") == "bpf" else None
        name = options.get_attr("TCA_BPF_NAME") if options is not None else ""
        found[message["info"] >> 16, int(message["handle"])] = name or ""
    return found


def _explain(code: int, ifindex: int, direction: Direction) -> Exception:
    on = f"{interface_name(ifindex)} {direction}"
    return syscall.explain(
        code,
        "attach clsact to",
        on,
        wanted=("CAP_NET_ADMIN",),
        needs="CONFIG_NET_CLS_BPF, CONFIG_NET_SCH_INGRESS",
    )
