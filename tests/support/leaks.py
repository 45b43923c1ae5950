"""What a test run left behind on the machine: namespaces, BPF programs, pins, processes.

Other work may go on beside the tests, so what appeared during the run counts only if nobody else's living
process holds it. A program that a foreign process loaded and let go of (attached by netlink, say) cannot
be told from ours: there MAPEK_LEAKS=report says it and does not fail.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.machine import bpf_call

_MARK = "MAPEK_TEST_SESSION"
_GET_NEXT_ID = {"program": 11, "link": 31}
_HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")  # live until Python ends
_KERNELS_OWN = ("maps.debug", "progs.debug")  # the kernel puts them into a bpffs when it is mounted
_SETTLE_S = 1.5  # the kernel frees programs and namespaces after a grace period, in a worker


def mark_children() -> None:
    """Mark every process started from now on, so that orphans are known as ours."""
    os.environ.setdefault(_MARK, uuid.uuid4().hex)


@dataclass(frozen=True)
class Snapshot:
    """What exists now; `things` holds (kind, name) pairs, `home` the own network namespace."""

    things: frozenset[tuple[str, str]]
    home: str

    def new(self) -> frozenset[tuple[str, str]]:
        """What has appeared since and is not held by somebody else's process."""
        now = snapshot()
        found = now.things - self.things
        if now.home != self.home:
            found |= {("own process", f"sits in {now.home} instead of {self.home}")}
        foreign = _held_by_others() if found else frozenset()
        return frozenset(found - foreign)

    def left(self) -> list[str]:
        """What stays after the kernel had time to clean up, as lines for a person."""
        deadline = time.monotonic() + _SETTLE_S
        while (found := self.new()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return [f"{kind} {name}" for kind, name in sorted(found)]


def snapshot() -> Snapshot:
    """What exists now. Unprivileged processes see less, and so leave less to find."""
    things = set(_bpf_ids())
    things |= {("pin", str(path)) for path in _pins()}
    things |= {("named network namespace", mount) for mount in _namespace_mounts()}
    for pid in _ours():
        things.add(("process", f"{pid} ({_command(pid)})"))
        things |= {("network namespace", f"{name} held by {pid}") for name in _namespaces(pid)}
    own = _namespaces(os.getpid())
    things |= {("network namespace", f"{name} held by the tests' process") for name in own}
    return Snapshot(frozenset(things), _read_link(Path("/proc/self/ns/net")))


def _bpf_ids() -> Iterator[tuple[str, str]]:
    for kind, command in _GET_NEXT_ID.items():
        last = 0
        while True:
            attributes = ctypes.create_string_buffer(struct.pack("=III", last, 0, 0), 12)
            if bpf_call(command, attributes)[0] < 0:
                break
            (last,) = struct.unpack_from("=I", attributes.raw, 4)
            yield f"BPF {kind}", f"id {last}"


def _pins() -> Iterator[Path]:
    for folder, _, files in os.walk("/sys/fs/bpf"):
        yield from (Path(folder, name) for name in files if name not in _KERNELS_OWN)


def _namespace_mounts() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[3].startswith("net:["):
            yield f"{fields[3]} at {fields[4]}"


def _processes() -> Iterator[int]:
    yield from (int(name) for name in os.listdir("/proc") if name.isdigit())


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _ours() -> Iterator[int]:
    """Descendants of this process and orphans that carry its mark; not the dead, which hold nothing."""
    parents = {pid: stat for pid in _processes() if (stat := _stat(pid)) and stat[0] != "Z"}
    own = os.getpid()
    mark = f"{_MARK}={os.environ.get(_MARK, '-')}".encode()
    for pid in parents:
        if pid == own:
            continue
        ancestor = pid
        while ancestor in parents and ancestor != own:
            ancestor = int(parents[ancestor][1])
        if (ancestor == own or mark in _environment(pid)) and not _is_helper(pid):
            yield pid


def _is_helper(pid: int) -> bool:
    return any(helper in _command(pid) for helper in _HELPERS)


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:120]
    except OSError:
        return "gone"


def _read_link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _namespaces(pid: int) -> set[str]:
    """Network namespaces that `pid` lives in or holds open, other than our own."""
    found = {_read_link(Path(f"/proc/{pid}/ns/net"))}
    with contextlib.suppress(OSError):
        found |= {_read_link(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    return {name for name in found if name.startswith("net:[")} - {_read_link(Path("/proc/self/ns/net"))}


def _held_by_others() -> frozenset[tuple[str, str]]:
    """The BPF programs and links behind the descriptors of processes that are not ours."""
    ours = {os.getpid(), *_ours()}
    held = set()
    for pid in _processes():
        if pid in ours:
            continue
        try:
            infos = [entry.read_text() for entry in Path(f"/proc/{pid}/fdinfo").iterdir()]
        except OSError:
            continue
        for info in infos:
            for line in info.splitlines():
                key, _, value = line.partition(":")
                if key in ("prog_id", "link_id"):
                    kind = "program" if key == "prog_id" else "link"
                    held.add((f"BPF {kind}", f"id {value.strip()}"))
    return frozenset(held)
