"""The kernel side of net_events: which program goes to which tracepoint, with BTF or without, and what came of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from mapek.bpf import (
    ArrayMap,
    LoadedObject,
    ObjectSpec,
    PerCpuHashMap,
    RingBuffer,
    load,
    object_path,
    tracing,
)
from mapek.bpf.cpus import cpu_slots, possible_cpus
from mapek.bpf.keep import Kept
from mapek.bpf.xdp import Link, open_link
from mapek.errors import FeatureError, PinError
from mapek.sensors.net_events_layout import (
    COUNTS,
    LOSSES,
    OTHER_REASON,
    REASONS,
    TCP_EVENTS,
    TRAFFIC,
    tcp_format,
)
from mapek.sensors.net_events_names import UNSPECIFIED, fields, reasons_of_btf, reasons_of_format

OTHER: Final = "other"
_KEPT: Final = ("counts", "traffic", "samples")
_TP: Final = {
    "net_retransmit": ("tcp", "tcp_retransmit_skb"),
    "net_synack": ("tcp", "tcp_retransmit_synack"),
    "net_reset_out": ("tcp", "tcp_send_reset"),
    "net_reset_in": ("tcp", "tcp_receive_reset"),
    "net_drop": ("skb", "kfree_skb"),
}
"""Program -> its tracepoint; the first four in the order of TCP_EVENTS."""
_PACKETS: Final = ("net_receive", "net_transmit")
_KERNEL_BTF: Final = "/sys/kernel/btf/vmlinux"


@dataclass(slots=True)
class Running:
    """What `open` made: `columns` has for each reason number the place of its name in `reasons`."""

    loaded: LoadedObject
    attached: list[tracing.Attachment]
    counts: npt.NDArray[np.void]
    reasons: tuple[str, ...]
    columns: npt.NDArray[np.intp]
    names: Mapping[int, str]
    traffic: PerCpuHashMap | None
    where: dict[str, str]
    missing: list[str]
    ring: RingBuffer | None = None
    kept: Kept | None = None

    def lost(self) -> dict[str, int]:
        """Events that were seen but not counted or not told, by why."""
        losses = np.einsum("cl->l", self.counts["losses"]).tolist()
        recursions = sum(one.recursion_misses for one in self.loaded.programs.values())
        return {**dict(zip(LOSSES, losses, strict=True)), "recursions": recursions}

    def close(self) -> None:
        """Detach, but for what is kept, and close; blocks for milliseconds, but for the ring, which is the event
        loop's."""
        for one in self.attached:
            one.close()
        self.loaded.close()
        if self.kept is not None:
            self.kept.leave()


Keeps = Callable[[ObjectSpec, tuple[str, ...], Mapping[str, str], Mapping[str, int]], Kept]
"""Takes what is kept of an object's maps, with these settings and sizes."""


def start_btf(
    constants: Mapping[str, int | bytes], packets: bool, everywhere: bool, keep: Keeps | None = None
) -> Running:
    """With the kernel's BTF. Blocks for 100 ms. Raises as `mapek.bpf.load` and the attachments.

    Args:
        constants: for sampling, as the programs call them.
        packets: count what each interface carries.
        everywhere: count all network namespaces, not only the calling thread's.
        keep: None: nothing is kept.
    """
    wanted = [*_TP, *(_PACKETS if packets else ())]
    # Of this thread, which lives in the namespace of whoever opened us.
    own = os.stat("/proc/thread-self/ns/net").st_ino
    spec, sizes = ObjectSpec.read(object_path("net_events")), {"counts": cpu_slots()}
    with contextlib.ExitStack() as undo:
        kept = None
        if keep is not None:
            settings = {**{name: str(value) for name, value in constants.items()}, "packets": str(packets)}
            kept = keep(spec, _KEPT, settings, sizes)
            undo.callback(kept.leave)
        loaded = load(
            spec,
            # Loaded in any case: which of the tracepoints are there is seen by attaching.
            programs=wanted,
            rodata={**constants, "own_netns": 0 if everywhere else own},
            max_entries=sizes,
            reuse=kept.reuse() if kept is not None else {},
        )
        undo.callback(loaded.close)
        if kept is not None:
            kept.settle(loaded)
        try:
            with open(_KERNEL_BTF, "rb") as file:
                names = reasons_of_btf(file.read(64 << 20))
        except OSError:
            names = {}
        running = _begin(loaded, names)
        running.kept = kept
        undo.callback(lambda: [one.close() for one in running.attached])
        if packets:
            running.traffic = loaded.map("traffic", PerCpuHashMap)
            # The row of those that find no place is there before anybody looks for one.
            if running.traffic.lookup(bytes(4)) is None:
                running.traffic.update(bytes(4), bytes(8 * len(TRAFFIC) * possible_cpus()))
        for program in wanted:
            if program in _PACKETS:
                place = loaded.spec.programs[program].section.partition("/")[2]
                attach = partial(tracing.attach_btf_tracepoint, loaded.programs[program])
                running.attached.append(_link(running, place, program, attach))
                running.where[place] = "tp_btf"
                continue
            _attach(running, program, "raw_tp")
        if kept is not None:
            kept.only(*running.where)
        undo.pop_all()
    return running


