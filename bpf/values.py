"""What registers may hold: a walk over a program that follows constants and the origin of pointers.

It answers what `explain` asks: which values a program can return, and what it writes to. A register holds a set of
atoms, numbers and origins; where ways meet, sets are joined, so the answer may be too large and never too small for
code that the verifier accepts. Two things of that code are relied on: nothing is read or written through a number, and
what is a pointer was one when it was stored. The walk is bounded: past its budget everything is possible, and
`complete` says so.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mapek.bpf import helpers
from mapek.bpf.alu import ANY, MASK, UNKNOWN, Value, compute, is_number, narrow
from mapek.bpf.anatomy import MAX_DEPTH, Anatomy, Function
from mapek.bpf.branches import ways
from mapek.bpf.called import WRITES_NOTHING, callbacks, called
from mapek.bpf.context import field
from mapek.bpf.facts import Facts
from mapek.bpf.flow import Block
from mapek.bpf.instructions import ALU, ALU64, KINDS, LD, LD_IMM64, LDX, PSEUDO_CALL, ST, STX, Instruction
from mapek.bpf.stack import Stack, anything, joined, overwritten, read, scribbled, write

STEPS: Final = 120_000
"""Instructions that one walk looks at; ours take at most a tenth of it."""

ALL_STEPS: Final = 2 * STEPS
"""The same for all programs of an object."""

_BLOCK: Final = 4
"""What it costs to enter a block, in steps."""
_SLOTS: Final = 16
"""Slots of a stack that are joined, or of which one is written, for one step; to change all costs eight times that."""
_ACQUIRE: Final = 0x100
_WIDTHS: Final = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}

Registers = list[Value]


@dataclass(slots=True)
class Budget:
    """What the walks over one object may cost, in steps."""

    left: int = ALL_STEPS

    def charge(self, steps: int) -> bool:
        """Whether there was as much left."""
        self.left -= steps
        return self.left >= 0


def follow(anatomy: Anatomy, program: str, budget: Budget | None = None) -> Facts:
    """Walk one program from its context to its returns."""
    walk = _Walk(anatomy, anatomy.spec.programs[program].type, budget or Budget())
    try:
        walk.call(anatomy.functions[program], (frozenset(("ctx",)), ANY, ANY, ANY, ANY), 1)
    except _Spent:
        walk.facts.complete = False
    return walk.facts


class _Spent(Exception):
    """There is no budget left."""


@dataclass(slots=True)
class _Call:
    """One function in the walk, with given arguments.

    Args:
        returned: so far. effect: what it does to the stacks of those that called it: nothing, `scribbled` or
            `overwritten`.
    """

    function: Function
    depth: int
    returned: Value = frozenset()
    effect: int = 0


_SCRIBBLES, _OVERWRITES = 1, 2


@dataclass(slots=True)
class _State:
    """What registers and stack hold before an instruction."""

    registers: Registers
    stack: Stack

    def suffer(self, effect: int) -> None:
        """Somebody wrote to the stack through a pointer to it."""
        if effect == _SCRIBBLES:
            self.stack = scribbled(self.stack)
        elif effect:
            self.stack = overwritten(self.stack, UNKNOWN)


class _Shape:
    """A function as the walk needs it."""

    def __init__(self, function: Function) -> None:
        self.rank = {start: place for place, start in enumerate(reversed(function.flow.order))}
        self.code: dict[int, Sequence[Instruction]] = {}
        self.blocks: dict[int, Block] = {}
        at = 0
        for block in function.flow.blocks:
            self.blocks[block.start] = block
            self.code[block.start] = function.code[at : at + block.count]
            at += block.count


class _Walk:
    def __init__(self, anatomy: Anatomy, type_: str, budget: Budget) -> None:
        self.anatomy, self.type, self.facts = anatomy, type_, Facts()
        self.mine, self.all = Budget(STEPS), budget
        self.known: dict[tuple[str, tuple[Value, ...]], tuple[Value, int]] = {}
        self.shapes: dict[str, _Shape] = {}

    def charge(self, steps: int) -> None:
        if not (self.mine.charge(steps) and self.all.charge(steps)):
            raise _Spent

    def call(self, function: Function, args: tuple[Value, ...], depth: int) -> tuple[Value, int]:
        """What the function returns when called with `args` in r1 to r5, and its effect on the caller's stack."""
        key = function.name, args
        if key in self.known:
            return self.known[key]
        if depth > MAX_DEPTH or not function.code:
            self.facts.complete = False
            return UNKNOWN, _OVERWRITES
        # What calls itself finds this; no kernel loads it.
        self.known[key] = UNKNOWN, _OVERWRITES
        self.known[key] = self._walk(_Call(function, depth), args)
        return self.known[key]

    def _shape(self, function: Function) -> _Shape:
        if (known := self.shapes.get(function.name)) is None:
            self.charge(len(function.flow.blocks))
            known = self.shapes[function.name] = _Shape(function)
        return known

    def _walk(self, call: _Call, args: tuple[Value, ...]) -> tuple[Value, int]:
        shape = self._shape(call.function)
        entry = [ANY, *args, ANY, ANY, ANY, ANY, frozenset(("stack",)), *(ANY for _ in range(5))]
        states: dict[int, tuple[Registers, Stack]] = {0: (entry, {})}
        waiting, queued = [(0, 0)], {0}
        while waiting:
            start = heapq.heappop(waiting)[1]
            queued.discard(start)
            before = states[start]
            state = _State(list(before[0]), before[1])
            code = shape.code[start]
            self.charge(len(code) + _BLOCK + len(state.stack) // _SLOTS)
            for one in code:
                self._step(call, one, state)
            last = code[-1]
            if KINDS[last.code] == "exit":
                self._return(call, last, state.registers[0])
                continue
            for after, changed in ways(last, shape.blocks[start].next, state.registers):
                if self._join(states, after, changed, state.stack) and after not in queued:
                    queued.add(after)
                    heapq.heappush(waiting, (shape.rank[after], after))
        return narrow(call.returned), call.effect

    def _return(self, call: _Call, one: Instruction, value: Value) -> None:
        call.returned |= value
        if call.depth == 1:
            at = call.function.name, one.slot
            self.facts.returns[at] = narrow(self.facts.returns.get(at, frozenset()) | value)

    @staticmethod
    def _join(
        states: dict[int, tuple[Registers, Stack]], start: int, registers: Registers, stack: Stack
    ) -> bool:
        known = states.get(start)
        if known is None:
            states[start] = registers, stack
            return True
        both = [a if a is b or b <= a else narrow(a | b) for a, b in zip(known[0], registers, strict=True)]
        slots = known[1] if known[1] is stack else joined(known[1], stack)
        if both == known[0] and slots is known[1]:
            return False
        states[start] = both, slots
        return True

    def _step(self, call: _Call, one: Instruction, state: _State) -> None:
        kind, registers = one.code & 7, state.registers
        if kind in (ALU, ALU64):
            registers[one.dst] = compute(one, registers)
        elif kind == LDX or (kind == STX and one.code & 0xE0 == 0xC0 and one.imm == _ACQUIRE):
            registers[one.dst] = self._load(call, one, state)
        elif kind in (ST, STX):
            self._store(call, one, state)
        elif one.code == LD_IMM64:
            registers[one.dst] = _constant(call.function, one)
        elif kind == LD:
            self.facts.packet_reads.add((call.function.name, one.slot))
            # Behind the end of the packet it ends the function.
            self._return(call, one, frozenset((0,)))
            registers[0:6] = [ANY] * 6
        elif KINDS[one.code] == "call":
            registers[0] = self._called(call, one, state)
            # Nobody can read what is left there.
            registers[1:6] = [ANY] * 5

    def _load(self, call: _Call, one: Instruction, state: _State) -> Value:
        place, width = (call.function.name, one.slot), _WIDTHS[one.code & 0x18]
        found: Value = frozenset()
        base = state.registers[one.src]
        self.charge(len(base) - 1)
        for atom in base:
            if isinstance(atom, int) or is_number(atom):
                continue
            if atom == "ctx":
                found |= field(self.type, one.off, width)
            elif atom == "stack" and one.src == 10 and one.code & 0xE0 == 0x60:
                found |= read(state.stack, one.off, width)
            elif atom == "packet":
                self.facts.packet_reads.add(place)
                found |= ANY
            elif atom == "kernel" or atom.startswith("value:"):
                if atom == "kernel":
                    self.facts.kernel_reads.add(place)
                else:
                    self.facts.touch(atom[6:], "read")
                # A map may hold pointers to objects of the kernel.
                found |= frozenset(("kernel", "any")) if width == 8 else ANY
            elif atom == "ring":
                found |= ANY
            else:
                if atom != "stack":
                    self.facts.unknown_reads.add(place)
                found |= anything(width)
        if not found:
            self.facts.unknown_reads.add(place)
        return narrow(found) or anything(width)

    def _store(self, call: _Call, one: Instruction, state: _State) -> None:
        place, width = (call.function.name, one.slot), _WIDTHS[one.code & 0x18]
        registers, base = state.registers, state.registers[one.dst]
        pointers = [atom for atom in base if isinstance(atom, str) and not is_number(atom)] or ["unknown"]
        for atom in pointers:
            if atom == "packet":
                self.facts.packet_writes.add(place)
            elif atom == "ctx":
                self.facts.context_writes[place] = one.off
            elif atom.startswith("value:"):
                self.facts.touch(atom[6:], "written")
            elif atom not in ("stack", "ring"):
                self.facts.unknown_writes.add(place)
        atomic = one.code & 0xE0 == 0xC0
        value = registers[one.src] if one.code & 7 == STX else frozenset((one.imm & MASK,))
        if one.dst == 10:
            state.stack = write(state.stack, one.off, width, None if atomic else value)
        elif "stack" in pointers or "unknown" in pointers:
            state.stack = overwritten(state.stack, UNKNOWN if atomic else value)
            call.effect = _OVERWRITES
        self.charge(len(base) - 1 + len(state.stack) * (1 if one.dst == 10 else 8) // _SLOTS)
        if atomic and one.imm & 1:
            registers[0 if one.imm & 0xF0 == 0xF0 else one.src] = anything(width)

    def _called(self, call: _Call, one: Instruction, state: _State) -> Value:
        known = call.function.references.get(one.slot)
        registers = state.registers
        # Whether it may reach a stack, and what it does there if so.
        reaches = any("stack" in value or "unknown" in value for value in registers[1:6])
        if one.src == PSEUDO_CALL:
            target = self.anatomy.functions.get(known.name) if known else None
            found, effect = UNKNOWN, _OVERWRITES
            if target is None:
                self.facts.complete = False
            else:
                found, effect = self.call(target, tuple(registers[1:6]), call.depth + 1)
        elif one.src or (known and known.kind == "extern"):
            found, effect = UNKNOWN, _SCRIBBLES
        else:
            name, place = helpers.name(one.imm), (call.function.name, one.slot)
            effect = 0 if name in WRITES_NOTHING else max(_SCRIBBLES, self._call_back(call, name, registers))
            found = called(name, registers, place, self.facts, self.anatomy.spec.maps)
        if reaches and effect:
            call.effect = max(call.effect, effect)
            state.suffer(effect)
            self.charge(len(state.stack) * 8 // _SLOTS)
        return found

    def _call_back(self, call: _Call, helper: str, registers: Registers) -> int:
        """Walk what a helper calls, now or later; returns the effect on the stack."""
        effect = 0
        for name, args in callbacks(helper, registers):
            if (target := self.anatomy.functions.get(name)) is None:
                self.facts.complete = False
            else:
                effect = max(effect, self.call(target, args, call.depth + 1)[1])
        return effect


def _constant(function: Function, one: Instruction) -> Value:
    known = function.references.get(one.slot)
    if known is None:
        return frozenset((one.imm,)) if one.src == 0 else UNKNOWN
    prefix = {"map": "map:", "data": "value:", "function": "func:"}.get(known.kind)
    return frozenset((prefix + known.name,)) if prefix else UNKNOWN
