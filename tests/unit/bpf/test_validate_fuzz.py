"""Hostile objects through parse, validate and explain: a verdict or a MapekError, soon and in bounded memory.

MAPEK_FUZZ says how many (100000 before a release; 5000 by default). A mutation that nobody could draw twice is of no
use, so each is made from its number: what fails can be made again.
"""

from __future__ import annotations

import os
import random
import resource
import struct
import time
from pathlib import Path

import pytest

from mapek.bpf import ObjectSpec, helpers, object_path
from mapek.bpf.anatomy import take_apart
from mapek.bpf.elf import parse as parse_elf
from mapek.bpf.explain import explain
from mapek.bpf.rules import HELPERS
from mapek.bpf.validate import validate
from mapek.bpf.words import dot, report, text
from mapek.errors import MapekError
from tests.support.raw_calls import raw_helper_calls
from tests.support.shapes import SHAPES, shape

COUNT = int(os.environ.get("MAPEK_FUZZ", "5000"))
# The larger cost up to 50 ms a time and have no form that these lack.
NAMES = (
    "dispatcher",
    "xdp_counter",
    "lab_wire",
    "ring_flood",
    "tc_classifier",
    "syscall_latency",
    "net_events",
)
SEEDS = [object_path(name).read_bytes() for name in NAMES]
SEEDS += [object_path("xdp_counter").with_name(f"{name}.bpfeb.o").read_bytes() for name in NAMES[:3]]
SEEDS += [shape(name, full=False) for name in SHAPES]
BORDERS = [0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 64) - 1]
LONGEST_S, MEMORY_KIB = 1.0, 256 << 10


def spans(data: bytes) -> list[tuple[int, int]]:
    """Where a lie does most: each section that is read, and the table of sections."""
    order = "<" if data[5] == 1 else ">"
    table, count = struct.unpack_from(order + "Q", data, 40)[0], struct.unpack_from(order + "H", data, 60)[0]
    found = [(0, 64), (table, table + 64 * count)]
    for index, section in enumerate(parse_elf(data).sections):
        start = struct.unpack_from(order + "Q", data, table + 64 * index + 24)[0]
        if len(section.data) and not section.name.startswith(".debug"):
            found.append((start, start + len(section.data)))
    return found


SPANS = [spans(seed) for seed in SEEDS]


def mutant(number: int) -> bytes:
    draw = random.Random(number)
    which = draw.randrange(len(SEEDS))
    data = bytearray(SEEDS[which])
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        start, end = draw.choice(SPANS[which])
        at = draw.randrange(start, end)
        match draw.randrange(5):
            case 0:
                data[at] ^= 1 << draw.randrange(8)
            case 1:
                width = draw.choice((1, 2, 4, 8))
                value = draw.choice(BORDERS) & (1 << 8 * width) - 1
                data[at : at + width] = value.to_bytes(width, draw.choice(("little", "big")))
            case 2:
                # An instruction, or what else has eight bytes, in another's place.
                at, other = at & ~7, draw.randrange(start, end) & ~7
                data[at : at + 8] = data[other : other + 8]
            case 3:
                data[at] = draw.choice((0x05, 0x15, 0x18, 0x61, 0x63, 0x85, 0x95, 0xB7, 0xBF))
            case 4:
                data[at & ~7 : (at & ~7) + 8] = struct.pack("<BBhi", 0x85, 0, 0, draw.randrange(220))
    if draw.randrange(50) == 0:
        del data[draw.randrange(len(data)) :]
    return bytes(data)


def judge(data: bytes) -> str:
    """Everything that is done with an object before it is loaded; in which step it ended."""
    try:
        spec = ObjectSpec.parse(data, "mutant.o")
    except MapekError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return "parse"
    try:
        found = validate(spec)
        told = explain(spec, found.anatomy)
        assert found.anatomy is not None
        text(told)
        report(found)
        dot(found.anatomy, spec.programs)
    except MapekError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return "anatomy"
    if not found.ok:
        return "refused"
    called = raw_helper_calls(data)
    for program in spec.programs.values():
        for function in found.anatomy.reach(program.name):
            names = {helpers.name(number) for number in called[function.name]}
            assert names <= HELPERS[program.type], (program.name, function.name)
    return "valid"


@pytest.mark.timeout(60 + COUNT // 10)
def test_mutants():
    ends: dict[str, int] = {}
    worst, before = 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(COUNT):
        began = time.thread_time()
        try:
            end = judge(mutant(number))
        except BaseException as error:
            error.add_note(f"mutant {number}")
            raise
        worst = max(worst, time.thread_time() - began)
        assert worst < LONGEST_S, f"mutant {number}"
        ends[end] = ends.get(end, 0) + 1
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{ends}, worst {1e3 * worst:.0f} ms, {most >> 10} MiB")
    assert most - before < MEMORY_KIB
    # Else the mutations are too harsh or too mild to try every step.
    assert all(ends.get(end, 0) > COUNT // 200 for end in ("parse", "anatomy", "refused", "valid")), ends


@pytest.mark.parametrize("path", sorted(object_path("empty").parent.glob("*.o")), ids=lambda path: path.name)
def test_the_reader_that_judges_them_reads_the_same_calls(path: Path):
    data = path.read_bytes()
    functions = take_apart(ObjectSpec.parse(data, path.name)).functions
    ours = {name: {number for _, number in one.helpers()} for name, one in functions.items()}
    assert raw_helper_calls(data) == ours
