"""The kernel side of mapek, usable alone: objects, maps, ring buffers, attachments, the dispatcher and
feature probes.

Public names resolve when first used, so that importing this costs nothing and a machine without libbpf can
still parse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mapek.bpf.dispatcher import Dispatcher as Dispatcher
    from mapek.bpf.features import Answer as Answer
    from mapek.bpf.features import probe as probe
    from mapek.bpf.maps import ArrayMap as ArrayMap
    from mapek.bpf.maps import HashMap as HashMap
    from mapek.bpf.maps import LpmTrieMap as LpmTrieMap
    from mapek.bpf.maps import Map as Map
    from mapek.bpf.maps import PerCpuArrayMap as PerCpuArrayMap
    from mapek.bpf.maps import PerCpuHashMap as PerCpuHashMap
    from mapek.bpf.maps import ProgArrayMap as ProgArrayMap
    from mapek.bpf.maps import RingBufMap as RingBufMap
    from mapek.bpf.maps import create_map as create_map
    from mapek.bpf.maps import open_map as open_map
    from mapek.bpf.objects import LoadedObject as LoadedObject
    from mapek.bpf.objects import load as load
    from mapek.bpf.objects import load_async as load_async
    from mapek.bpf.program import Program as Program
    from mapek.bpf.program import TestRun as TestRun
    from mapek.bpf.ringbatch import RingBatches as RingBatches
    from mapek.bpf.ringbuf import RingBuffer as RingBuffer
    from mapek.bpf.spec import MapSpec as MapSpec
    from mapek.bpf.spec import ObjectSpec as ObjectSpec
    from mapek.bpf.spec import ProgramSpec as ProgramSpec
    from mapek.bpf.spec import object_path as object_path
    from mapek.bpf.tc import TcLink as TcLink
    from mapek.bpf.tc import attach_tc as attach_tc
    from mapek.bpf.tc import attach_tc_async as attach_tc_async
    from mapek.bpf.tracing import PerfAttachment as PerfAttachment
    from mapek.bpf.tracing import attach_btf_tracepoint as attach_btf_tracepoint
    from mapek.bpf.tracing import attach_btf_tracepoint_async as attach_btf_tracepoint_async
    from mapek.bpf.tracing import attach_kprobe as attach_kprobe
    from mapek.bpf.tracing import attach_kprobe_async as attach_kprobe_async
    from mapek.bpf.tracing import attach_raw_tracepoint as attach_raw_tracepoint
    from mapek.bpf.tracing import attach_raw_tracepoint_async as attach_raw_tracepoint_async
    from mapek.bpf.tracing import attach_tracepoint as attach_tracepoint
    from mapek.bpf.tracing import attach_tracepoint_async as attach_tracepoint_async
    from mapek.bpf.xdp import Link as Link
    from mapek.bpf.xdp import XdpLink as XdpLink
    from mapek.bpf.xdp import attach_xdp as attach_xdp
    from mapek.bpf.xdp import attach_xdp_async as attach_xdp_async
    from mapek.bpf.xdp import open_link as open_link
    from mapek.bpf.xdp_netlink import attach_xdp_netlink as attach_xdp_netlink
    from mapek.bpf.xdp_netlink import attach_xdp_netlink_async as attach_xdp_netlink_async
    from mapek.bpf.xdp_netlink import read_xdp as read_xdp

_HOMES: Final = {
    "dispatcher": "Dispatcher",
    "features": "Answer probe",
    "maps": (
        "ArrayMap HashMap LpmTrieMap Map PerCpuArrayMap PerCpuHashMap ProgArrayMap RingBufMap "
        "create_map open_map"
    ),
    "objects": "LoadedObject load load_async",
    "program": "Program TestRun",
    "ringbatch": "RingBatches",
    "ringbuf": "RingBuffer",
    "spec": "MapSpec ObjectSpec ProgramSpec object_path",
    "tc": "TcLink attach_tc attach_tc_async",
    "tracing": (
        "PerfAttachment attach_btf_tracepoint attach_btf_tracepoint_async attach_kprobe "
        "attach_kprobe_async attach_raw_tracepoint attach_raw_tracepoint_async attach_tracepoint "
        "attach_tracepoint_async"
    ),
    "xdp": "Link XdpLink attach_xdp attach_xdp_async open_link",
    "xdp_netlink": "attach_xdp_netlink attach_xdp_netlink_async read_xdp",
}
_WHERE: Final = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
