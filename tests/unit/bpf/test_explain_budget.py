"""Objects that are made to keep `explain` busy: what one walk, all walks and the scan may cost."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from mapek.bpf import MapSpec, ProgramSpec, helpers
from mapek.bpf.anatomy import Anatomy, Function, Reference
from mapek.bpf.explain import Explanation, explain
from mapek.errors import ObjectError
from tests.support import machine
from tests.support.bytecode import EMPTY, EXIT, Row, anatomy, assemble, call, copy, load, mov, when, wide

LONGEST_S = 1.0
END = (mov(0, 2), EXIT)
LOOKUP = call(helpers.NAMES.index("map_lookup_elem"))
CALLS = [row for number in range(400) for row in (mov(1, number), (0x85, 0, 1, 0, 1))]
BLOCKS = [row for number in range(4000) for row in (when(2, number, 1), mov(3, 1))]
STACK = [(0x7A, 10, 0, -8 - 8 * number, number) for number in range(64)]
SCRIBBLES = [copy(2, 10), call(helpers.NAMES.index("map_peek_elem"))] * 6000
MAPS = [row for number in range(15) for row in (when(2, number, 2), *wide(6, source=1))]
NAMES = {3 * number + 1: Reference("map", f"m{number}") for number in range(15)}
LOADS = [copy(1, 6), copy(2, 10), LOOKUP, copy(7, 0), *[load(3, 7, 0, 0x79)] * 100_000]

SHAPES: dict[str, Anatomy] = {
    "a long function, called with many arguments": anatomy(
        *CALLS,
        *END,
        references={2 * at + 1: Reference("function", "big") for at in range(400)},
        big=(*BLOCKS, *END),
    ),
    "a full stack that helpers scribble on": anatomy(*STACK, *SCRIBBLES, *END),
    "a full stack in every block": anatomy(*STACK, *BLOCKS * 3, *END),
    "pointers to one of many maps": anatomy(
        *MAPS,
        *LOADS,
        *END,
        references=NAMES,
        maps={f"m{number}": MapSpec(f"m{number}", "array", 4, 8, 1, 0) for number in range(15)},
    ),
}


def timed(found: Anatomy) -> Explanation:
    for function in found.functions.values():
        assert function.flow  # is made when the object is judged
    began = time.thread_time()
    try:
        return explain(found.spec, found)
    finally:
        assert time.thread_time() - began < machine.effort(LONGEST_S)


def many(count: int, *body: Row) -> Anatomy:
    """Programs that all call one function."""
    programs = {f"p{n}": ProgramSpec(f"p{n}", "xdp", "xdp", "", 2) for n in range(count)}
    main = assemble((0x85, 0, 1, 0, 1), EXIT)
    functions = {n: Function(n, "xdp", 0, main, {0: Reference("function", "f")}) for n in programs}
    functions["f"] = Function("f", ".text", 0, assemble(*body, *END), {})
    return Anatomy(replace(EMPTY, programs=programs, maps={}), functions)


@pytest.mark.parametrize("found", SHAPES.values(), ids=SHAPES)
def test_a_program_that_takes_too_long_is_unsure(found: Anatomy):
    (told,) = timed(found).programs
    assert (told.complete, told.can["drop packets"].answer) == (False, "maybe")


def test_programs_share_what_their_walks_may_cost():
    told = timed(many(1000, *[mov(3, 1)] * 30_000)).programs
    assert [one.complete for one in (told[0], told[-1])] == [True, False]
    assert told[-1].can["drop packets"].answer == "maybe"
    assert told[-1].can["kill or signal processes"].answer == "no"


def test_programs_share_what_the_scan_may_cost():
    for body in (BLOCKS, [LOOKUP] * 4000):
        with pytest.raises(
            ObjectError, match="more than 60000 calls, references and basic blocks; take one with"
        ):
            timed(many(100, *body))
        assert explain(many(1, *body).spec, many(1, *body)).programs[0].complete
