"""What registers may hold: a walk over a program that follows constants and the origin of pointers.

It answers what `explain` asks: which values a program can return, and what it writes to. A register holds a set of
atoms, numbers and origins; where ways meet, sets are joined, so the answer may be too large and never too small for
code that the verifier accepts. The walk is bounded: past its budget everything is possible, and `complete` says so.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from mapek.bpf import helpers
from mapek.bpf.alu import ANY, MASK, Value, compute, narrow
from mapek.bpf.anatomy import MAX_DEPTH, Anatomy, Function
from mapek.bpf.branches import ways
from mapek.bpf.instructions import ALU, ALU64, KINDS, LD, LD_IMM64, LDX, PSEUDO_CALL, ST, STX, Instruction

STEPS: Final = 120_000
"""Instructions that one walk looks at; ours take at most a tenth of it."""

_DATA: Final = {
    "xdp": {0: "packet", 4: "packet", 8: "packet"},
    "skb": {76: "packet", 80: "packet", 140: "packet"},
}
_SKB: Final = frozenset("sched_cls sched_act cgroup_skb socket_filter lwt_in lwt_out lwt_xmit sk_skb".split())
_KERNEL: Final = frozenset("tracing lsm struct_ops".split())
_WIDTHS: Final = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}
_REDIRECTS: Final = helpers.EFFECTS["redirects packets"]
_LOOKUPS: Final = frozenset(
    "map_lookup_elem map_lookup_percpu_elem sk_storage_get task_storage_get inode_storage_get cgrp_storage_get".split()
)
_READS_PACKET: Final = frozenset("skb_load_bytes skb_load_bytes_relative xdp_load_bytes csum_diff".split())
_MAP_ACCESS: Final = {
    "map_lookup_elem": "looked up", "map_lookup_percpu_elem": "looked up", "map_peek_elem": "looked up",
    "map_update_elem": "updated", "map_push_elem": "updated", "map_pop_elem": "updated",
    "map_delete_elem": "deleted from", "for_each_map_elem": "walked", "ringbuf_reserve": "sent to user space",
    "ringbuf_output": "sent to user space", "ringbuf_query": "asked for its fill",
    "redirect_map": "redirected by", "sk_storage_get": "updated", "task_storage_get": "updated",
    "user_ringbuf_drain": "received from user space",
}  # fmt: skip

Place = tuple[str, int]
"""A function and a slot in it."""

Registers = list[Value]
Stack = dict[tuple[int, int], Value]


@dataclass
class Facts:
    """What a program can do.

    Args:
        returns: what it can return and where, "any" for what it computes and "helper:NAME" for what a helper says.
        packet_writes, packet_reads: places that access packet data directly. context_writes: with the byte offset.
        kernel_reads: places that follow pointers of the kernel. unknown_writes: places that write where the walk
            cannot tell.
        maps: what is done to each map. hands_on: tail calls with their map, "" where it is not known.
        complete: nothing was left out for the lack of budget.
    """

    returns: dict[Place, Value] = field(default_factory=dict)
    packet_writes: set[Place] = field(default_factory=set)
    packet_reads: set[Place] = field(default_factory=set)
    context_writes: dict[Place, int] = field(default_factory=dict)
    kernel_reads: set[Place] = field(default_factory=set)
    unknown_writes: set[Place] = field(default_factory=set)
    maps: dict[str, set[str]] = field(default_factory=dict)
    hands_on: dict[Place, str] = field(default_factory=dict)
    complete: bool = True


def follow(anatomy: Anatomy, program: str) -> Facts:
    """Walk one program from its context to its returns."""
    walk = _Walk(anatomy, anatomy.spec.programs[program].type)
    walk.call(anatomy.functions[program], (frozenset(("ctx",)), ANY, ANY, ANY, ANY), 1)
    return walk.facts


class _Walk:
    def __init__(self, anatomy: Anatomy, type_: str) -> None:
        self.anatomy, self.type, self.facts = anatomy, type_, Facts()
        self.fields: Mapping[int, str] = _DATA.get("skb" if type_ in _SKB else type_, {})
        self.left = STEPS
        self.known: dict[tuple[str, tuple[Value, ...]], Value] = {}

    def call(self, function: Function, args: tuple[Value, ...], depth: int) -> Value:
        """What the function returns when called with `args` in r1 to r5."""
        key = function.name, args
        if key in self.known:
            return self.known[key]
        if depth > MAX_DEPTH or not function.code:
            self.facts.complete = False
            return ANY
        # What calls itself finds this; no kernel loads it.
        self.known[key] = ANY
        self.known[key] = self._walk(function, args, depth)
        return self.known[key]

    def _walk(self, function: Function, args: tuple[Value, ...], depth: int) -> Value:
        flow = function.flow
        rank = {start: place for place, start in enumerate(reversed(flow.order))}
        code = dict(_slices(function))
        blocks = {block.start: block for block in flow.blocks}
        entry = [ANY, *args, ANY, ANY, ANY, ANY, frozenset(("stack",)), *(ANY for _ in range(5))]
        states: dict[int, tuple[Registers, Stack]] = {0: (entry, {})}
        waiting, queued = [(0, 0)], {0}
        returned: Value = frozenset()
        while waiting:
            start = heapq.heappop(waiting)[1]
            queued.discard(start)
            before = states[start]
            registers, stack = list(before[0]), dict(before[1])
            self.left -= len(code[start])
            if self.left < 0:
                self.facts.complete = False
                return ANY
            for one in code[start]:
                self._step(function, one, registers, stack, depth)
            last = code[start][-1]
            if KINDS[last.code] == "exit":
                returned |= registers[0]
                if depth == 1:
                    at = function.name, last.slot
                    self.facts.returns[at] = narrow(self.facts.returns.get(at, frozenset()) | registers[0])
                continue
            for after, changed in ways(last, blocks[start].next, registers):
                if self._join(states, after, changed, stack) and after not in queued:
                    queued.add(after)
                    heapq.heappush(waiting, (rank[after], after))
        return narrow(returned)

    @staticmethod
    def _join(
        states: dict[int, tuple[Registers, Stack]], start: int, registers: Registers, stack: Stack
    ) -> bool:
        known = states.get(start)
        if known is None:
            states[start] = registers, stack
            return True
        joined = [a if a is b or b <= a else narrow(a | b) for a, b in zip(known[0], registers, strict=True)]
        slots = {key: narrow(value | stack[key]) for key, value in known[1].items() if key in stack}
        if joined == known[0] and slots == known[1]:
            return False
        states[start] = joined, slots
        return True

    def _step(
        self, function: Function, one: Instruction, registers: Registers, stack: Stack, depth: int
    ) -> None:
        kind = one.code & 7
        if kind in (ALU, ALU64):
            registers[one.dst] = compute(one, registers)
        elif kind == LDX:
            registers[one.dst] = self._load(function, one, registers[one.src], stack)
        elif kind in (ST, STX):
            self._store(function, one, registers, stack)
        elif one.code == LD_IMM64:
            registers[one.dst] = _constant(function, one)
        elif kind == LD:
            self.facts.packet_reads.add((function.name, one.slot))
            registers[0:6] = [ANY] * 6
        elif KINDS[one.code] == "call":
            registers[0] = self._called(function, one, registers, depth)
            registers[1:6] = [ANY] * 5

    def _load(self, function: Function, one: Instruction, base: Value, stack: Stack) -> Value:
        found: set[int | str] = set()
        width = _WIDTHS[one.code & 0x18]
        for atom in base:
            if atom == "ctx":
                kernel = self.type in _KERNEL and width == 8
                found.add(self.fields.get(one.off, "kernel" if kernel else "any"))
                continue
            if atom == "stack" and one.src == 10:
                found |= stack.get((one.off, width), ANY) if one.code & 0xE0 == 0x60 else ANY
                continue
            if atom == "packet":
                self.facts.packet_reads.add((function.name, one.slot))
            elif atom == "kernel":
                self.facts.kernel_reads.add((function.name, one.slot))
                found.add("kernel")
            elif isinstance(atom, str) and atom.startswith("value:"):
                self._touch(atom[6:], "read")
            found.add("any")
        return narrow(frozenset(found)) if found else ANY

    def _store(self, function: Function, one: Instruction, registers: Registers, stack: Stack) -> None:
        place, width = (function.name, one.slot), _WIDTHS[one.code & 0x18]
        atomic = one.code & 0xE0 == 0xC0
        for atom in registers[one.dst]:
            if atom == "packet":
                self.facts.packet_writes.add(place)
            elif atom == "ctx":
                self.facts.context_writes[place] = one.off
            elif isinstance(atom, str) and atom.startswith("value:"):
                self._touch(atom[6:], "written")
            elif atom not in ("stack", "ring", 0):
                self.facts.unknown_writes.add(place)
        if one.dst == 10:
            for at, size in [key for key in stack if key[0] < one.off + width and one.off < key[0] + key[1]]:
                del stack[at, size]
            if not atomic:
                value = registers[one.src] if one.code & 7 == STX else frozenset((one.imm & MASK,))
                stack[one.off, width] = value
        if atomic and one.imm & 1:
            registers[0 if one.imm & 0xF0 == 0xF0 else one.src] = ANY

    def _called(self, function: Function, one: Instruction, registers: Registers, depth: int) -> Value:
        known = function.references.get(one.slot)
        if one.src == PSEUDO_CALL:
            target = self.anatomy.functions.get(known.name) if known else None
            return self.call(target, tuple(registers[1:6]), depth + 1) if target else ANY
        if one.src or (known and known.kind == "extern"):
            return ANY
        name, place = helpers.name(one.imm), (function.name, one.slot)
        if name in _READS_PACKET:
            self.facts.packet_reads.add(place)
        self._call_back(name, registers, depth)
        if name == "tail_call":
            targets = [atom[4:] for atom in registers[2] if isinstance(atom, str) and atom.startswith("map:")]
            self.facts.hands_on[place] = targets[0] if len(targets) == 1 else ""
            for program_array in targets:
                self._touch(program_array, "handed on to")
            return ANY
        self._given(name, registers, place)
        used = [
            atom[4:]
            for register in registers[1:3]
            for atom in register
            if isinstance(atom, str) and atom.startswith("map:")
        ]
        for used_map in used:
            self._touch(used_map, _MAP_ACCESS.get(name, f"used by {name}"))
        if name in _LOOKUPS and used:
            return frozenset((0, *(f"value:{one_map}" for one_map in used)))
        if name == "ringbuf_reserve":
            return frozenset((0, "ring"))
        if name in _REDIRECTS:
            # The lowest bits of a map redirect's flags are what it returns when there is nothing in the map.
            otherwise = {a & 3 for a in registers[3] if isinstance(a, int)} if name == "redirect_map" else ()
            return frozenset((f"helper:{name}", *otherwise))
        return frozenset(("kernel",)) if name == "get_current_task_btf" else ANY

    def _given(self, helper: str, registers: Registers, place: Place) -> None:
        """Memory that a helper is given: of a map it may be written, of a packet only read (`pkt_access`)."""
        for atom in (atom for register in registers[1:6] for atom in register):
            if atom == "packet":
                self.facts.packet_reads.add(place)
            elif isinstance(atom, str) and atom.startswith("value:"):
                self._touch(atom[6:], f"given to {helper}")

    def _call_back(self, helper: str, registers: Registers, depth: int) -> None:
        """Functions that a helper calls, now or later, with what it gives them."""
        for atom in (atom for register in registers[1:5] for atom in register):
            if not isinstance(atom, str) or not atom.startswith("func:"):
                continue
            values = frozenset(
                f"value:{a[4:]}" for a in registers[1] if isinstance(a, str) and a[:4] == "map:"
            )
            args: dict[str, Sequence[Value]] = {
                "loop": (ANY, registers[3]),
                "for_each_map_elem": (registers[1], frozenset(("stack",)), values or ANY, registers[3]),
                "timer_set_callback": (ANY, frozenset(("stack",)), registers[1]),
                "user_ringbuf_drain": (frozenset(("ring",)), registers[3]),
            }
            given = tuple(args.get(helper, ()))
            target = self.anatomy.functions.get(atom[5:])
            if target is not None:
                self.call(target, given + (ANY,) * (5 - len(given)), depth + 1)

    def _touch(self, name: str, how: str) -> None:
        self.facts.maps.setdefault(name, set()).add(how)


def _constant(function: Function, one: Instruction) -> Value:
    known = function.references.get(one.slot)
    if known is None:
        return frozenset((one.imm,)) if one.src == 0 else ANY
    prefix = {"map": "map:", "data": "value:", "function": "func:"}.get(known.kind)
    return frozenset((prefix + known.name,)) if prefix else ANY


def _slices(function: Function) -> list[tuple[int, Sequence[Instruction]]]:
    found: list[tuple[int, Sequence[Instruction]]] = []
    at = 0
    for block in function.flow.blocks:
        found.append((block.start, function.code[at : at + block.count]))
        at += block.count
    return found
