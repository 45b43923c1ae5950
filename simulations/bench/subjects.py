"""What section `packets` runs 100 000 times on one packet: the programs of the sensors, each with the packet it gets.

A program that keeps state sees the same packet again and again: a batman-adv number that it knows, an address whose
entry is in the cache. So these are the lowest that a packet can cost. Every subject says what its program has to
return, and each sensor's is seen to have counted the packet as what it is.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv6Network, ip_address
from typing import Final

import numpy as np

from mapek.bpf import ObjectSpec, PerCpuArrayMap, Program, load, object_path
from mapek.bpf.cpus import cpu_slots
from mapek.bpf.maps import BPF_F_MMAPABLE, ArrayMap, ProgArrayMap, create_map
from mapek.errors import PermanentError
from mapek.knowledge.topology import Address
from mapek.sensors import tc_classifier_table as classifier
from mapek.sensors.batadv_table import TALLIES
from mapek.sensors.identities import Verdict
from mapek.sensors.mesh_filter_tables import Tables, pack
from mapek.sensors.tc_classifier_classes import parse_classes

XDP_DROP, XDP_PASS, XDP_TX = 1, 2, 3
TC_UNSPEC: Final = 0xFFFFFFFF
ENDS: Final = ip_address("10.0.0.1"), ip_address("10.0.0.2")
MESH_ENDS: Final = ip_address("fd07::7"), ip_address("fd09::9")
IDENTITIES: Final = 1000
CLASSES: Final = {
    "voice": "protocol=udp dscp=ef",
    "web": "protocol=tcp,udp destination_port=80,443,8000-8099",
    "marked": "mark=0x10/0xf0",
}
DIRECTIONS: Final = ("tc_class_in", "tc_class_out")
_MACS: Final = bytes.fromhex("020000000001020000000002")
_BATADV: Final = b"\x43\x05"
_VERSION: Final = 15


def frame(source: Address, target: Address, source_port: int, port: int, payload: bytes) -> bytes:
    """An Ethernet frame with a UDP datagram, its checksums left to whoever cares."""
    length = 8 + len(payload)
    udp = struct.pack("!4H", source_port, port, length, 0) + payload
    ends = source.packed + target.packed
    if source.version == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, 17, 0)
        return _MACS + b"\x08\x00" + head + ends + udp
    return _MACS + b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, length, 17, 255) + ends + udp


def batman(packet_type: int, size: int, inner: bytes) -> bytes:
    """`inner` behind a batman-adv header of `size` bytes, with the Ethernet header of the last hop."""
    return _MACS + _BATADV + bytes((packet_type, _VERSION, 50)) + bytes(size - 3) + inner


def elp(seqno: int) -> bytes:
    """An ELP of B.A.T.M.A.N. V that its neighbour sent."""
    return _MACS + _BATADV + struct.pack("!BB6sII", 0x03, _VERSION, _MACS[6:], seqno, 500) + bytes(30)


@dataclass(frozen=True, slots=True)
class Subject:
    """A program with the packet it gets and what it should say to it."""

    program: Program
    packet: bytes
    retval: int = XDP_PASS
    took: list[int] = field(default_factory=list)

    def run(self, repeat: int) -> None:
        """Once more. Raises PermanentError when it does not do what it is measured for."""
        found = self.program.test_run(self.packet, repeat)
        why = f"it returned {found.retval}, not {self.retval}"
        _expect(f"program {self.program.name}", found.retval == self.retval, why)
        self.took.append(found.duration_ns)


@contextmanager
def chain_of(spec: ObjectSpec, program: str, count: int) -> Iterator[Program]:
    """A dispatcher with the first `count` slots taken by copies of `program`."""
    with ExitStack() as life:
        head = life.enter_context(load(ObjectSpec.read(object_path("dispatcher"))))
        chain = head.map("chain", ProgArrayMap)
        for index in range(count):
            member = life.enter_context(load(spec, rodata={"slot": index}, reuse={"chain": chain}))
            chain.set(index, member.programs[program].fd)
        yield head.programs["dispatcher"]


def mesh_filter(life: ExitStack) -> dict[str, Subject]:
    """Without addresses, with those of 1000 identities, and with verdicts on the sender."""
    data = frame(*MESH_ENDS, 5000, 6000, bytes(64))
    spec, found = ObjectSpec.read(object_path("mesh_filter")), dict[str, Subject]()
    for name, prefixes, policy, retval in (
        ("no prefixes", 0, None, XDP_PASS),
        (f"{IDENTITIES} IPv6 prefixes", IDENTITIES, None, XDP_PASS),
        ("denied", IDENTITIES, Verdict("deny"), XDP_DROP),
        ("limited", IDENTITIES, Verdict("limit", 1_000_000, 1_000_000), XDP_PASS),
    ):
        sizes = {"prefixes6": IDENTITIES, "counts": IDENTITIES + 1, "policies": IDENTITIES + 1}
        loaded = life.enter_context(load(spec, max_entries=sizes))
        tables = Tables(loaded)
        _inhabit(tables, prefixes)
        if policy is not None:
            tables.judge(1, pack(policy))
        program = loaded.programs["mesh_filter"]
        found[f"mesh_filter, {name}"] = Subject(program, data, retval)
        packets = [(program, data)]
        if policy is None and prefixes:
            wrapped, by_tc = batman(0x40, 10, data), loaded.programs["mesh_filter_tc"]
            packets += [(program, wrapped), (by_tc, data)]
            found["mesh_filter, the same inside batman-adv"] = Subject(program, wrapped)
            found["mesh_filter, the same by tc"] = Subject(by_tc, data, TC_UNSPEC)
        for which, packet in packets:
            which.test_run(packet)
        numbers, counts = tables.counts()
        seen = int(counts[numbers == bool(prefixes), 0].sum())
        _expect("mesh_filter", seen == len(packets), "it took the sender for another")
    return found


def _inhabit(tables: Tables, prefixes: int) -> None:
    """Rows for the unknown and so many identities; number 1 is the sender, the others are near it."""
    chance = random.Random(1)
    for number in range(prefixes + 1):
        tables.add_row(number)
    for number in range(1, prefixes + 1):
        packed = MESH_ENDS[0].packed if number == 1 else b"\xfd\x07" + chance.randbytes(14)
        tables.assign(IPv6Network((packed, 128)), number)


def batadv(life: ExitStack) -> dict[str, Subject]:
    """A frame that is not the mesh's own, and an ELP whose number it has had."""
    loaded = life.enter_context(load(ObjectSpec.read(object_path("batadv"))))
    program, data, known = loaded.programs["batadv"], frame(*ENDS, 5000, 6000, bytes(64)), elp(7)
    program.test_run(known)
    sums = loaded.map("tallies", PerCpuArrayMap).summed()[1][:, 0]
    _expect("batadv", sums[TALLIES.index("frames")] == sums.sum() == 1, "it did not take the ELP for one")
    return {
        "batadv, foreign packet": Subject(program, data),
        "batadv, ELP": Subject(program, known),
    }


