"""In which order our programs run on tc, whichever was attached first.

tcx has a list, and a new link takes its place in it beside one of ours: before the first that comes later, else behind
the last that comes earlier, else at the end. Which links are ours only this process knows, for the kernel tells a
program's name to the mightier; so one that another process left counts as foreign until it is adopted. clsact has a
priority for each place. tcx runs before clsact.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable
from typing import Final, Literal

from mapek.bpf import syscall

Direction = Literal["ingress", "egress"]
TCX: Final[dict[Direction, int]] = {"ingress": 46, "egress": 47}
_BEFORE, _AFTER, _ID, _LINK = 1 << 3, 1 << 4, 1 << 5, 1 << 13
_PROG_QUERY: Final = 16
_MOST: Final = 64
_PLACES: Final[dict[Direction, dict[str, int]]] = {
    # What counts sees all that arrives; what may drop comes before what answers by itself, as in the XDP chain.
    "ingress": {"tc_class_in": -3, "mesh_filter_tc": -2, "batadv_tc": -1, "link_watch_tc": 1},
    # A probe that is dropped here is one that was sent and not answered; what counts sees all that leaves.
    "egress": {"stamp": -1, "stamp_untimed": -1, "tc_class_out": 1},
}
PLACES: Final = range(-3, 2)
"""Of all programs; that of one that is not named is 0."""


def place_of(program: str, direction: Direction) -> int:
    """Where a program of that name runs: the lower, the earlier."""
    return _PLACES[direction].get(program, 0)


def beside(
    ifindex: int, direction: Direction, place: int, ours: Iterable[tuple[int, int]]
) -> tuple[int, int]:
    """Flags and relative id for BPF_LINK_CREATE.

    Args:
        ours: (link id, place) of tcx links of this process, here or elsewhere.
    """
    places = dict(ours)
    there = [(places[link], link) for link in _links(ifindex, direction) if link in places]
    if later := next((link for other, link in there if other > place), 0):
        return _BEFORE | _LINK | _ID, later
    if earlier := next((link for other, link in reversed(there) if other <= place), 0):
        return _AFTER | _LINK | _ID, earlier
    return 0, 0


def _links(ifindex: int, direction: Direction) -> list[int]:
    """Ids of the links there in the order in which they run; none where the kernel does not say."""
    programs, links = (ctypes.c_uint32 * _MOST)(), (ctypes.c_uint32 * _MOST)()
    attr = bytearray(
        struct.pack(
            "=IIIIQIIQQQQ", ifindex, TCX[direction], 0, 0, ctypes.addressof(programs), _MOST, 0, 0,
            ctypes.addressof(links), 0, 0,
        )
    )  # fmt: skip
    if syscall.bpf_raw(_PROG_QUERY, attr) < 0:
        return []
    (count,) = struct.unpack_from("=I", attr, 24)
    return list(links[: min(count, _MOST)])
