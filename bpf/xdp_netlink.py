"""XDP through rtnetlink: attachments that stay when the process ends, and the kernel's own word on what is
attached.

The kernel calls it the old way: anybody may replace or remove such a program, so every change here names the
program that it expects to find (XDP_FLAGS_REPLACE) and what was done is read back by program id. Use it for
filters that must outlive the agent without a bpffs, and below kernel 5.9. pyroute2 is imported when something
is changed, for it costs memory; what is attached is read without it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, TypeVar

from mapek.bpf import rtnl, syscall
from mapek.bpf.apart import apart
from mapek.bpf.program import Program
from mapek.bpf.worker import in_thread, in_thread_with
from mapek.bpf.xdp import FLAGS, Mode, attach_error, interface_name
from mapek.errors import AttachError, MapekError

if TYPE_CHECKING:
    from pyroute2 import IPRoute

T = TypeVar("T")
_RTM_GETLINK: Final = 18
_IFLA_XDP: Final = 43
# IFLA_XDP_DRV_PROG_ID, SKB and HW: IFLA_XDP_PROG_ID is not told when programs run in several modes.
_MODES: Final = {5: "native", 6: "generic", 7: "offloaded"}
_IF_NOEXIST: Final = 1 << 0
_REPLACE: Final = 1 << 4


@dataclass(frozen=True, slots=True)
class XdpState:
    """What an interface runs: mode ("native", "generic" or "offloaded") and program id; the program on the CPU
    where there is one in the hardware besides."""

    mode: str
    program_id: int


def with_iproute(call: Callable[[IPRoute], T]) -> T:
    """`call` with an rtnetlink socket of the calling thread's namespace; blocks, also inside a running loop.

    A synchronous IPRoute refuses to work in a thread that runs an event loop, so there it gets a thread of
    its own.
    """

    def run() -> T:
        from pyroute2 import IPRoute

        with IPRoute() as ip:
            return call(ip)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run()
    return apart("mapek-bpf-netlink", run)


def read_xdp(ifindex: int) -> XdpState | None:
    """What runs on `ifindex` in the calling thread's namespace, or None. Raises AttachError when there is no
    such interface."""
    try:
        link = rtnl.ask(_RTM_GETLINK, struct.pack("=BxHiII", 0, 0, ifindex, 0, 0))
    except OSError as error:
        why = "no such interface" if error.errno == errno.ENODEV else str(error.strerror or error)
        raise AttachError(
            "read xdp of", interface_name(ifindex), why, "check the network namespace"
        ) from error
    return parse_xdp(rtnl.attributes(link, 16).get(_IFLA_XDP, b""))


def parse_xdp(nested: bytes) -> XdpState | None:
    """The same from the attribute IFLA_XDP of a link's message."""
    told = rtnl.attributes(nested)
    for attribute, mode in _MODES.items():
        ident = told.get(attribute, b"")
        if len(ident) == 4 and any(ident):
            return XdpState(mode, struct.unpack("=I", ident)[0])
    return None


def program_name(ident: int) -> str:
    """The kernel's name of a program id, "" where it is gone or may not be read."""
    try:
        fd = syscall.fd_by_id(syscall.PROG_GET_FD_BY_ID, ident)
    except (MapekError, OSError):
        return ""
    try:
        return bytes(syscall.info(fd, 232)[64:80]).split(b"\0")[0].decode("utf-8", "replace")
    finally:
        os.close(fd)


def describe_program(ident: int) -> str:
    """ "program 'name' (id 7)", for messages."""
    name = program_name(ident)
    return f"program '{name}' (id {ident})" if name else f"program id {ident}"