def start_tracepoint(
    constants: Mapping[str, int | bytes], packets: bool, everywhere: bool, keep: Keeps | None = None
) -> Running:
    """Without BTF: what the tracepoints tell by themselves. As `start_btf`, and FeatureError without tracefs."""
    kept = None
    if keep is not None and (kept := keep(ObjectSpec.read(object_path("net_events_tp")), (), {}, {})).holds:
        kept.lost("perf events end with their process")
    told, missing = _formats()
    if not told:
        raise FeatureError("open", "net_events", missing[0], "mount tracefs, or use a kernel with BTF")
    drop = told.get("net_drop", "")
    places = fields(drop)
    rodata = dict(constants)
    rodata["formats"] = b"".join(
        tcp_format(fields(told.get(one, ""))) for one in list(_TP)[: len(TCP_EVENTS)]
    )
    for constant, name, size in (("drop_reason", "reason", 4), ("drop_protocol", "protocol", 2)):
        place = places.get(name)
        rodata[constant] = place.offset if place is not None and place.size == size else -1
    loaded = load(
        ObjectSpec.read(object_path("net_events_tp")),
        programs=tuple(told),
        rodata=rodata,
        max_entries={"counts": cpu_slots()},
    )
    with contextlib.ExitStack() as undo:
        undo.callback(loaded.close)
        running = _begin(loaded, reasons_of_format(drop))
        running.kept = kept
        undo.callback(lambda: [one.close() for one in running.attached])
        running.missing.extend(missing)
        for program in told:
            _attach(running, program, "tracepoint")
        undo.pop_all()
    running.missing.extend(_lesser(packets, everywhere))
    return running


def tracepoints_lack(packets: bool, everywhere: bool) -> tuple[str, ...]:
    """What `start_tracepoint` would find missing, in its words."""
    return (*_formats()[1], *_lesser(packets, everywhere))


def _formats() -> tuple[dict[str, str], list[str]]:
    """The format of each tracepoint that is there, by program, and what is missing."""
    told, missing = {}, []
    for program, (category, event) in _TP.items():
        try:
            told[program] = tracing.read_event(category, event, "format")
        except FeatureError as error:
            missing.append(str(error))
    return told, missing


def _lesser(packets: bool, everywhere: bool) -> tuple[str, ...]:
    words = []
    if not everywhere:
        words.append("counted for all network namespaces: tracepoints do not tell theirs")
    if packets:
        words.append("no packets per interface: tracepoints tell names only; see the sensor interface")
    return tuple(words)


def _begin(loaded: LoadedObject, names: Mapping[int, str]) -> Running:
    known = {number: name for number, name in names.items() if number < OTHER_REASON}
    reasons = (UNSPECIFIED, *sorted({*known.values()} - {UNSPECIFIED, OTHER}), OTHER)
    place = {name: at for at, name in enumerate(reasons)}
    columns = np.array([place[known.get(number, OTHER)] for number in range(REASONS)], np.intp)
    # What a kernel says that gives no reason.
    columns[0] = place[UNSPECIFIED]
    counts = loaded.map("counts", ArrayMap).view(COUNTS)
    return Running(loaded, [], counts, reasons, columns, {**names, 0: UNSPECIFIED}, None, {}, [])


def _link(running: Running, name: str, program: str, attach: Callable[[], Link]) -> Link:
    """The link that an agent before us left, if its program is what ours would be; else ours."""
    kept, programs = running.kept, running.loaded.programs
    if kept is None:
        return attach()
    found = kept.link(name, open_link, lambda _: True) if kept.unchanged else None
    if found is None:
        made = kept.attach(name, attach)
        kept.hold_program(program, programs[program])
        return made
    with contextlib.suppress(PinError):
        # The one that runs knows what it missed.
        theirs = kept.program(program)
        programs[program].close()
        programs[program] = theirs
    return found


def _attach(running: Running, program: str, way: str) -> None:
    category, event = _TP[program]
    try:
        if way == "raw_tp":
            attach = partial(tracing.attach_raw_tracepoint, running.loaded.programs[program], event)
            one: tracing.Attachment = _link(running, event, program, attach)
        else:
            one = tracing.attach_tracepoint(running.loaded.programs[program], category, event)
    except FeatureError as error:
        running.missing.append(str(error))
    else:
        running.attached.append(one)
        running.where[event] = way
