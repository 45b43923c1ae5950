"""Objects that are as large as any that is read: their verdict takes a second at most, whatever their shape."""

from __future__ import annotations

import struct
import time

import pytest

from mapek.bpf import ObjectSpec
from mapek.bpf.anatomy import Anatomy, take_apart
from mapek.bpf.elf import SHT_REL, STT_FUNC
from mapek.bpf.relocate import VMLINUX, unresolved
from mapek.bpf.validate import MAX_FINDINGS, validate
from mapek.errors import ObjectError
from tests.support import machine
from tests.support.bytecode import EXIT, call
from tests.support.shapes import PTR, SHAPES, STRUCT, U32, Making, maps, shape

# What is over a limit; all others are judged.
REFUSED = {
    "over each other": "more than 65536 relocations",
    "no records": "announces 0 records",
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_largest_of_each_shape_is_judged_within_a_second(name: str):
    data = shape(name, full=True)
    began, why = time.thread_time(), ""
    try:
        report = validate(ObjectSpec.parse(data))
        assert 0 < len(report.findings) <= MAX_FINDINGS + 1
    except ObjectError as error:
        why = error.why
    assert time.thread_time() - began < machine.effort(3)
    assert REFUSED.get(name, "") in why
    assert bool(why) == (name in REFUSED)


def test_too_many_findings_are_cut_and_refuse():
    report = validate(ObjectSpec.parse(shape("helpers", full=True)))
    assert str(report.findings[-1]) == "object: more is wrong with it than 1000 things; mend the first ones"
    assert not report.ok


def many(what: str, count: int) -> bytes:
    """An object with so many of it."""
    one = Making()
    if what == "functions":
        text = one.code(".text", *[EXIT] * count)
        for n in range(count):
            one.symbol(f"f{n}", STT_FUNC, text, 8 * n, 8)
    elif what == "programs":
        for n in range(count):
            one.program(f"p{n}", f"kprobe/{n}", EXIT)
    elif what == "maps":
        maps(one, count)
    elif what == "symbols":
        for _ in range(count):
            one.symbol("", 0, 0, 0, 0)
    elif what == "types":
        for _ in range(count):
            one.type("", PTR, U32)
    elif what == "members":
        for _ in range(2):
            one.type("", STRUCT, 4, count // 2, struct.pack("<III", 0, U32, 0) * (count // 2))
    elif what == "instructions":
        one.program("main", "xdp", *[EXIT] * count)
    elif what == "loaded":
        function = one.symbol("big", STT_FUNC, one.code(".text", *[EXIT] * (count // 4)), 0, count // 4 * 8)
        for n in range(5):
            index = one.program(f"p{n}", f"kprobe/{n}", (0x85, 0, 1, 0, -1), EXIT)
            row = struct.pack("<QQ", 0, function << 32 | 10)
            one.section(".rel", row, SHT_REL, info=index, entry=16)
    return one.object()


@pytest.mark.parametrize(
    ("what", "count", "says"),
    [
        ("functions", 4097, "more than 4096 functions"),
        ("programs", 1025, "more than 1024 programs"),
        ("maps", 1025, "more than 1024 maps"),
        ("symbols", 1 << 15, "a symbol table of 786456 bytes"),
        ("types", (1 << 16) + 1, "more BTF types than any object has"),
        ("members", (1 << 16) + 2, "more BTF members than any object has"),
        ("instructions", (1 << 16) + 1, "more than 65536 instructions"),
        ("loaded", 1 << 17, "with what they call have more than 131072 instructions"),
    ],
)
def test_what_is_larger_is_not_read(what: str, count: int, says: str):
    with pytest.raises(ObjectError, match=says):
        take_apart(ObjectSpec.parse(many(what, count)))


@pytest.fixture(scope="module")
def views() -> Anatomy:
    """Thirty thousand places, each of another view of one of two types, so that none is known from before."""
    one = Making()
    text = one.code(".text", *[*[call(5)] * 7, EXIT] * 4000)
    for n in range(4000):
        one.symbol(f"r{n}", STT_FUNC, text, 64 * n, 64)
    pid, path = struct.pack("<III", one.string("pid"), U32, 0), one.string("0:0")
    records = [one.type(f"task_struct___{n}", STRUCT, 4, 1, pid) for n in range(16000)]
    records += [one.type(f"no_such_struct___{n}", STRUCT, 4, 1, pid) for n in range(16000)]
    one.core(".text", [(8 * n, record, path, 0) for n, record in enumerate(records)])
    return take_apart(ObjectSpec.parse(one.object()))


@pytest.mark.skipif(not machine.has("btf"), reason=f"no {VMLINUX}")
def test_relocations_that_are_all_different_are_looked_up_once_by_name(views: Anatomy):
    began = time.thread_time()
    found = list(unresolved(views, None))
    assert time.thread_time() - began < machine.effort(3)
    assert {one.why for one in found} == {"the kernel has no struct no_such_struct"}
    assert len(found) == 2000
