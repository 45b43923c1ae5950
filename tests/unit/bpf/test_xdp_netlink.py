"""What a link's message says of XDP, as the kernel writes it in each mode (rtnl_xdp_fill)."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapek.bpf.xdp_netlink import XdpState, parse_xdp

ATTACHED, PROG_ID, DRV, SKB, HW = 2, 4, 5, 6, 7


def nested(mode: int, *ids: tuple[int, int]) -> bytes:
    """IFLA_XDP_ATTACHED, and program ids by attribute."""
    data = struct.pack("=HHBxxx", 5, ATTACHED, mode)
    return data + b"".join(struct.pack("=HHI", 8, kind, ident) for kind, ident in ids)


@pytest.mark.parametrize(
    ("data", "state"),
    [
        (b"", None),
        (nested(0), None),
        (nested(1, (DRV, 7), (PROG_ID, 7)), XdpState("native", 7)),
        (nested(2, (SKB, 8), (PROG_ID, 8)), XdpState("generic", 8)),
        (nested(3, (HW, 9), (PROG_ID, 9)), XdpState("offloaded", 9)),
        # Several: without IFLA_XDP_PROG_ID.
        (nested(4, (DRV, 7), (HW, 9)), XdpState("native", 7)),
        (nested(4, (SKB, 8), (HW, 9)), XdpState("generic", 8)),
    ],
)
def test_modes(data: bytes, state: XdpState | None) -> None:
    assert parse_xdp(data) == state


@given(st.binary(max_size=64))
def test_noise(data: bytes) -> None:
    found = parse_xdp(data)
    assert found is None or found.program_id > 0
