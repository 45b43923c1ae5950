"""tc attachment: by tcx link (kernel 6.6), or by a clsact filter through pyroute2 below that.

A tcx link dies with its process like an XDP link. A clsact filter stays until it is removed; it gets a
priority and handle of its own, and only that is ever removed. The qdisc goes only if we made it and nobody
has put a filter there since.
"""

from __future__ import annotations

import errno
import os
import struct
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, Self

from mapek.bpf import syscall
from mapek.bpf.program import Program
from mapek.bpf.worker import in_thread
from mapek.bpf.xdp import LINK_TCX, Link, interface_name
from mapek.errors import AttachError, FeatureError

if TYPE_CHECKING:
    from pyroute2 import IPRoute

Direction = Literal["ingress", "egress"]
Way = Literal["auto", "tcx", "clsact"]
_TCX: Final = {"ingress": 46, "egress": 47}
_PARENT: Final = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_CLSACT: Final = 0xFFFFFFF1
_ETH_P_ALL: Final = 3
# Our own priority among the filters of an interface; people and CNIs use small or round ones.
PRIORITY: Final = 0xBEE


class TcxLink(Link):
    """A tcx link; `way` is "tcx"."""

    way: Final = "tcx"

    def __init__(self, fd: int, direction: Direction) -> None:
        super().__init__(fd)
        self.direction = direction


class ClsactFilter:
    """A clsact filter of ours; `way` is "clsact". It outlives the process: `detach` removes it, `close` only
    lets go."""

    way: Final = "clsact"

    def __init__(
        self, ifindex: int, direction: Direction, handle: int, name: str, program_id: int, made: bool
    ) -> None:
        self.ifindex, self.direction, self.handle, self.name = ifindex, direction, handle, name
        self.program_id, self._made_qdisc, self._open = program_id, made, True

    def update(self, program: Program) -> None:
        """Replace our program atomically. Raises AttachError when the filter is not there any more."""
        from pyroute2.netlink.exceptions import NetlinkError

        from mapek.bpf.xdp_netlink import with_iproute

        self._check()
        try:
            with_iproute(
                lambda ip: _filter(ip, "replace-filter", self.ifindex, self.direction, self.handle, program)
            )
        except NetlinkError as error:
            raise _explain(error.code, self.ifindex, self.direction) from error
        self.name, self.program_id = _name(program), program.id

    def _check(self) -> None:
        names = _filters(self.ifindex, self.direction)
        if names.get((PRIORITY, self.handle)) != self.name:
            on = interface_name(self.ifindex)
            raise AttachError("find our tc filter on", on, "it is gone or replaced", "attach again")

    def detach(self) -> None:
        """Remove our filter, and the qdisc if we made it and it is empty. Twice is fine; a foreign filter is
        left alone."""
        if not self._open:
            return
        self._open = False
        from pyroute2.netlink.exceptions import NetlinkError

        from mapek.bpf.xdp_netlink import with_iproute

        parent = _PARENT[self.direction]
        try:
            if _filters(self.ifindex, self.direction).get((PRIORITY, self.handle)) == self.name:
                with_iproute(
                    lambda ip: ip.tc(
                        "del-filter", index=self.ifindex, parent=parent, handle=self.handle, prio=PRIORITY,
                        protocol=_ETH_P_ALL, kind="bpf",
                    )
                )  # fmt: skip
            if (
                self._made_qdisc
                and not _filters(self.ifindex, "ingress")
                and not _filters(self.ifindex, "egress")
            ):
                with_iproute(lambda ip: ip.tc("del", "clsact", self.ifindex))
        except NetlinkError as error:
            if error.code not in (errno.ENODEV, errno.ENOENT, errno.EINVAL):
                raise _explain(error.code, self.ifindex, self.direction) from error

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


TcLink = TcxLink | ClsactFilter


