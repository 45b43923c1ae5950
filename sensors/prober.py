"""Sends probes: steadily from a thread of its own, in bursts on demand, all paths in one system call.

A thread and not the event loop: measured at 1 kHz on two paths, 5 % of a core against 7.5 %, and half as
late; a process of its own costs the same CPU and 5 MB more. A late sender only sends later: silence is
judged by the age of a probe that was sent, so no stall of ours looks like one of the peer.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final

from mapek.bpf import capabilities
from mapek.clock import TimerFd
from mapek.errors import DegradedError, PrivilegeError
from mapek.knowledge.topology import Address
from mapek.sensors.link_watch_layout import PORT
from mapek.sensors.stamp import plain_template, template

_PRIORITY: Final = 20
"""SCHED_FIFO priority of the thread, where the program that runs the loop has one."""

_IP_PKTINFO: Final = 8
_IPV6_PKTINFO: Final = 50
_DSCP_CS6: Final = 0xC0
"""Network control: probes must not queue behind the traffic they watch over."""


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_Iovec)),
        ("iov_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("header", _Msghdr), ("sent", ctypes.c_uint))


_libc = ctypes.CDLL(None, use_errno=True)
# An address, not a pointer type: its check would cost more than the rest of the call's way through ctypes.
_libc.sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
_libc.sendmmsg.restype = ctypes.c_int


@dataclass(frozen=True, slots=True)
class Target:
    """Where probes of one path go: `ifindex` 0 lets the route decide, as for any packet; `plain`: RFC 8762 only."""

    path: int
    ifindex: int
    local: Address
    peer: Address
    plain: bool = False


class Batch:
    """Prepared messages of one address family, sent by one sendmmsg call in this order."""

    def __init__(self, family: int, targets: Sequence[Target], times: int = 1, port: int = PORT) -> None:
        """Prepare `times` probes to each target, interleaved, so that no path has the earlier moment."""
        self._family, self._port = family, port
        self._keep: list[ctypes.Array[ctypes.c_char]] = []
        one = [self._message(target) for target in targets]
        order = one * times
        self._messages = (_Mmsghdr * len(order))()
        for index, header in enumerate(order):
            self._messages[index].header = header
        self.paths = [target.path for target in targets] * times
        self._at = [
            ctypes.cast(ctypes.byref(self._messages, i * ctypes.sizeof(_Mmsghdr)), ctypes.POINTER(_Mmsghdr))
            for i in range(len(order))
        ]

    def _buffer(self, data: bytes) -> int:
        held = ctypes.create_string_buffer(data, len(data))
        self._keep.append(held)
        return ctypes.addressof(held)

    def _message(self, target: Target) -> _Msghdr:
        data = (plain_template if target.plain else template)(target.path)
        vector = ctypes.pointer(_Iovec(self._buffer(data), len(data)))
        port = socket.htons(self._port)
        if self._family == socket.AF_INET:
            name = struct.pack("=HH4s8x", socket.AF_INET, port, target.peer.packed)
            info = struct.pack("=i4s4x", target.ifindex, target.local.packed)
            level, kind = socket.IPPROTO_IP, _IP_PKTINFO
        else:
            scope = target.ifindex if IPv6Address(int(target.peer)).is_link_local else 0
            name = struct.pack("=HHI16sI", socket.AF_INET6, port, 0, target.peer.packed, scope)
            info = struct.pack("=16sI", target.local.packed, target.ifindex)
            level, kind = socket.IPPROTO_IPV6, _IPV6_PKTINFO
        head = struct.pack("@Nii", ctypes.sizeof(ctypes.c_size_t) + 8 + len(info), level, kind)
        control = (head + info).ljust(socket.CMSG_SPACE(len(info)), b"\0")
        return _Msghdr(self._buffer(name), len(name), vector, 1, self._buffer(control), len(control), 0)

    def send(self, fd: int, failed: dict[int, int]) -> int:
        """Send all; a path whose send fails is counted in `failed` by errno and passed over. Returns how many went."""
        done, at, total = 0, 0, len(self._at)
        while at < total:
            sent = _libc.sendmmsg(fd, self._at[at], total - at, 0)
            if sent > 0:
                done += sent
                at += sent
                continue
            failed[self.paths[at]] = ctypes.get_errno()
            at += 1
        return done


Batches = list[tuple[int, Batch]]
"""Prepared messages by socket, one per address family."""


class Prober:
    """The sockets of a node and the thread that keeps probing.

    Args:
        interval_ns: between two probes of a path.
        port: where the peers' reflectors listen.
    """

    def __init__(self, interval_ns: int, port: int = PORT) -> None:
        self.interval_ns, self._port = interval_ns, port
        self.failed: dict[int, int] = {}
        """errno of the last failed send, by path; what works again is forgotten by `forget`."""
        self._sockets: dict[int, socket.socket] = {}
        self._steady: Batches = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._timer: TimerFd | None = None
        self._stopping = False

    def prepare(self, targets: Sequence[Target], times: int = 1) -> Batches:
        """Batches for `send`, to keep and send again."""
        batches: Batches = []
        for family in (socket.AF_INET, socket.AF_INET6):
            of_family = [t for t in targets if len(t.peer.packed) == (4 if family == socket.AF_INET else 16)]
            if of_family:
                batches.append((self._socket(family), Batch(family, of_family, times, self._port)))
        return batches

    def _socket(self, family: int) -> int:
        known = self._sockets.get(family)
        if known is None:
            try:
                known = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                known.setblocking(False)
                if family == socket.AF_INET:
                    known.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _DSCP_CS6)
                else:
                    known.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _DSCP_CS6)
                # answers end in XDP; whatever else arrives is not read
                known.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            except OSError as error:
                raise DegradedError("open", "the socket for probes", os.strerror(error.errno or 0)) from error
            self._sockets[family] = known
        return known.fileno()

    def send(self, batches: Batches) -> int:
        """Send prepared batches now. The kernel's program numbers probes one sender at a time, hence the lock."""
        with self._lock:
            return sum(batch.send(fd, self.failed) for fd, batch in batches)

    @property
    def probing(self) -> bool:
        """Whether its thread runs."""
        return self._thread is not None

    def keep_probing(self, targets: Sequence[Target]) -> None:
        """Probe these from now on, instead of those before."""
        steady = self.prepare(targets)
        with self._lock:
            self._steady = steady
        if self._thread is None and steady:
            self._timer = TimerFd(blocking=True)
            self._stopping = False
            # agents of one machine must not all wake in the same microsecond
            self._timer.set(1 + int.from_bytes(os.urandom(4)) % self.interval_ns, self.interval_ns)
            realtime = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO
            self._thread = threading.Thread(
                target=self._run, args=(realtime,), name="mapek-prober", daemon=True
            )
            self._thread.start()

    def _run(self, realtime: bool) -> None:
        timer = self._timer
        assert timer is not None
        if realtime:
            # below the loop's: a burst that confirms is more urgent than the next steady probe
            with suppress(OSError):
                os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(_PRIORITY))
        # Sending needs none, and nobody can take them from this thread later.
        with suppress(PrivilegeError):
            capabilities.hold_none()
        lock, failed, fd_of_timer = self._lock, self.failed, timer.fd
        while True:
            os.read(fd_of_timer, 8)
            if self._stopping:
                return
            with lock:
                for fd, batch in self._steady:
                    batch.send(fd, failed)

    def unreachable(self, path: int) -> str:
        """Why probes of `path` cannot even be sent, or ""."""
        code = self.failed.get(path)
        return "" if code is None or code in (errno.EAGAIN, errno.ENOBUFS) else os.strerror(code)

    def close(self) -> None:
        """Stop the thread and close the sockets; twice is fine."""
        if self._thread is not None:
            self._stopping = True
            if self._timer is not None:
                # not at the end of an interval, which may be a minute
                self._timer.set(1)
            self._thread.join()
            self._thread = None
        if self._timer is not None:
            self._timer.close()
            self._timer = None
        for known in self._sockets.values():
            known.close()
        self._sockets.clear()
        self._steady = []
