"""The flow of control of a function: basic blocks, what cannot be reached, loops, and the longest way through.

A walk over the bytes alone, in linear time and without recursion, so that a hostile object cannot make it
slow. It knows less than the verifier: a branch that can never be taken counts as taken. So what it calls
unreachable is, and its worst case is never too small for code without loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mapek.bpf.instructions import Instruction


@dataclass(frozen=True, slots=True)
class Block:
    """Instructions that run one after another: slots `start` up to `end` (not included), `count` of them, and
    the starts of the blocks that may follow."""

    start: int
    end: int
    count: int
    next: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Flow:
    """What the walk found.

    Args:
        blocks: by start, in order.
        unreachable: slots that no way leads to.
        strays: slots from which control leaves the function, or goes into the middle of a 64-bit load.
        back_edges: (from block, to block): each is a loop.
        longest: instructions on the longest way from entry to exit that goes round no loop twice.
        longest_slots: the same in slots, which is what the kernel counts.
    """

    blocks: tuple[Block, ...]
    unreachable: tuple[int, ...]
    strays: tuple[int, ...]
    back_edges: tuple[tuple[int, int], ...]
    longest: int


def walk(code: Sequence[Instruction]) -> Flow:
    """Find the flow of one function; an empty one has no blocks."""
    if not code:
        return Flow((), (), (), (), 0)
    at = {one.index: position for position, one in enumerate(code)}
    strays: list[int] = []
    follows: dict[int, tuple[int, ...]] = {}
    for one in code:
        wanted = _successors(one)
        follows[one.index] = tuple(slot for slot in wanted if slot in at)
        if len(follows[one.index]) < len(wanted):
            strays.append(one.index)
    blocks = _blocks(code, follows)
    order, back_edges = _postorder(blocks, code[0].index)
    longest: dict[int, int] = {}
    cut = set(back_edges)
    for start in order:
        block = blocks[start]
        onward = [longest.get(after, 0) for after in block.next if (start, after) not in cut]
        longest[start] = block.count + max(onward, default=0)
    reached = set(order)
    unreachable = tuple(
        one.index
        for start, block in blocks.items()
        if start not in reached
        for one in code[at[start] : at[start] + block.count]
    )
    return Flow(tuple(blocks.values()), unreachable, tuple(strays), tuple(back_edges), longest[code[0].index])


def _successors(one: Instruction) -> tuple[int, ...]:
    after = one.index + one.slots
    if one.kind == "exit":
        return ()
    if one.kind == "jump":
        return (one.target,)
    if one.kind == "branch":
        return (after, one.target) if one.target != after else (after,)
    return (after,)


def _blocks(code: Sequence[Instruction], follows: dict[int, tuple[int, ...]]) -> dict[int, Block]:
    leaders = {code[0].index}
    for one in code:
        if one.kind in ("jump", "branch", "exit"):
            leaders.update(follows[one.index])
            leaders.add(one.index + one.slots)
    found: dict[int, Block] = {}
    start, count = code[0].index, 0
    for position, one in enumerate(code):
        count += 1
        end = one.index + one.slots
        if position + 1 == len(code) or end in leaders:
            found[start] = Block(start, end, count, follows[one.index])
            start, count = end, 0
    return found


def _postorder(blocks: dict[int, Block], entry: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Blocks that can be reached, each after those that follow it, and the edges that close a loop."""
    order: list[int] = []
    back_edges: list[tuple[int, int]] = []
    open_, done = {entry}, set[int]()
    stack = [(entry, iter(blocks[entry].next))]
    while stack:
        start, onward = stack[-1]
        for after in onward:
            if after in open_:
                back_edges.append((start, after))
            elif after not in done:
                open_.add(after)
                stack.append((after, iter(blocks[after].next)))
                break
        else:
            stack.pop()
            open_.discard(start)
            done.add(start)
            order.append(start)
    return order, back_edges
