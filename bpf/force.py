"""Takes off what this very process has attached to an interface, as an operator or another agent might do.

Only what is its own: links by the descriptors of this process, tc filters by the names that ours have. An interface's
number means another one in every network namespace, so going by that alone would hit strangers.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import Final

from mapek.bpf import syscall

_LINK_GET_FD_BY_ID: Final = 30
_XDP, _TCX = 6, 11


def force_off(interface: str) -> int:
    """Take off every link and tc filter of this process on `interface`; returns how many. Blocks for milliseconds.

    Call it in the network namespace of the interface. Needs CAP_SYS_ADMIN and CAP_NET_ADMIN.
    """
    from mapek.bpf.clsact import find_clsact

    ifindex, taken = socket.if_nametoindex(interface), 0
    for ident in _own_links():
        with contextlib.suppress(FileNotFoundError):
            fd = syscall.fd_by_id(_LINK_GET_FD_BY_ID, ident)
            try:
                kind, _, _, _, on = struct.unpack_from("=5I", syscall.info(fd, 64))
                if kind in (_XDP, _TCX) and on == ifindex:
                    syscall.bpf(syscall.LINK_DETACH, struct.pack("=I", fd), "detach link", ident)
                    taken += 1
            finally:
                os.close(fd)
    for one in find_clsact():
        if one.ifindex == ifindex:
            one.detach()
            taken += 1
    return taken


def _own_links() -> set[int]:
    found = set()
    for entry in Path("/proc/self/fdinfo").iterdir():
        # One of them is the listing's own.
        with contextlib.suppress(OSError):
            for line in entry.read_text().splitlines():
                if line.startswith("link_id:"):
                    found.add(int(line.partition(":")[2]))
    return found