def tc_classifier(life: ExitStack) -> dict[str, Subject]:
    """Both directions with three classes, and the tc program that does nothing."""
    data, cpus = frame(*ENDS, 5000, 443, bytes(64)), cpu_slots()
    empty = life.enter_context(load(ObjectSpec.read(object_path("empty_tc"))))
    loaded = life.enter_context(
        load(ObjectSpec.read(object_path("tc_classifier")), max_entries={"counters": cpus})
    )
    classes = parse_classes(CLASSES)
    with create_map("array", 4, classifier.TABLE.itemsize, 1, flags=BPF_F_MMAPABLE) as inner:
        assert isinstance(inner, ArrayMap)
        inner.view(classifier.TABLE)[:] = classifier.build(
            classes, {one.name: slot for slot, one in enumerate(classes)}
        )
        loaded.maps["table"].update(bytes(4), struct.pack("=I", inner.fd))
    programs, counters = loaded.programs, loaded.map("counters", ArrayMap).view(np.uint64)
    for way in DIRECTIONS:
        programs[way].test_run(data)
    counted = counters.reshape(cpus, len(DIRECTIONS), classifier.SLOTS, len(classifier.FIELDS))
    packets = counted[..., 0].sum(axis=0)
    slot = list(CLASSES).index("web")
    _expect("tc_classifier", packets[:, slot].tolist() == [1, 1], "it took the packet for another class")
    return {
        "empty_tc": Subject(empty.programs["empty_tc"], data, TC_UNSPEC),
        "tc_classifier, in": Subject(programs[DIRECTIONS[0]], data, TC_UNSPEC),
        "tc_classifier, out": Subject(programs[DIRECTIONS[1]], data, TC_UNSPEC),
    }


def _expect(what: str, holds: bool, why: str) -> None:
    if not holds:
        raise PermanentError("measure", what, why, "see its tests")
