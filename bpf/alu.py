"""Sets of values and what arithmetic does to them: numbers are computed, pointers keep their origin.

Few numbers are kept apart, because the answers that are wanted are return codes; more than that is "any". What may be
a pointer of which nothing is known has the atom "unknown", so that a number is known not to be one: the verifier lets
nobody read or write through a number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from mapek.bpf.instructions import ALU, Instruction

Value = frozenset[int | str]
"""What a register may hold: unsigned 64-bit numbers; "any" number; what "helper:NAME" returned; or a pointer by its
origin: "ctx", "packet", "stack", "kernel", "ring", "map:NAME", "value:NAME", "func:NAME", or "unknown"."""

ANY: Final[Value] = frozenset(("any",))
UNKNOWN: Final[Value] = frozenset(("any", "unknown"))
"""A number or a pointer."""
MASK: Final = (1 << 64) - 1
_MOST: Final = 16


def is_number(atom: int | str) -> bool:
    """Whether it is no pointer."""
    return isinstance(atom, int) or atom == "any" or atom.startswith("helper:")


def narrow(value: Value) -> Value:
    """The same with "any" in the place of too many numbers, and "unknown" in that of too many pointers."""
    if len(value) <= _MOST:
        return value
    words: Value = frozenset(atom for atom in value if isinstance(atom, str))
    return words | ANY if len(words) <= _MOST else UNKNOWN


def cut(value: Value, width: int) -> Value:
    """What is left of it in `width` bytes. No part of a pointer is one."""
    if width == 8:
        return value
    mask = (1 << 8 * width) - 1
    # What a helper returns are few small numbers, or a negative errno of 32 bits.
    return narrow(
        frozenset(
            atom & mask if isinstance(atom, int) else atom if width == 4 and is_number(atom) else "any"
            for atom in value
        )
    )


def compute(one: Instruction, registers: Sequence[Value]) -> Value:
    """What an arithmetic instruction leaves in its destination."""
    operation, short = one.code & 0xF0, one.code & 7 == ALU
    left = registers[one.dst]
    right = registers[one.src] if one.code & 8 else frozenset((one.imm & MASK,))
    if operation == 0xB0:
        # An offset makes it a sign extension.
        found = ANY if one.off else right
    elif operation in (0x00, 0x10):
        found = _add(left, right, subtract=operation == 0x10)
    elif operation == 0x50:
        found = _and(left, right)
    else:
        found = _fold(operation, left, right, 32 if short else 64)
    return cut(found, 4) if short else narrow(found)


def _add(left: Value, right: Value, *, subtract: bool) -> Value:
    pointers: Value = frozenset(atom for atom in left if not is_number(atom))
    others: Value = frozenset(atom for atom in right if not is_number(atom))
    if not pointers and not others:
        return _pairs(left, right, lambda a, b: (a - b if subtract else a + b) & MASK)
    # A pointer and a number make a pointer, whichever stands first; two pointers have a distance.
    found: Value = pointers if right - others else frozenset()
    if not subtract and left - pointers:
        found |= others
    if (left - pointers and right - others) or (subtract and pointers and others):
        found |= ANY
    return found or UNKNOWN


def _and(left: Value, right: Value) -> Value:
    if "any" in left and len(right) == 1:
        (mask,) = right
        if isinstance(mask, int) and mask.bit_count() <= 3:
            bits = [bit for bit in range(64) if mask >> bit & 1]
            return frozenset(
                sum(1 << bit for place, bit in enumerate(bits) if pick >> place & 1)
                for pick in range(1 << len(bits))
            )
    return _pairs(left, right, lambda a, b: a & b)


def _fold(operation: int, left: Value, right: Value, bits: int) -> Value:
    mask = (1 << bits) - 1

    def shift(a: int, b: int) -> int:
        return (a & mask) >> (b & bits - 1)

    def arithmetic(a: int, b: int) -> int:
        a &= mask
        return (a - (a >> bits - 1 << bits) >> (b & bits - 1)) & mask

    known: dict[int, Callable[[int, int], int]] = {
        0x20: lambda a, b: a * b & MASK,
        0x40: lambda a, b: a | b,
        0x60: lambda a, b: (a & mask) << (b & bits - 1) & mask,
        0x70: shift,
        0x80: lambda a, b: -a & mask,
        0xA0: lambda a, b: a ^ b,
        0xC0: arithmetic,
    }
    return _pairs(left, right, known[operation]) if operation in known else ANY


def _pairs(left: Value, right: Value, compute_one: Callable[[int, int], int]) -> Value:
    numbers = [[atom for atom in side if isinstance(atom, int)] for side in (left, right)]
    if len(left) * len(right) > 64 or len(numbers[0]) < len(left) or len(numbers[1]) < len(right):
        return ANY
    return frozenset(compute_one(a, b) for a in numbers[0] for b in numbers[1])
