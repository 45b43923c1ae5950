"""What a branch says about the register that it compares with a number, on each of its two ways."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from mapek.bpf.alu import ANY, MASK, Value, is_number
from mapek.bpf.instructions import JMP32, KINDS, Instruction

_LOW: Final = (1 << 32) - 1
_SMALL: Final = 8
_NULLABLE: Final = ("kernel", "unknown")
# Unsigned comparisons: whether the way taken has the values below, and whether the number itself is among them.
_BELOW: Final = {0x20: (False, 1), 0x30: (False, 0), 0xA0: (True, 0), 0xB0: (True, 1)}


def ways(
    last: Instruction, onward: Sequence[int], registers: list[Value]
) -> Iterator[tuple[int, list[Value]]]:
    """Where control goes after a block that ends in `last`, each way with the registers as they are then.

    A way that no value can take is left out.
    """
    if KINDS[last.code] != "branch" or last.code & 8 or len(onward) < 2:
        for after in onward:
            yield after, list(registers)
        return
    for after in onward:
        value = _refine(last, registers[last.dst], taken=after == last.target)
        if value:
            changed = list(registers)
            changed[last.dst] = value
            yield after, changed


def _refine(last: Instruction, value: Value, *, taken: bool) -> Value:
    operation = last.code & 0xF0
    mask = _LOW if last.code & 7 == JMP32 else MASK
    number = last.imm & mask
    if operation in (0x10, 0x50):
        if taken == (operation == 0x10):
            return _equal(value, number, short=mask == _LOW)
        return frozenset(atom for atom in value if not isinstance(atom, int) or atom & mask != number)
    if operation in _BELOW:
        way, more = _BELOW[operation]
        if taken == way:
            return _below(value, number + more, short=mask == _LOW)
        return frozenset(atom for atom in value if not isinstance(atom, int) or atom & mask >= number + more)
    return value


def _equal(value: Value, number: int, *, short: bool) -> Value:
    if short:
        # The upper half of what is not known stays unknown.
        return frozenset(a for a in value if not isinstance(a, int) or a & _LOW == number)
    # A pointer may be null if that is not known; that it is another number than 0 is nothing that one can rely on.
    may_be = any(a == number if isinstance(a, int) else is_number(a) or a in _NULLABLE for a in value)
    pointers = frozenset(a for a in value if not is_number(a)) if number else frozenset()
    return pointers | {number} if may_be else pointers


def _below(value: Value, limit: int, *, short: bool) -> Value:
    mask = _LOW if short else MASK
    kept: Value = frozenset(atom for atom in value if not isinstance(atom, int) or atom & mask < limit)
    if "any" in kept and limit <= _SMALL and not short:
        return kept - ANY | frozenset(range(limit))
    return kept
