"""What `explain` says a program can return, against what the kernel has it return: random programs that load, run on
some packets. MAPEK_FUZZ says how many (2000 by default); each is made from its number.
"""

from __future__ import annotations

import os
import random

import pytest

from mapek.bpf import helpers, hooks
from mapek.bpf.explain import explain
from mapek.errors import MapekError
from tests.support.bytecode import EXIT, Row, anatomy, call, copy, load_xdp, mov

pytestmark = pytest.mark.netns

COUNT = int(os.environ.get("MAPEK_FUZZ", "2000"))
PACKETS = (bytes(64), bytes(range(64)), bytes((2, 0, 0, 0, 0, 0, 0, 0)) * 8, b"\xff" * 64)
REGISTERS = (0, 7, 8, 9)
SLOTS = (-8, -16, -24)
ALU = (0x07, 0x17, 0x27, 0x47, 0x57, 0x67, 0x77, 0xA7, 0xB7, 0xC7)
SHIFTS = (0x60, 0x70, 0xC0)
BRANCHES = (0x10, 0x50, 0x20, 0x30, 0xA0, 0xB0, 0x60, 0x40, 0xD0)
STORES = {0x63: 4, 0x6B: 2, 0x73: 1, 0x7B: 8}
LOADS = {0x61: 4, 0x69: 2, 0x71: 1, 0x79: 8}
ATOMICS = (0x00, 0x01, 0x40, 0x41, 0xA1, 0xE1, 0xF1)
NUMBERS = (0, 1, 2, 3, 5, 7, 0xFF, 0x101, -1, -2)


def part(draw: random.Random) -> list[Row]:
    """Some instructions that belong together."""
    one, other, slot = draw.choice(REGISTERS), draw.choice(REGISTERS), draw.choice(SLOTS)
    operation = draw.choice(ALU) ^ draw.choice((0, 3))  # of 64 or of 32 bits
    match draw.randrange(8):
        case 0:
            number = draw.randrange(32) if operation & 0xF0 in SHIFTS else draw.choice(NUMBERS)
            return [(operation, one, 0, 0, number)]
        case 1:
            return [(operation | 8, one, other, 0, 0)]
        case 2:
            code, width = draw.choice([*STORES.items()])
            return [(code, 10, one, -width * draw.randrange(1, 24 // width + 1), 0)]
        case 3:
            code, width = draw.choice([*LOADS.items()])
            return [(code, one, 10, -width * draw.randrange(1, 24 // width + 1), 0)]
        case 4:
            return [copy(2, 10), (0x07, 2, 0, 0, slot), (draw.choice([*STORES]), 2, one, 0, 0)]
        case 5:
            given = [copy(1, 6), mov(2, draw.randrange(6)), copy(3, 10), (0x07, 3, 0, 0, slot), mov(4, 4)]
            return [*given, call(helpers.NAMES.index("xdp_load_bytes")), mov(0, draw.randrange(4))]
        case 6:
            return [call(helpers.NAMES.index(draw.choice(("ktime_get_ns", "get_prandom_u32")))), copy(one, 0)]
        case _:
            return [(draw.choice((0xDB, 0xC3)), 10, one, slot, draw.choice(ATOMICS))]


def program(number: int) -> list[Row]:
    """Registers and stack that are set, parts with branches over some of them, and a return."""
    draw = random.Random(number)
    rows = [copy(6, 1), *(mov(register, draw.choice(NUMBERS)) for register in REGISTERS)]
    rows += [(0x7A, 10, 0, slot, draw.choice(NUMBERS)) for slot in SLOTS]
    parts = [part(draw) for _ in range(draw.randrange(4, 20))]
    for body in parts:
        if draw.random() < 0.3:
            code = draw.choice(BRANCHES) | draw.choice((5, 6))
            rows.append((code, draw.choice(REGISTERS), 0, len(body), draw.choice(NUMBERS)))
        rows += body
    return [*rows, *draw.choice(([], [(0x77, 0, 0, 0, 32)])), copy(0, draw.choice(REGISTERS)), EXIT]


@pytest.mark.timeout(60 + COUNT // 100)
def test_what_it_can_return():
    loaded = exact = 0
    for number in range(COUNT):
        rows = program(number)
        try:
            running = load_xdp("random", *rows)
        except MapekError:
            continue
        try:
            found = anatomy(*rows)
            told = explain(found.spec, found).programs[0]
            said = {one.value for one in told.returns}
            loaded += 1
            exact += "any value" not in said
            for packet in PACKETS:
                value = running.test_run(packet).retval
                assert hooks.verdict("xdp", value) in said or "any value" in said, f"program {number}"
                assert not (hooks.drops("xdp", value) and told.can["drop packets"].answer == "no"), number
        finally:
            running.close()
    # Else nothing is tried, or everything is possible. Kernel 5.10 lacks most atomics and xdp_load_bytes.
    assert loaded > COUNT // 50
    assert exact > loaded // 4, (loaded, exact)
