"""XDP attachment by bpf_link (kernel 5.9): it dies with the process that holds it, or lives on when pinned.

One hook, one file. The mode that was asked for is the mode that is got: only "auto" may choose, and what it
chose is said. Attach, update and detach wait for an RCU grace period (8-16 ms); the async functions do that
in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from typing import Final, Literal, Self

from mapek.bpf import syscall
from mapek.bpf.program import Program
from mapek.bpf.worker import in_thread, in_thread_with
from mapek.errors import AttachError, FeatureError, MapekError

Mode = Literal["native", "generic", "auto"]
ATTACH_XDP: Final = 37
LINK_XDP: Final = 6
LINK_TCX: Final = 11
FLAGS: Final = {"generic": 1 << 1, "native": 1 << 2, "auto": 0}
_ENOTSUPP: Final = 524
_REFUSALS: Final = (
    errno.EOPNOTSUPP, _ENOTSUPP, errno.EINVAL, errno.ERANGE, errno.ENOMEM, errno.ENOSPC
)  # fmt: skip
"""What drivers answer that have no XDP, or none with this MTU, these rings or so few queues."""


class Link:
    """A bpf_link: an owned fd, whose close detaches the program unless the link is pinned."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.pinned: str | None = None
        self._taking = threading.Lock()
        data = syscall.info(fd, 64)
        self.type, self.id, self._runs = struct.unpack_from("=III", data)

    def _info(self) -> bytearray:
        return syscall.info(self.fd, 64)

    @property
    def program_id(self) -> int:
        """The id of the program that the link runs now, from the kernel."""
        return int(struct.unpack_from("=I", self._info(), 8)[0])

    @property
    def ifindex(self) -> int:
        """The interface it is attached to, from the kernel; 0 once the interface is gone."""
        return int(struct.unpack_from("=I", self._info(), 16)[0])

    def lost(self) -> str:
        """How it was taken off behind our back, in words; "" while it stands, and for one that we closed.

        A link whose interface is gone looks like one that was forced off. Waits for rtnl: a thread's work.
        """
        # Or the number of the descriptor might be another's by the time it is asked about.
        with self._taking:
            if self.fd < 0:
                return ""
            data = self._info()
        program, ifindex = struct.unpack_from("=8xI4xI", data)
        if self.type in (LINK_XDP, LINK_TCX) and not ifindex:
            return "its link was detached by force"
        if program == self._runs:
            return ""
        from mapek.bpf.xdp_netlink import describe_program

        return f"its link was given {describe_program(program)}"

    def update(self, program: Program) -> None:
        """Replace the running program atomically: no packet sees none. Blocks for an RCU grace period."""
        with self._taking:
            attr = struct.pack("=IIII", self.fd, program.fd, 0, 0)
            result = syscall.bpf_raw(syscall.LINK_UPDATE, attr)
            if result >= 0:
                self._runs = program.id
        if result == -errno.ENOLINK:
            raise AttachError("update link", self.id, "its interface is gone", "attach again when it is back")
        if result < 0:
            raise syscall.explain(-result, "update link", self.id)

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Pin the link on a bpffs: it then stays attached when this process ends."""
        syscall.pin(self.fd, path)
        self.pinned = os.fspath(path)

    def unpin(self) -> None:
        """Remove the pin that this object made or was opened from; the link lives on while the fd is open."""
        if self.pinned is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.pinned)
            self.pinned = None

    def close(self) -> None:
        """Give the fd back: detaches, unless pinned. Twice is fine. Blocks when it detaches."""
        with self._taking:
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1

    def detach(self) -> None:
        """Unpin, detach now whoever else holds the link, and close. Blocks for an RCU grace period.

        Whoever calls it while another thread does waits until that one is done.
        """
        with self._taking:
            if self.fd < 0:
                return
            self.unpin()
            try:
                result = syscall.bpf_raw(syscall.LINK_DETACH, struct.pack("=I", self.fd))
            finally:
                os.close(self.fd)
                self.fd = -1
        # ENOLINK: the interface went first. EOPNOTSUPP: this kind cannot be forced, closing has to do.
        if result < 0 and result not in (-errno.ENOLINK, -errno.EOPNOTSUPP, -errno.EINVAL):
            raise syscall.explain(-result, "detach link", self.id)

    async def update_async(self, program: Program) -> None:
        """`update` in a thread."""
        await in_thread(lambda: self.update(program))

    async def detach_async(self) -> None:
        """`detach` in a thread."""
        await in_thread(self.detach)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await in_thread(self.close)


class XdpLink(Link):
    """A link to an interface's XDP hook; `mode` is what resulted: "native" or "generic" ("unknown" if opened
    from a pin)."""

    def __init__(self, fd: int, mode: str = "unknown", reason: str = "") -> None:
        super().__init__(fd)
        self.mode = mode
        self.reason = reason


def attach_xdp(program: Program, ifindex: int, mode: Mode = "auto") -> XdpLink:
    """Attach to the XDP hook of `ifindex` in the calling thread's network namespace. Blocks for 8-16 ms.

    Args:
        mode: "native" (in the driver), "generic" (in the stack), or "auto": native, and generic where the
            driver has none;
            the link's `mode` says which, its `reason` why not native.

    Raises:
        AttachError: no such interface, or somebody's program is there (named, with its id).
        FeatureError: the driver has no native XDP or refuses it, or the kernel has no XDP link (5.9).
        PrivilegeError: CAP_NET_ADMIN or CAP_BPF is missing.
    """
    if mode not in FLAGS:
        raise ValueError(f"mode {mode!r} is none of {', '.join(FLAGS)}")
    first = "native" if mode == "auto" else mode
    result = _create(program, ifindex, first)
    if result >= 0:
        return XdpLink(result, first)
    if mode == "auto" and -result in _REFUSALS:
        why = f"native: {os.strerror(-result) if -result != _ENOTSUPP else 'not supported'}"
        result = _create(program, ifindex, "generic")
        if result >= 0:
            return XdpLink(result, "generic", why)
    raise attach_error(-result, program.type, ifindex, mode)


def _create(program: Program, ifindex: int, mode: str) -> int:
    attr = struct.pack("=IIII", program.fd, ifindex, ATTACH_XDP, FLAGS[mode])
    return syscall.bpf_raw(syscall.LINK_CREATE, attr + bytes(16))


def interface_exists(ifindex: int) -> bool:
    """Whether the calling thread's network namespace has that interface."""
    try:
        socket.if_indextoname(ifindex)
    except (OSError, OverflowError):
        return False
    return True


