"""Programs that return at once, hung where a sensor has its own: what is left of a cost beside them is the sensor's."""

from __future__ import annotations

from contextlib import ExitStack
from socket import if_nametoindex
from typing import Final, Literal

from mapek.bpf import ObjectSpec, attach_btf_tracepoint, attach_tc, attach_xdp, load, object_path

Kind = Literal["xdp", "tc", "syscalls"]
_OBJECTS: Final[dict[Kind, str]] = {"xdp": "empty", "tc": "empty_tc", "syscalls": "empty_syscalls"}


def attach_empty(kind: Kind, interface: str = "") -> ExitStack:
    """On the XDP hook of `interface`, on its tc hooks both ways, or at entry and return of every system call.

    Closing detaches. Blocks for milliseconds; raises as `load` and the attachments do.
    """
    with ExitStack() as undo:
        programs = undo.enter_context(load(ObjectSpec.read(object_path(_OBJECTS[kind])))).programs
        if kind == "xdp":
            undo.callback(attach_xdp(programs["empty"], if_nametoindex(interface)).detach)
        elif kind == "tc":
            for way in ("ingress", "egress"):
                undo.callback(attach_tc(programs["empty_tc"], if_nametoindex(interface), way).detach)
        else:
            # The return first, as the sensor does it.
            for name in ("empty_exit", "empty_enter"):
                undo.callback(attach_btf_tracepoint(programs[name]).close)
        return undo.pop_all()