def attach_tc(program: Program, ifindex: int, direction: Direction = "ingress", way: Way = "auto") -> TcLink:
    """Attach a tc program (type sched_cls) to `ifindex` in the calling thread's namespace. Blocks for
    milliseconds.

    Args:
        way: "tcx" (kernel 6.6), "clsact", or "auto": tcx where the kernel has it; the result's `way` says
            which.

    Raises:
        AttachError: no such interface. FeatureError: no tcx. PrivilegeError: CAP_NET_ADMIN or CAP_BPF is
            missing.
    """
    if direction not in _TCX or way not in ("auto", "tcx", "clsact"):
        raise ValueError(f"direction {direction!r} or way {way!r} is not known")
    on = f"{interface_name(ifindex)} {direction}"
    if program.type != "sched_cls":
        raise AttachError(
            "attach tc to", on, f"program {program.name} is of type {program.type}", "give a tc program"
        )
    if way == "clsact":
        return _attach_clsact(program, ifindex, direction)
    attr = struct.pack("=IIII", program.fd, ifindex, _TCX[direction], 0) + bytes(16)
    result = syscall.bpf_raw(syscall.LINK_CREATE, attr)
    if result >= 0:
        return TcxLink(result, direction)
    error = syscall.explain(
        -result, "attach tcx to", on, wanted=("CAP_NET_ADMIN", "CAP_BPF"), needs="tcx, kernel 6.6"
    )
    if way == "auto" and isinstance(error, FeatureError):
        return _attach_clsact(program, ifindex, direction)
    raise error


async def attach_tc_async(
    program: Program, ifindex: int, direction: Direction = "ingress", way: Way = "auto"
) -> TcLink:
    """`attach_tc` in a thread, in the caller's network namespace; a cancelled attach is undone."""
    return await in_thread(lambda: attach_tc(program, ifindex, direction, way), lambda link: link.detach())


def open_tcx(path: str | os.PathLike[str]) -> TcxLink:
    """The tcx link pinned at `path`. Raises FileNotFoundError, AttachError when it is another kind."""
    fd = syscall.get_pinned(path)
    kind, _, _, _, _, attach = struct.unpack_from("=6I", syscall.info(fd, 64))
    if syscall.kind(fd) != "link" or kind != LINK_TCX:
        os.close(fd)
        raise AttachError(
            "open tcx link", os.fspath(path), f"a link of type {kind} is pinned there", "check the path"
        )
    link = TcxLink(fd, "ingress" if attach == _TCX["ingress"] else "egress")
    link.pinned = os.fspath(path)
    return link


def _name(program: Program) -> str:
    return f"mapek:{program.name}:{program.id}"


def _filter(
    ip: IPRoute, command: str, ifindex: int, direction: Direction, handle: int, program: Program
) -> None:
    ip.tc(
        command, "bpf", ifindex, handle, fd=program.fd, name=_name(program), parent=_PARENT[direction],
        prio=PRIORITY, protocol=_ETH_P_ALL, direct_action=True,
    )  # fmt: skip


def _filters(ifindex: int, direction: Direction) -> dict[tuple[int, int], str]:
    """Every filter of one direction: (priority, handle) -> bpf name, "" for other kinds."""
    from mapek.bpf.xdp_netlink import with_iproute

    found = {}
    for message in with_iproute(lambda ip: list(ip.get_filters(index=ifindex, parent=_PARENT[direction]))):
        # The kernel dumps a chain head with handle 0 beside its filters.
        if message["handle"] == 0:
            continue
        options = message.get_attr("TCA_OPTIONS") if message.get_attr("TCA_KIND") == "bpf" else None
        name = options.get_attr("TCA_BPF_NAME") if options is not None else ""
        found[message["info"] >> 16, int(message["handle"])] = name or ""
    return found


def _attach_clsact(program: Program, ifindex: int, direction: Direction) -> ClsactFilter:
    from pyroute2.netlink.exceptions import NetlinkError

    from mapek.bpf.xdp_netlink import with_iproute

    made = True
    try:
        try:
            with_iproute(lambda ip: ip.tc("add", "clsact", ifindex))
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
            made = False
        for handle in range(1, 64):
            add = partial(
                _filter,
                command="add-filter",
                ifindex=ifindex,
                direction=direction,
                handle=handle,
                program=program,
            )
            try:
                with_iproute(add)
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise
            else:
                return ClsactFilter(ifindex, direction, handle, _name(program), program.id, made)
    except NetlinkError as error:
        raise _explain(error.code, ifindex, direction) from error
    raise AttachError(
        "attach tc to", interface_name(ifindex), "63 filters of ours are there", "mapek lab clean"
    )


def _explain(code: int, ifindex: int, direction: Direction) -> Exception:
    on = f"{interface_name(ifindex)} {direction}"
    return syscall.explain(
        code,
        "attach clsact to",
        on,
        wanted=("CAP_NET_ADMIN",),
        needs="CONFIG_NET_CLS_BPF, CONFIG_NET_SCH_INGRESS",
    )