def interface_name(ifindex: int) -> str:
    """ "wlan0 (ifindex 3)" for messages, or just the index."""
    try:
        return f"{socket.if_indextoname(ifindex)} (ifindex {ifindex})"
    except (OSError, OverflowError):
        return f"ifindex {ifindex}"


def attach_error(code: int, program_type: str, ifindex: int, mode: str) -> MapekError:
    """The error of a failed XDP attach, naming whose program is in the way; chained to its OSError."""
    on = interface_name(ifindex)
    tried = f"attach xdp ({mode}) to"
    error: MapekError
    if code in (errno.EBUSY, errno.EEXIST):
        from mapek.bpf.xdp_netlink import describe_program, read_xdp

        state = read_xdp(ifindex)
        whose = describe_program(state.program_id) if state else "a program"
        error = AttachError(tried, on, f"{whose} is there already", "detach it, or attach to tc instead")
        error.__cause__ = OSError(code, os.strerror(code))
        return error
    if code == errno.EINVAL and program_type != "xdp":
        return AttachError(tried, on, f"the program is of type {program_type}", "give an xdp program")
    if code == errno.EINVAL and not interface_exists(ifindex):
        # A link's attach says EINVAL for an unknown interface, and for much else.
        code = errno.ENODEV
    if code in _REFUSALS and mode == "native":
        why = f"its driver refuses native XDP ({errno.errorcode.get(code)}: {os.strerror(code)})"
        if code in (errno.EOPNOTSUPP, _ENOTSUPP):
            why = f"its driver has no native XDP ({errno.errorcode.get(code, code)})"
        error = FeatureError(tried, on, why, 'use mode="generic" or tc')
        error.__cause__ = OSError(code, os.strerror(code))
        return error
    return syscall.explain(
        code, tried, on, wanted=("CAP_NET_ADMIN", "CAP_BPF"), needs="XDP links, kernel 5.9"
    )


def open_link(path: str | os.PathLike[str]) -> Link:
    """The link pinned at `path`; an XdpLink if it is one. Raises FileNotFoundError."""
    fd = syscall.get_pinned(path)
    try:
        if (what := syscall.kind(fd)) != "link":
            raise AttachError("open link", os.fspath(path), f"it is a {what}", "check what is pinned there")
        kind = struct.unpack_from("=I", syscall.info(fd, 64))[0]
        link = XdpLink(fd) if kind == LINK_XDP else Link(fd)
    except BaseException:
        os.close(fd)
        raise
    link.pinned = os.fspath(path)
    return link


async def attach_xdp_async(program: Program, ifindex: int, mode: Mode = "auto") -> XdpLink:
    """`attach_xdp` in a thread, in the caller's network namespace."""
    return await in_thread_with(program, lambda mine: attach_xdp(mine, ifindex, mode), XdpLink.close)
