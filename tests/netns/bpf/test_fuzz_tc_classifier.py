"""tc_classifier on malformed frames: counted once, in the class that the reference decoder and plain Python name."""

from __future__ import annotations

import random
import struct
from collections import Counter

import pytest

from mapek.bpf import ObjectSpec, load, object_path
from mapek.bpf.cpus import cpu_slots
from mapek.sensors.tc_classifier_classes import TrafficClass
from tests.netns.bpf.fuzz import ANYBODY, FRAMES, SEED, Frames, Runner
from tests.netns.bpf.test_tc_classifier import SHOT, UNSPEC, Bench
from tests.support.decode_packet import IPV4, IPV6, decode

TAGS_FOLLOWED, EXTENSIONS_FOLLOWED = 2, 4
WITH_PORTS = (6, 17, 33, 132, 136)
CLASSES = {
    "probes": "protocol=udp port=862",
    "secret": "protocol=tcp destination_port=0-9999 verdict=drop",
    "low": "source_port=1-30000",
    "control": "dscp=cs6 protocol=icmp,icmpv6,udp",
    "voice": "dscp=ef",
    "icmp": "protocol=icmp,icmpv6",
    "sctp": "protocol=132",
}


def belongs(one: TrafficClass, protocol: int | None, dscp: int | None, ports: tuple[int, int] | None) -> bool:
    """Do all conditions of the class hold?"""
    if one.protocols and protocol not in one.protocols:
        return False
    if one.dscp and dscp not in one.dscp:
        return False
    for ranges, candidates in (
        (one.ports, ports or ()), (one.source_ports, (ports or ())[:1]), (one.destination_ports, (ports or ())[1:])
    ):  # fmt: skip
        if ranges and not any(low <= port <= high for low, high in ranges for port in candidates):
            return False
    return not one.marks


def fields(frame: bytes) -> tuple[int | None, int | None, tuple[int, int] | None]:
    """Protocol, DSCP and ports of a frame, as far as the program says that it looks."""
    found = decode(frame)
    if found.protocol is None or len(found.tags) > TAGS_FOLLOWED or found.extensions > EXTENSIONS_FOLLOWED:
        return None, None, None
    at = 14 + 4 * len(found.tags)
    if found.ethertype == IPV4:
        dscp = frame[at + 1] >> 2
    else:
        assert found.ethertype == IPV6
        dscp = struct.unpack_from("!H", frame, at)[0] >> 6 & 63
    ports = None
    if found.first and found.protocol in WITH_PORTS and len(frame) >= found.at + 4:
        ports = struct.unpack_from("!HH", frame, found.at)
    return found.protocol, dscp, ports


def transport(chance: random.Random, version: int, protocol: int) -> bytes:
    """Ports that the classes ask for, whole or cut short."""
    ports = chance.choice((862, 22, 29999, 40000)), chance.choice((862, 9999, 10000, 40000))
    body = struct.pack("!HHIIBBHHH", *ports, 0, 0, 0x50, 0, 0, 0, 0)
    return body[: chance.choice((20, 20, 20, 8, 4, 3, 0))] + chance.randbytes(chance.choice((0, 0, 40)))


@pytest.mark.parametrize("way", ["in", "out"])
def test_each_frame_is_counted_in_its_class(way: str):
    source = Frames(SEED, ANYBODY, transport)
    with load(ObjectSpec.read(object_path("tc_classifier")), max_entries={"counters": cpu_slots()}) as loaded:
        bench = Bench(loaded)
        classes = bench.use(**CLASSES)
        slots = {name: slot for slot, name in bench.names.items()}
        run = Runner(loaded.programs[f"tc_class_{way}"].fd)
        counts: Counter[tuple[str, int]] = Counter()
        for frame in source.take(FRAMES):
            if len(frame) < {b"\x08\0": 34, b"\x86\xdd": 54}.get(frame[12:14], 14):
                continue
            one = next((one for one in classes if belongs(one, *fields(frame))), None)
            name, drop = (one.name, one.drop) if one else ("other", False)
            assert run(frame) == (SHOT if drop else UNSPEC, frame), (name, frame.hex())
            counts.update({(name, 0): 1, (name, 1): len(frame), (name, 2): drop})
        summed = bench.counters.sum(0)
        direction = ("in", "out").index(way)
        told = {name: summed[direction, slot].tolist() for name, slot in slots.items()}
        assert told == {name: [counts[name, kind] for kind in range(3)] for name in slots}
        assert summed[1 - direction].sum() == 0
    assert min(counts[name, 0] for name in slots) > FRAMES // 500, counts
