"""mesh_filter on malformed frames: counted to whom the reference decoder names, dropped only by verdict."""

from __future__ import annotations

import random
import struct
from collections import Counter
from ipaddress import ip_address

import pytest

from mapek.bpf import ObjectSpec, load, object_path
from tests.netns.bpf.fuzz import FRAMES, SEED, Addresses, Frames, Runner
from tests.netns.bpf.test_mesh_filter import DENY, DROPS, MACS, PASSES, PREFIXES, Filter
from tests.support.decode_mesh import attribute, decode, drops
from tests.support.mesh_frames import HOP, MAC_A, MAC_B, batadv

DENIED = (0, 2, 5, 7)
WHO = Addresses(
    (MAC_A, MAC_B, HOP, b"\x01\x80\xc2\0\0\x0e"),
    tuple(ip_address(one).packed for one in ("10.1.2.3", "10.1.9.9", "10.2.0.1", "192.0.2.1")),
    tuple(ip_address(one).packed for one in ("fd00:1::7", "fd00:1::8", "fd00:2::1", "2001:db8::1")),
)


def transport(chance: random.Random, version: int, protocol: int) -> bytes:
    """Probes and neighbour discovery among others."""
    if protocol == 58 and chance.random() < 0.5:
        return bytes([chance.choice((133, 135, 136, 137)), 0]) + chance.randbytes(chance.choice((0, 5, 22)))
    ports = chance.choice((862, 862, 5353)), chance.choice((862, 40000))
    return struct.pack("!HHHH", *ports, 28, 0)[: chance.choice((8, 8, 8, 4))] + chance.randbytes(20)


def mesh(inner: Frames):
    """Bodies of batman-adv frames, with whole frames inside or without."""

    def make(chance: random.Random) -> bytes:
        kind = chance.choice((0x40, 0x42, 0x01, 0x40, 0x42, 0x01, 0x00, 0x03, 0x04, 0x41, 0x43, 0x44, 0x77))
        version = 15 if chance.random() < 0.95 else chance.getrandbits(8)
        return batadv(kind, next(inner.take(1)), version)[14:]

    return make


@pytest.mark.parametrize("program", ["mesh_filter", "mesh_filter_tc"])
def test_each_frame_is_counted_to_whose_it_is(program: str):
    inner = Frames(SEED + 1, WHO, transport, tame=0.3)
    source = Frames(SEED, WHO, transport, {0x4305: mesh(inner)}, tame=0.1)
    with load(ObjectSpec.read(object_path("mesh_filter")), programs={program}) as loaded:
        bench = Filter(loaded)
        for identity in DENIED:
            bench.judge(identity, DENY)
        before, tallied = bench.table(), bench.tallies()
        run = Runner(loaded.programs[program].fd)
        counts: Counter[tuple[int, int]] = Counter()
        tallies, forms = [0, 0, 0, 0], Counter[str]()
        for frame in source.take(FRAMES):
            if program == "mesh_filter_tc" and len(frame) < {b"\x08\0": 34, b"\x86\xdd": 54}.get(
                frame[12:14], 14
            ):
                continue
            found = decode(frame)
            forms[found.form] += 1
            identity = attribute(found, PREFIXES, MACS)
            denied = identity in DENIED and drops(found, "deny")
            assert run(frame) == ((DROPS if denied else PASSES)[program], frame), frame.hex()
            tallies[0] += found.form == "control"
            tallies[1] += found.form == "undecoded"
            tallies[2] += found.form == "vital" and identity in DENIED
            if found.form != "control":
                counts.update({(identity, 0): 1, (identity, 1): len(frame), (identity, 2): denied})
        moved = {
            identity: [now - then for now, then in zip(row, before[identity], strict=True)]
            for identity, row in bench.table().items()
        }
        change = [now - then for now, then in zip(bench.tallies(), tallied, strict=True)]
    assert moved == {identity: [*(counts[identity, kind] for kind in range(3)), 0] for identity in moved}
    assert change == tallies
    assert min(forms.values()) > FRAMES // 50, forms
    assert all(counts[identity, 0] > FRAMES // 200 for identity in moved), counts
