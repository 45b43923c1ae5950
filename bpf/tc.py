"""tc attachment: by tcx link (kernel 6.6), or by a clsact filter below that (`mapek.bpf.clsact`), in the order that
`mapek.bpf.tc_order` says.

A tcx link dies with its process like an XDP link. A clsact filter stays until it is removed.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import weakref
from typing import Final, Literal

from mapek.bpf import syscall
from mapek.bpf.clsact import ClsactFilter, attach_clsact, find_clsact
from mapek.bpf.keep import Kept
from mapek.bpf.program import Program
from mapek.bpf.tc_order import TCX, beside, place_of
from mapek.bpf.tc_order import Direction as Direction
from mapek.bpf.worker import in_thread_with
from mapek.bpf.xdp import LINK_TCX, Link, interface_name
from mapek.errors import AttachError, FeatureError

Way = Literal["auto", "tcx", "clsact"]
_TRIES: Final = 5
_TURN: Final = threading.Lock()
"""Between looking at what is there and attaching beside it no other thread of ours may attach."""
_OPEN: Final[weakref.WeakSet[TcxLink]] = weakref.WeakSet()
_OPEN_LOCK: Final = threading.Lock()


class TcxLink(Link):
    """A tcx link; `way` is "tcx". `place`: of its program among ours."""

    way: Final = "tcx"

    def __init__(self, fd: int, direction: Direction, place: int = 0) -> None:
        super().__init__(fd)
        self.direction, self.place = direction, place
        with _OPEN_LOCK:
            _OPEN.add(self)

    def update(self, program: Program) -> None:
        super().update(program)
        self.place = place_of(program.name, self.direction)


TcLink = TcxLink | ClsactFilter


def attach_tc(program: Program, ifindex: int, direction: Direction = "ingress", way: Way = "auto") -> TcLink:
    """Attach a tc program (type sched_cls) to `ifindex` in the calling thread's namespace, in the place that its name
    has among ours. Blocks for milliseconds.

    Args:
        way: "tcx" (kernel 6.6), "clsact", or "auto": tcx where the kernel has it; the result's `way` says
            which.

    Raises:
        AttachError: no such interface. FeatureError: no tcx. PrivilegeError: CAP_NET_ADMIN or CAP_BPF is
            missing.
    """
    if direction not in TCX or way not in ("auto", "tcx", "clsact"):
        raise ValueError(f"direction {direction!r} or way {way!r} is not known")
    on = f"{interface_name(ifindex)} {direction}"
    if program.type != "sched_cls":
        raise AttachError(
            "attach tc to", on, f"program {program.name} is of type {program.type}", "give a tc program"
        )
    if way == "clsact":
        return attach_clsact(program, ifindex, direction)
    with _TURN:
        result = _create(program, ifindex, direction)
        if result >= 0:
            return TcxLink(result, direction, place_of(program.name, direction))
    error = syscall.explain(
        -result, "attach tcx to", on, wanted=("CAP_NET_ADMIN", "CAP_BPF"), needs="tcx, kernel 6.6"
    )
    if way == "auto" and isinstance(error, FeatureError):
        return attach_clsact(program, ifindex, direction)
    raise error


def _create(program: Program, ifindex: int, direction: Direction) -> int:
    result = 0
    for _ in range(_TRIES):
        with _OPEN_LOCK:
            ours = [(one.id, one.place) for one in _OPEN if one.direction == direction and one.fd >= 0]
        flags, relative = beside(ifindex, direction, place_of(program.name, direction), ours)
        attr = struct.pack("=6IQ", program.fd, ifindex, TCX[direction], flags, relative, 0, 0)
        result = syscall.bpf_raw(syscall.LINK_CREATE, attr)
        # The one beside which it was to be may have gone meanwhile.
        if result != -errno.ENOENT or not flags:
            break
    return result


def attach_tc_kept(
    program: Program, ifindex: int, direction: Direction, way: Way, kept: Kept, name: str
) -> TcLink:
    """`attach_tc`, or where an agent before us left its program running, ours in the place of that, without a gap.

    Args:
        kept: where a link is kept, under `name`. A filter stays by itself, and is found by its program's name.
    """
    link = kept.link(name, open_tcx, lambda one: (one.ifindex, one.direction) == (ifindex, direction))
    if link is not None:
        try:
            link.update(program)
        except BaseException:
            link.close()
            raise
        return link
    if kept.adopted:
        for one in find_clsact():
            if (one.ifindex, one.direction, one.program) == (ifindex, direction, program.name):
                one.update(program)
                return one
    attached = attach_tc(program, ifindex, direction, way)
    if isinstance(attached, TcxLink):
        kept.hold(name, attached)
    return attached


async def attach_tc_async(
    program: Program, ifindex: int, direction: Direction = "ingress", way: Way = "auto"
) -> TcLink:
    """`attach_tc` in a thread, in the caller's network namespace; a cancelled attach is undone."""
    return await in_thread_with(
        program, lambda mine: attach_tc(mine, ifindex, direction, way), lambda link: link.detach()
    )


def open_tcx(path: str | os.PathLike[str]) -> TcxLink:
    """The tcx link pinned at `path`. Raises FileNotFoundError, AttachError when it is another kind."""
    fd = syscall.get_pinned(path)
    kind, _, _, _, _, attach = struct.unpack_from("=6I", syscall.info(fd, 64))
    if syscall.kind(fd) != "link" or kind != LINK_TCX:
        os.close(fd)
        raise AttachError(
            "open tcx link", os.fspath(path), f"a link of type {kind} is pinned there", "check the path"
        )
    link = TcxLink(fd, "ingress" if attach == TCX["ingress"] else "egress")
    link.pinned = os.fspath(path)
    return link
