"""What a function knows of its stack: the values that it stored by the frame pointer, by offset and width.

A slot that is not there may hold anything. A stack is never changed but made anew, so blocks share it. Others write to
it through pointers that they are given: a helper writes numbers, over pointers too, which are none then for the
verifier; a function of the object may store whatever it has.
"""

from __future__ import annotations

from collections.abc import Mapping

from mapek.bpf.alu import ANY, UNKNOWN, Value, cut, is_number, narrow

Stack = Mapping[tuple[int, int], Value]


def read(stack: Stack, offset: int, width: int) -> Value:
    """What is loaded from there. Only eight bytes can be a pointer."""
    return stack.get((offset, width)) or anything(width)


def anything(width: int) -> Value:
    """What may be in `width` bytes of which nothing is known."""
    return UNKNOWN if width == 8 else ANY


def write(stack: Stack, offset: int, width: int, value: Value | None) -> Stack:
    """With `value` stored there, and what it overlaps forgotten; None: nobody knows what."""
    kept = {
        (at, size): known
        for (at, size), known in stack.items()
        if at >= offset + width or offset >= at + size
    }
    if value is not None:
        kept[offset, width] = cut(value, width)
    return kept


def scribbled(stack: Stack) -> Stack:
    """After a helper was given a pointer to it: numbers may be others; a pointer is still there, or is a number."""
    return {at: frozenset(atom for atom in value if not is_number(atom)) | ANY for at, value in stack.items()}


def overwritten(stack: Stack, value: Value) -> Stack:
    """After `value`, or a part of it, was stored nobody knows where."""
    return {at: narrow(known | value | ANY) for at, known in stack.items()}


def joined(one: Stack, other: Stack) -> Stack:
    """What is known where two ways meet; `one` itself if that is all that it says."""
    both: dict[tuple[int, int], Value] = {}
    same = True
    for at, value in one.items():
        more = other.get(at)
        if more is None:
            same = False
        elif more is value or more <= value:
            both[at] = value
        else:
            both[at] = narrow(value | more)
            same = same and both[at] == value
    return one if same else both
