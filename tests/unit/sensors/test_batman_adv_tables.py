"""batman_adv: the kernel's bytes to tables, and tables to rows."""

from __future__ import annotations

import math
import struct
import subprocess
import sys

import pytest

from mapek.errors import FeatureError, NetlinkError, PrivilegeError
from mapek.sensors.batman_adv_tables import (
    COLUMNS,
    Hardif,
    Mesh,
    Neighbour,
    Originator,
    Tables,
    next_hops,
    rows,
)

A, B, C = (f"02:00:00:00:00:0{last}" for last in (1, 2, 3))
MESH = Mesh("bat0", "BATMAN_IV", "2022.3", "02:00:00:00:00:aa")


def tables(originators: list[Originator], neighbours: list[Neighbour]) -> Tables:
    return Tables(MESH, (Hardif("w0", B, True),), tuple(originators), tuple(neighbours))


def said(found: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in found.items() if not math.isnan(value)}


def by_name(*given: Tables) -> dict[str, dict[str, float]]:
    return {name: said(dict(zip(COLUMNS, row.values, strict=True))) for name, row in rows(given).items()}


def test_a_neighbour_that_is_an_originator_is_one_row():
    one = tables(
        [Originator(A, A, "w0", True, 250, tq=255), Originator(A, C, "w1", False, 300, tq=51)],
        [Neighbour(A, "w0", 120), Neighbour(A, "w1", 90)],
    )
    assert by_name(one) == {
        f"{A}/w0": {
            "neighbour": 1,
            "neighbour_age": 0.12,
            "originator": 1,
            "originator_age": 0.25,
            "tq": 1.0,
        },
        f"{A}/w1": {"neighbour": 1, "neighbour_age": 0.09, "originator": 0},
    }


def test_throughput_is_in_bits_and_the_far_come_after_the_near():
    one = tables(
        [
            Originator(C, A, "w0", True, 1000, throughput=5500),
            Originator(A, A, "w0", True, 0, throughput=11000),
        ],
        [Neighbour(A, "w0", 10, throughput=11000)],
    )
    found = by_name(one)
    assert list(found) == [f"{A}/w0", f"{C}/w0"]
    assert found[f"{C}/w0"] == {"neighbour": 0, "originator": 1, "originator_age": 1.0, "throughput": 5.5e6}
    assert found[f"{A}/w0"]["neighbour_throughput"] == 11e6
    assert next_hops([one]) == {C: (A, "w0"), A: (A, "w0")}
    assert rows([one])[f"{C}/w0"].next_hop == A


def test_two_meshes_are_told_together():
    first = tables([], [Neighbour(A, "w0", 10)])
    second = Tables(Mesh("bat1", "BATMAN_V", "1", B), (), (), (Neighbour(C, "w9", 20, 100),))
    assert set(by_name(first, second)) == {f"{A}/w0", f"{C}/w9"}


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data.ljust(-(-len(data) // 4) * 4, b"\0")


def message(*attributes: bytes) -> bytes:
    body = struct.pack("=BBH", 8, 1, 0) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), 30, 2, 1, 1) + body


def test_the_kernels_bytes_are_read_by_the_kernels_names():
    """Numbers of linux/batman_adv.h: ORIG_ADDRESS 9, FLAG_BEST 22, LAST_SEEN_MSECS 23, NEIGH_ADDRESS 24, TQ 25."""
    from mapek.sensors.batman_adv_netlink import batadvmsg

    data = message(
        attribute(9, bytes.fromhex("020000000001")),
        attribute(24, bytes.fromhex("020000000003")),
        attribute(6, struct.pack("=I", 7)),
        attribute(22, b""),
        attribute(25, b"\xf0"),
        attribute(26, struct.pack("=I", 11000)),
        attribute(23, struct.pack("=I", 1234)),
        attribute(8, bytes.fromhex("0200000000ff")),
        attribute(7, b"wlan0\0"),
        attribute(15, b""),
        attribute(99, b"from a newer kernel"),
    )
    found = batadvmsg(data)
    found.decode()
    expected = {
        "ORIG_ADDRESS": A,
        "NEIGH_ADDRESS": C,
        "HARD_IFINDEX": 7,
        "TQ": 240,
        "THROUGHPUT": 11000,
        "LAST_SEEN_MSECS": 1234,
        "HARD_ADDRESS": "02:00:00:00:00:ff",
        "HARD_IFNAME": "wlan0",
    }
    assert {name: found.get_attr(f"BATADV_ATTR_{name}") for name in expected} == expected
    assert found.get_attr("BATADV_ATTR_FLAG_BEST") is not None
    assert found.get_attr("BATADV_ATTR_ACTIVE") is not None
    assert found.get_attr("BATADV_ATTR_MESH_IFNAME") is None


@pytest.mark.parametrize(
    ("code", "kind", "word"),
    [
        (2, FeatureError, "modprobe batman-adv"),
        (1, PrivilegeError, "CAP_NET_ADMIN"),
        (105, NetlinkError, "ENOBUFS"),
    ],
)
def test_refusals(code, kind, word):
    from mapek.sensors.batman_adv_refusal import refusal

    error = refusal(code)
    assert isinstance(error, kind)
    assert word in str(error)


def test_the_sensor_is_imported_without_pyroute2():
    script = "import sys, mapek.sensors.batman_adv; sys.exit('pyroute2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
