"""The flow of control of a function: basic blocks, what cannot be reached, loops, and the longest way through.

A walk over the bytes alone, in linear time and without recursion, so that a hostile object cannot make it
slow. It knows less than the verifier: a branch that can never be taken counts as taken. So what it calls
unreachable is, and its worst case is never too small for code without loops.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from mapek.bpf.instructions import KINDS, LD_IMM64, Instruction

_TURNS: Final = ("exit", "jump", "branch")


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
        order: starts of the blocks that can be reached, each after those that follow it but for back edges.
    """

    blocks: tuple[Block, ...]
    unreachable: tuple[int, ...]
    strays: tuple[int, ...]
    back_edges: tuple[tuple[int, int], ...]
    order: tuple[int, ...]

    def longest(self, extra: Mapping[int, int] | None = None) -> int:
        """Instructions on the longest way from entry to exit that goes round no loop twice.

        `extra` is what instructions cost beyond themselves, by slot: the functions that they call.
        """
        cut = set(self.back_edges)
        more: dict[int, int] = {}
        starts = [block.start for block in self.blocks]
        for slot, cost in (extra or {}).items():
            home = starts[bisect_right(starts, slot) - 1]
            more[home] = more.get(home, 0) + cost
        found: dict[int, int] = {}
        by_start = {block.start: block for block in self.blocks}
        for start in self.order:
            block = by_start[start]
            onward = [found.get(after, 0) for after in block.next if (start, after) not in cut]
            found[start] = block.count + more.get(start, 0) + max(onward, default=0)
        return found.get(0, 0)


def walk(code: Sequence[Instruction]) -> Flow:
    """Find the flow of one function, whose code begins at slot 0; an empty one has no blocks."""
    if not code:
        return Flow((), (), (), (), ())
    end = code[-1].slot + code[-1].slots
    wide = [one.slot for one in code if one.code == LD_IMM64]
    inside = {slot + 1 for slot in wide}
    # By the slot after it: a turn ends its block.
    turns = {one.slot + 1: one for one in code if KINDS[one.code] in _TURNS}
    strays: list[int] = []
    onward: dict[int, tuple[int, ...]] = {}
    for after, one in turns.items():
        wanted = _successors(one)
        onward[after] = tuple(slot for slot in wanted if 0 <= slot < end and slot not in inside)
        if len(onward[after]) < len(wanted):
            strays.append(one.slot)
    if end not in turns:
        strays.append(code[-1].slot)
    leaders = sorted({0, *(slot for slots in onward.values() for slot in slots), *turns} - {end})
    blocks: dict[int, Block] = {}
    for start, stop in pairwise([*leaders, end]):
        count = stop - start - (bisect_left(wide, stop) - bisect_left(wide, start))
        blocks[start] = Block(start, stop, count, onward.get(stop, (stop,) if stop < end else ()))
    order, back_edges = _postorder(blocks, 0)
    reached = set(order)
    unreachable = tuple(
        slot
        for block in blocks.values()
        if block.start not in reached
        for slot in range(block.start, block.end)
        if slot not in inside
    )
    return Flow(tuple(blocks.values()), unreachable, tuple(strays), tuple(back_edges), tuple(order))


def _successors(one: Instruction) -> tuple[int, ...]:
    kind = KINDS[one.code]
    if kind == "exit":
        return ()
    after, target = one.slot + 1, one.target
    return (target,) if kind == "jump" or target == after else (after, target)


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
