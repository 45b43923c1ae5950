"""batadv on malformed frames: its tables hold what the reference decoder found, and every frame passes unchanged.

How numbers follow each other is told in docs/sensors and repeated here in plain Python, once for all frames.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from mapek.bpf import ObjectSpec, load, object_path
from mapek.sensors.batadv_table import NEIGHBOUR
from tests.netns.bpf.fuzz import FRAMES, SEED, TC_UNSPEC, XDP_PASS, Addresses, Frames, Runner
from tests.netns.bpf.test_batadv import OWN, A, B, Bench, C
from tests.support.decode_batadv import decode, elp, iv_ogm, ogm2

CHUNK = 5000
"""Frames for one load: mangled addresses would fill the tables."""
WHO = Addresses((A, B, C, OWN), (bytes([10, 0, 0, 1]),) * 2, (bytes(16),) * 2)


@dataclass
class Follow:
    """One neighbour's numbers, as the documentation tells it."""

    kind: str = ""
    newest: int = 0
    received: int = 0
    lost: int = 0
    late: int = 0
    repeated: int = 0
    restarts: int = 0

    def __post_init__(self) -> None:
        self.came: set[int] = set()

    def hear(self, kind: str, number: int) -> None:
        ahead = (number - self.newest + 2**31) % 2**32 - 2**31
        if self.kind != kind or ahead <= -64 or ahead >= 65536:
            self.restarts += self.kind != ""
            self.received += 1
            self.kind, self.newest = kind, number
            # those before the first were never missed
            self.came = {(number - back) % 2**32 for back in range(64)}
        elif ahead > 0:
            self.received += 1
            self.lost += ahead - 1
            self.newest = number
            self.came.add(number)
        elif number in self.came:
            self.repeated += 1
        else:
            self.received += 1
            self.late += 1
            self.came.add(number)


class Mesh:
    """Bodies of control frames with numbers that go on, mostly."""

    def __init__(self) -> None:
        self.number = 2**32 - 300

    def __call__(self, chance: random.Random) -> bytes:
        self.number += chance.choices((1, 0, 2, -3, 70000), (20, 2, 3, 2, 1))[0]
        kind = chance.choice(("elp", "ogm", "ogm", "ogm2", "noise"))
        if kind == "elp":
            return elp(chance.choice((A, B, OWN)), self.number)
        if kind == "noise":
            return bytes([chance.choice((0, 3, 4, 0x40)), chance.choice((15, 14))]) + chance.randbytes(40)
        make = iv_ogm if kind == "ogm" else ogm2
        parts = []
        for _ in range(chance.choices((1, 2, 5, 25, 30), (6, 4, 2, 1, 1))[0]):
            tvlv = chance.randbytes(chance.choices((0, 4, 12, 7), (8, 3, 2, 1))[0])
            length = None if chance.random() < 0.95 else chance.choice((0, 3, 60000, 65535))
            parts.append(make(chance.choice((A, B, C, OWN)), self.number, tvlv, length))
        return b"".join(parts)


@pytest.mark.parametrize("program", ["batadv", "batadv_tc"])
def test_each_frame_moves_what_it_should(program: str):
    source = Frames(SEED, WHO, None, {0x4305: Mesh(), 0x4306: Mesh()})
    spec = ObjectSpec.read(object_path("batadv"))
    kinds: Counter[str] = Counter()
    for _ in range(max(FRAMES // CHUNK, 1)):
        with load(spec, programs={program}) as loaded:
            bench = Bench(loaded, program)
            run = Runner(loaded.programs[program].fd)
            followed: dict[bytes, Follow] = {}
            through: Counter[tuple[bytes, bytes]] = Counter()
            for frame in source.take(CHUNK):
                if program == "batadv_tc" and len(frame) < {b"\x08\0": 34, b"\x86\xdd": 54}.get(
                    frame[12:14], 14
                ):
                    continue
                assert run(frame) == (TC_UNSPEC if program == "batadv_tc" else XDP_PASS, frame), frame.hex()
                for one in decode(frame):
                    kinds[one.kind] += 1
                    if one.neighbour == OWN:
                        continue
                    if one.kind == "elp" or (one.kind == "iv_ogm" and one.originator == one.neighbour):
                        followed.setdefault(one.neighbour, Follow()).hear(one.kind, one.seqno)
                    elif one.originator not in (one.neighbour, OWN):
                        through[one.originator, one.neighbour] += 1
            keys, values = loaded.maps["neighbours"].items(value_dtype=NEIGHBOUR)
            names = ("received", "lost", "late", "repeated", "restarts")
            told = {
                bytes(key[:6]): {name: int(value[name]) for name in names}
                for key, value in zip(keys, values, strict=True)
            }
            expected = {mac: {name: getattr(one, name) for name in names} for mac, one in followed.items()}
            assert told == expected
            assert bench.through() == through
            tallies = bench.tallies()
            assert not {"neighbours_full", "originators_full"} & set(tallies)
    assert min(kinds[kind] for kind in ("elp", "iv_ogm", "ogm2")) > FRAMES // 100, kinds
