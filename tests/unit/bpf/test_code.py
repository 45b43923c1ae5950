"""Code as data: decoding, the notation, and the flow of control, against tables and against llvm-objdump."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mapek.bpf import ObjectSpec, object_path
from mapek.bpf.anatomy import Anatomy, Function, Reference, take_apart
from mapek.bpf.flow import walk
from mapek.bpf.instructions import decode, text, unknown
from mapek.errors import ObjectError
from tests.support.bytecode import EMPTY, EXIT, Row, anatomy, assemble, call, mov, when, wide

OBJECTS = sorted(object_path("empty").parent.glob("*.o"))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (mov(0, 2), "r0 = 2"),
        ((0xB4, 3, 0, 0, -1), "w3 = -1"),
        ((0x0F, 1, 2, 0, 0), "r1 += r2"),
        ((0x87, 4, 0, 0, 0), "r4 = -r4"),
        ((0xDC, 4, 0, 0, 16), "r4 = be16 r4"),
        ((0x61, 2, 1, 4, 0), "r2 = *(u32 *)(r1 +4)"),
        ((0x91, 2, 1, -1, 0), "r2 = *(s8 *)(r1 -1)"),
        ((0x7B, 10, 1, -8, 0), "*(u64 *)(r10 -8) = r1"),
        ((0x62, 10, 0, -8, 7), "*(u32 *)(r10 -8) = 7"),
        ((0xDB, 1, 2, 0, 0), "lock add(*(u64 *)(r1 +0), r2)"),
        ((0xDB, 1, 2, 0, 0xF1), "lock cmpxchg(*(u64 *)(r1 +0), r2)"),
        ((0x28, 0, 0, 0, 12), "r0 = *(u16 *)skb[12]"),
        ((0x15, 1, 0, 5, 3), "if r1 == 3 goto 6"),
        ((0xAE, 1, 2, -1, 0), "if w1 < w2 goto 0"),
        ((0x05, 0, 0, 3, 0), "goto 4"),
        ((0x06, 0, 0, 0, 7), "goto 8"),
        ((0xE5, 0, 0, 3, 0), "may_goto 4"),
        ((0xE5, 0, 1, 3, 0), "unknown code 0xe5"),
        (call(1), "call helper 1"),
        ((0x85, 0, 1, 0, -3), "call pc-3"),
        (EXIT, "exit"),
        ((0xFF, 0, 0, 0, 0), "unknown code 0xff"),
        ((0xDB, 1, 2, 0, 0x10), "unknown code 0xdb"),
    ],
)
def test_notation(row: Row, said: str):
    (one,) = assemble(row)
    assert text(one) == said
    assert (unknown([one]) is not None) == said.startswith("unknown")


def test_both_byte_orders_decode_to_the_same():
    little = bytes.fromhex("18120000efbeadde 0000000004030201".replace(" ", ""))
    big = bytes.fromhex("18210000deadbeef 0000000001020304".replace(" ", ""))
    assert decode(little, "little") == decode(big, "big")
    (one,) = decode(little, "little")
    assert (one.dst, one.src, one.imm, one.slots) == (2, 1, 0x01020304DEADBEEF, 2)


@pytest.mark.parametrize(("data", "why"), [(b"\0" * 12, "no whole"), (b"\x18" + b"\0" * 7, "cut short")])
def test_what_is_no_code(data: bytes, why: str):
    with pytest.raises(ObjectError, match=why):
        decode(data, "little")


@pytest.mark.parametrize(
    ("rows", "longest", "unreachable", "strays", "back_edges"),
    [
        ((mov(0, 0), EXIT), 2, (), (), ()),
        ((when(1, 0, 1), mov(0, 1), mov(0, 2), EXIT), 4, (), (), ()),
        ((when(1, 0, 2), mov(0, 1), EXIT, mov(0, 2), mov(0, 3), EXIT), 4, (), (), ()),
        ((EXIT, mov(0, 1), EXIT), 1, (1, 2), (), ()),
        ((mov(0, 0),), 1, (), (0,), ()),
        (((0x05, 0, 0, 5, 0), EXIT), 1, (1,), (0,), ()),
        (((0x05, 0, 0, -9, 0), EXIT), 1, (1,), (0,), ()),
        ((mov(1, 9), (0x17, 1, 0, 0, 1), when(1, 0, -2, 0x55), EXIT), 4, (), (), ((1, 1),)),
        ((*wide(1, 5), when(1, 0, -2), EXIT), 3, (), (2,), ()),
        (((0x05, 0, 0, -1, 0),), 1, (), (), ((0, 0),)),
        (((0xE5, 0, 0, 2, 0), mov(0, 1), (0x05, 0, 0, -3, 0), EXIT), 3, (), (), ((1, 0),)),
    ],
)
def test_flow(
    rows: tuple[Row, ...],
    longest: int,
    unreachable: tuple[int, ...],
    strays: tuple[int, ...],
    back_edges: tuple[tuple[int, int], ...],
):
    flow = walk(assemble(*rows))
    assert (flow.longest(), flow.unreachable, flow.strays, flow.back_edges) == (
        longest,
        unreachable,
        strays,
        back_edges,
    )


def test_an_empty_function_has_no_flow():
    assert walk(()).blocks == ()
    assert walk(()).longest() == 0


def test_called_functions_count_each_time_that_they_are_called():
    main = ((0x85, 0, 1, 0, 0), (0x85, 0, 1, 0, 0), EXIT)
    calls = {0: Reference("function", "five"), 1: Reference("function", "five")}
    found = anatomy(*main, references=calls, five=(mov(0, 0),) * 4 + (EXIT,))
    assert found.longest("main") == 3 + 2 * 5
    assert found.depth("main") == 2
    assert [one.name for one in found.reach("main")] == ["main", "five"]


def test_recursion_ends():
    found = anatomy((0x85, 0, 1, 0, -1), EXIT, references={0: Reference("function", "main")})
    assert found.longest("main") == 2
    assert found.depth("main") > 8


@pytest.mark.parametrize(
    ("tick", "depth"),
    [
        # It sets itself again, as a timer's function does.
        ((*wide(2, 0, 4), call(170), EXIT), 1),
        # It calls itself.
        (((0x85, 0, 1, 0, -1), EXIT), 9),
    ],
)
def test_what_is_handed_on_does_not_nest(tick: tuple[Row, ...], depth: int):
    itself = {0: Reference("function", "tick")}
    main = Function("main", "xdp", 0, assemble(*wide(2, 0, 4), EXIT), itself)
    found = Anatomy(EMPTY, {"main": main, "tick": Function("tick", ".text", 0, assemble(*tick), itself)})
    assert found.depth("main") == depth
    assert found.longest("main") == 2 + len(assemble(*tick))


def test_a_flow_of_a_hundred_thousand_branches_is_walked_without_recursion():
    flow = walk(assemble(*[when(1, 0, 0x7F)] * 100_000, *[mov(0, 0)] * 0x80, EXIT))
    assert flow.longest() == 100_000 + 0x80 + 1


# The assembler writes what we read; another reader of the same bytes is the oracle.
ROW = re.compile(r"^\s+(\d+):\s+(.*)$")


def disassembled(path: Path) -> dict[tuple[str, str], dict[int, str]]:
    objdump = shutil.which("llvm-objdump") or shutil.which("llvm-objdump-14")
    if objdump is None:
        pytest.skip("no llvm-objdump; apt-get install llvm")
    out = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", str(path)], capture_output=True, text=True, check=True
    ).stdout
    found: dict[tuple[str, str], dict[int, str]] = {}
    section, rows = "", dict[int, str]()
    for line in out.splitlines():
        if line.startswith("Disassembly of section "):
            section = line.split()[-1].rstrip(":")
        elif match := re.match(r"^[0-9a-f]+ <(.+)>:$", line):
            # Not the labels of blocks.
            if not match[1].startswith("LBB"):
                rows = found.setdefault((section, match[1]), {})
        elif match := ROW.match(line):
            rows[int(match[1])] = match[2]
    return found


def compare(found: Anatomy, other: dict[tuple[str, str], dict[int, str]]) -> None:
    assert {(one.section, one.name) for one in found.functions.values()} == other.keys()
    for one in found.functions.values():
        rows, begin = other[one.section, one.name], one.start // 8
        assert [begin + i.slot for i in one.code] == list(rows), one.name
        for instruction in one.code:
            row = rows[begin + instruction.slot]
            assert (instruction.kind == "call") == row.startswith("call "), (one.name, row)
            assert (instruction.kind == "exit") == (row == "exit")
            assert (instruction.kind == "branch") == row.startswith("if "), (one.name, row)
            if instruction.kind == "call" and instruction.src == 0:
                assert row == f"call {instruction.imm}"
            if instruction.kind in ("jump", "branch"):
                jump = re.search(r"goto ([+-]\d+)", row)
                assert jump is not None
                assert int(jump[1]) == instruction.target - instruction.slot - 1


@pytest.mark.parametrize("path", OBJECTS, ids=lambda p: p.name)
def test_every_instruction_is_where_and_what_llvm_says(path: Path):
    compare(take_apart(ObjectSpec.read(path)), disassembled(path))


@pytest.mark.parametrize("path", OBJECTS, ids=lambda p: p.name)
def test_source_lines_are_those_of_the_source(path: Path):
    checked = 0
    for function in take_apart(ObjectSpec.read(path)).functions.values():
        for one in function.code[::7]:
            line = function.line(one.slot)
            source = path.parent / line.file.rsplit("/", 1)[-1] if line else None
            if line and source and source.is_file() and line.number:
                rows = source.read_text("utf-8").splitlines()
                assert rows[line.number - 1].strip()[:60] == line.text[:60]
                checked += 1
    assert checked
