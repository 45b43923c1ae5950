"""Unnamed network namespaces held by a process, and a thread that works inside one.

The event loop's thread never changes its namespace: each `Namespace` has one worker thread that entered once,
so sockets, netlink and BPF attachments made there act inside. Commands run through `child.enter`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from pyroute2 import IPRoute

from mapek.errors import PermanentError
from mapek.simulations import libc
from mapek.simulations.process import child_command, child_environment, end, start_child

T = TypeVar("T")


class Namespace:
    """One network namespace with private /sys, bpffs and /run; gone when closed or when this process ends.

    Needs CAP_SYS_ADMIN. `pid` is the holder's; `files` the host's view of the private /run.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._holder: Process | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._local = threading.local()

    @property
    def pid(self) -> int:
        """The holder's process id."""
        if self._holder is None:
            raise PermanentError("use", f"namespace {self.name}", "it is not open", "open it with async with")
        return self._holder.pid

    @property
    def files(self) -> Path:
        """The private /run of this namespace as the host reaches it."""
        return Path(f"/proc/{self.pid}/root/run")

    async def open(self) -> Self:
        """Start the holder; raises PermanentError when the machine does not let us."""
        self._holder = await start_child("holder")
        path = f"/proc/{self._holder.pid}/ns/net"

        def move_in() -> None:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                libc.setns(fd, libc.CLONE_NEWNET)
            finally:
                os.close(fd)

        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"netns-{self.name}", initializer=move_in)
        try:
            await self.run(self._prepare)
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """End all that runs inside, then the namespace; closing twice is fine."""
        thread, self._thread = self._thread, None
        if thread is not None:
            with contextlib.suppress(Exception):
                await asyncio.wrap_future(thread.submit(self._close_route))
            await asyncio.to_thread(thread.shutdown, True)
        holder, self._holder = self._holder, None
        if holder is not None:
            assert holder.stdin is not None
            holder.stdin.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(10):
                    await holder.wait()
            await end(holder)

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` on the thread that lives inside this network namespace."""
        if self._thread is None:
            raise PermanentError("work in", f"namespace {self.name}", "it is not open", "open it first")
        return await asyncio.wrap_future(self._thread.submit(work))

    async def route(self, work: Callable[[IPRoute], T]) -> T:
        """Like `run`, with a netlink socket of this namespace."""
        return await self.run(lambda: work(self.netlink()))

    async def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket that belongs to this namespace, usable from any thread."""
        return await self.run(lambda: socket.socket(family, kind, protocol))

    async def start(
        self,
        command: Sequence[str],
        *,
        fifo: int | None = None,
        environment: Mapping[str, str] | None = None,
        stdin: int | None = asyncio.subprocess.DEVNULL,
    ) -> Process:
        """Start a command inside, stdout and stderr piped; SCHED_FIFO at priority `fifo` when given."""
        options = [] if fifo is None else [fifo]
        return await asyncio.create_subprocess_exec(
            *child_command("enter", self.pid, *options, "--", *command),
            stdin=stdin,
            stdout=PIPE,
            stderr=PIPE,
            env=child_environment(dict(environment or {})),
            limit=1 << 20,
        )

    def netlink(self) -> IPRoute:
        """The netlink socket of this namespace; to be used on its thread (within `run`) only."""
        found: IPRoute | None = getattr(self._local, "route", None)
        if found is None:
            found = IPRoute()
            self._local.route = found
        return found

    def _close_route(self) -> None:
        found: IPRoute | None = getattr(self._local, "route", None)
        if found is not None:
            found.close()

    def _prepare(self) -> None:
        # Duplicate address detection and router discovery would delay and add traffic that no fault explains.
        for scope in ("all", "default"):
            for key, value in (
                (f"ipv4/conf/{scope}/rp_filter", 0),
                (f"ipv4/conf/{scope}/send_redirects", 0),
                (f"ipv4/conf/{scope}/accept_redirects", 0),
                (f"ipv6/conf/{scope}/accept_dad", 0),
                (f"ipv6/conf/{scope}/accept_ra", 0),
                (f"ipv6/conf/{scope}/accept_redirects", 0),
                (f"ipv6/conf/{scope}/router_solicitations", 0),
                (f"ipv6/conf/{scope}/keep_addr_on_down", 1),
                (f"ipv6/conf/{scope}/addr_gen_mode", 1),
            ):
                write_sysctl(key, value)
        route = self.netlink()
        route.link("set", index=1, state="up")


def write_sysctl(key: str, value: int) -> None:
    """Set /proc/sys/net/`key` of the calling thread's network namespace; absent keys (no IPv6) are left."""
    with contextlib.suppress(FileNotFoundError):
        Path(f"/proc/sys/net/{key}").write_text(f"{value}\n")