class NetlinkXdp:
    """A program on an interface that no process owns. `close` only lets go; `detach` removes it, if it is
    still ours."""

    def __init__(self, ifindex: int, program: Program, mode: str) -> None:
        self.ifindex, self.mode, self.program_id = ifindex, mode, program.id
        self._fd = os.dup(program.fd)
        self._flags = FLAGS["generic" if mode == "generic" else "native"]

    def lost(self) -> str:
        """How it was taken off behind our back, in words; "" while it is there, and for one that we let go."""
        if self._fd < 0:
            return ""
        state = read_xdp(self.ifindex)
        if state is None:
            return "it was taken off"
        if state.program_id == self.program_id:
            return ""
        return f"{describe_program(state.program_id)} is in its place"

    def update(self, program: Program) -> None:
        """Replace our program atomically. Raises AttachError when another one is there by now."""
        _set(self.ifindex, program.fd, self._flags | _REPLACE, self._fd, program, self.mode)
        _verify(self.ifindex, program)
        os.close(self._fd)
        self._fd, self.program_id = os.dup(program.fd), program.id

    def detach(self) -> None:
        """Remove our program and let go; somebody else's is left where it is (AttachError). Twice is fine."""
        if self._fd < 0:
            return
        try:
            _set(self.ifindex, -1, self._flags | _REPLACE, self._fd, None, self.mode)
        except AttachError as error:
            # Gone with its interface, or removed by somebody: nothing of ours is left.
            if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENODEV:
                return
            state = read_xdp(self.ifindex)
            if state is not None:
                raise
        finally:
            self.close()

    def close(self) -> None:
        """Let go of it; the program stays attached. Twice is fine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

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


def attach_xdp_netlink(
    program: Program, ifindex: int, mode: Mode = "auto", replace: Program | None = None
) -> NetlinkXdp:
    """Attach so that the program stays when the process ends. Blocks for 8-16 ms.

    Args:
        mode: as for `attach_xdp`; the result's `mode` is what the kernel reports.
        replace: our own earlier program, swapped atomically; without it the hook must be free.

    Raises:
        AttachError: no such interface, or another program is there (named). FeatureError, PrivilegeError: as
            `attach_xdp`.
    """
    if mode not in FLAGS:
        raise ValueError(f"mode {mode!r} is none of {', '.join(FLAGS)}")
    kind = _REPLACE if replace is not None else _IF_NOEXIST
    expected = replace.fd if replace is not None else None
    first = "native" if mode == "auto" else mode
    try:
        _set(ifindex, program.fd, FLAGS[first] | kind, expected, program, first)
    except MapekError as error:
        code = error.__cause__.errno if isinstance(error.__cause__, OSError) else 0
        if mode != "auto" or code not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ERANGE):
            raise
        _set(ifindex, program.fd, FLAGS["generic"] | kind, expected, program, "generic")
    state = _verify(ifindex, program)
    return NetlinkXdp(ifindex, program, state.mode)


async def attach_xdp_netlink_async(
    program: Program, ifindex: int, mode: Mode = "auto", replace: Program | None = None
) -> NetlinkXdp:
    """`attach_xdp_netlink` in a thread, in the caller's network namespace; a cancelled attach is undone."""
    return await in_thread_with(
        program, lambda mine: attach_xdp_netlink(mine, ifindex, mode, replace), NetlinkXdp.detach
    )


def _verify(ifindex: int, program: Program) -> XdpState:
    state = read_xdp(ifindex)
    if state is None or state.program_id != program.id:
        found = describe_program(state.program_id) if state else "nothing"
        on = interface_name(ifindex)
        raise AttachError(
            "attach xdp to", on, f"it runs {found} afterwards", "look for another agent on this interface"
        )
    return state


def _set(ifindex: int, fd: int, flags: int, expected: int | None, program: Program | None, mode: str) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    attrs: list[tuple[str, int]] = [("IFLA_XDP_FD", fd), ("IFLA_XDP_FLAGS", flags)]
    if expected is not None:
        attrs.append(("IFLA_XDP_EXPECTED_FD", expected))
    try:
        with_iproute(lambda ip: ip.link("set", index=ifindex, xdp={"attrs": attrs}))
    except NetlinkError as error:
        kind = program.type if program is not None else "xdp"
        raise attach_error(int(error.code), kind, ifindex, mode) from OSError(
            error.code, os.strerror(error.code)
        )
