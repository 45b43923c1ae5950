"""Takes an object apart into functions: their instructions, what each refers to, and which call which.

Between parsing and judging: `validate` and `explain` read this and nothing of ELF. No kernel is asked.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from mapek.bpf import btf_ext
from mapek.bpf import elf as elf_module
from mapek.bpf.btf_ext import BtfExt, CoreRelocation, Line, Lines
from mapek.bpf.elf import Elf, Section, Symbol, bad
from mapek.bpf.flow import Flow, walk
from mapek.bpf.instructions import (
    KINDS,
    LD_IMM64,
    PSEUDO_CALL,
    PSEUDO_FUNC,
    PSEUDO_KFUNC_CALL,
    Instruction,
    decode,
)
from mapek.bpf.spec import ObjectSpec

MAX_CODE: Final = 1 << 16
"""Instructions of a whole object, ten times those of large ones: so many are judged within a second."""

MAX_LOADED: Final = 1 << 17
"""Instructions of all programs, each with its own copy of what it calls, as libbpf makes them."""

MAX_FUNCTIONS: Final = 1 << 12

MAX_DEPTH: Final = 8
"""Calls within calls that the kernel allows."""

# More than any length, as functions that call the next one twice would have; no kernel loads that.
_ENDLESS: Final = 1 << 60
_DATA: Final = (".rodata", ".data", ".bss")


@dataclass(frozen=True, slots=True)
class Reference:
    """What an instruction refers to by name: a map, a global variable's section, a function of the object, or
    something of the kernel (`extern`)."""

    kind: Literal["map", "data", "function", "extern"]
    name: str


@dataclass(frozen=True)
class Function:
    """One function: a program if it has a section of its own kind, else one that programs call.

    Args:
        start: byte offset in its section.
        references: by slot.
        lines: source lines of its section, empty without BTF.ext.
        replaceable: it is global and no program itself: another program (freplace) may take its place later.
    """

    name: str
    section: str
    start: int
    code: tuple[Instruction, ...]
    references: Mapping[int, Reference]
    lines: Lines = field(default_factory=Lines)
    relocations: tuple[CoreRelocation, ...] = ()
    replaceable: bool = False

    @functools.cached_property
    def flow(self) -> Flow:
        """How control flows through it."""
        return walk(self.code)

    @property
    def slots(self) -> int:
        """Its length in slots of eight bytes, which is what bpftool and the kernel count."""
        return self.code[-1].slot + self.code[-1].slots if self.code else 0

    def line(self, slot: int) -> Line | None:
        """The source line of an instruction: the last one that begins at or before it."""
        return self.lines.at(self.start + slot * 8, self.start)

    @functools.cached_property
    def all_calls(self) -> tuple[Instruction, ...]:
        """Every call instruction: of helpers, functions of the object and functions of the kernel."""
        return tuple(one for one in self.code if KINDS[one.code] == "call")

    def helpers(self) -> Iterator[tuple[Instruction, int]]:
        """Calls of helpers: the instruction and the helper's number."""
        for one in self.all_calls:
            # A helper that the linker fills in (`extern`) has its number still to come; no compiler makes that.
            if one.src not in (PSEUDO_CALL, PSEUDO_KFUNC_CALL):
                yield one, one.imm

    def kfuncs(self) -> Iterator[tuple[Instruction, str]]:
        """Calls into the kernel by name; "" where the object does not say it."""
        for one in self.all_calls:
            known = self.references.get(one.slot)
            if one.src == PSEUDO_KFUNC_CALL or (known and known.kind == "extern"):
                yield one, known.name if known else ""

    def calls(self) -> Iterator[str]:
        """Functions of the object that it calls or hands on as callbacks, in order of appearance."""
        for known in self.references.values():
            if known.kind == "function":
                yield known.name

    def nested(self) -> Iterator[str]:
        """Of these the ones that it calls itself. What it hands on is called later, or by a helper."""
        for one in self.all_calls:
            known = self.references.get(one.slot)
            if one.src == PSEUDO_CALL and known is not None and known.kind == "function":
                yield known.name


@dataclass(frozen=True)
class Anatomy:
    """An object's functions by name."""

    spec: ObjectSpec
    functions: Mapping[str, Function]
    _reached: dict[str, tuple[Function, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def reach(self, program: str) -> tuple[Function, ...]:
        """A program and every function that it may call, each once, the program first."""
        if program in self._reached:
            return self._reached[program]
        wanted, found = [program], dict[str, Function]()
        while wanted:
            name = wanted.pop()
            if name in found or name not in self.functions:
                continue
            found[name] = self.functions[name]
            wanted.extend(found[name].calls())
        self._reached[program] = tuple(found.values())
        return self._reached[program]

    def longest(self, program: str) -> int:
        """Instructions on the longest way through a program, with those of the functions that it calls.

        Each loop is gone round once, also that of functions that call each other. What helpers call back (bpf_loop)
        counts once.
        """
        return self._longest.get(program, 0)

    @functools.cached_property
    def _longest(self) -> Mapping[str, int]:
        done: dict[str, int] = {}
        for name in _callees_first(self.functions, Function.calls):
            function = self.functions[name]
            extra = {
                slot: done.get(known.name, 0)
                for slot, known in function.references.items()
                if known.kind == "function"
            }
            done[name] = min(function.flow.longest(extra), _ENDLESS)
        return done

    def depth(self, program: str) -> int:
        """How deep calls go, the program counted; more than MAX_DEPTH, not exactly said, also for recursion.

        What is handed on starts anew: a timer's function may set the timer again. The kernel counts those that a helper
        calls at once (bpf_loop) as calls, which this does not know from the others.
        """
        return max((self._depths[one.name] for one in self.reach(program)), default=0)

    @functools.cached_property
    def _depths(self) -> Mapping[str, int]:
        done: dict[str, int] = {}
        for name in _callees_first(self.functions, Function.nested):
            # Whoever is not done calls this one, so that it goes on for ever.
            below = (
                done.get(called, MAX_DEPTH)
                for called in self.functions[name].nested()
                if called in self.functions
            )
            done[name] = 1 + max(below, default=0)
        return done


def _callees_first(
    functions: Mapping[str, Function], calls: Callable[[Function], Iterable[str]]
) -> Iterator[str]:
    """Names of functions, each after those that it calls but for those that call it themselves."""
    seen: set[str] = set()
    for root in functions:
        stack = [(root, iter(calls(functions[root])))] if root not in seen else []
        seen.add(root)
        while stack:
            name, onward = stack[-1]
            after = next((one for one in onward if one in functions and one not in seen), None)
            if after is None:
                stack.pop()
                yield name
            else:
                seen.add(after)
                stack.append((after, iter(calls(functions[after]))))


def take_apart(spec: ObjectSpec) -> Anatomy:
    """The anatomy of a parsed object. Raises ObjectError where code or relocations are not sound."""
    elf = spec.elf
    ext = _ext(elf, spec.path)
    places = [(section, symbol) for section in elf.sections for symbol in _functions(elf, section, spec.path)]
    if sum(symbol.size for _, symbol in places) > MAX_CODE * 8:
        raise bad(spec.path, f"more than {MAX_CODE} instructions")
    if len(places) > MAX_FUNCTIONS:
        raise bad(spec.path, f"more than {MAX_FUNCTIONS} functions")
    by_place = {(section.name, symbol.value): symbol.name for section, symbol in places}
    sections = {section.index: section for section, _ in places}
    filled = {
        index: {one.offset: one.symbol for one in elf.relocations(section, spec.path)}
        for index, section in sections.items()
    }
    cores = {name: sorted(rows, key=lambda one: one.offset) for name, rows in ext.relocations.items()}
    found: dict[str, Function] = {}
    for section, symbol in places:
        if symbol.name in found:
            raise bad(spec.path, f"two functions are called {symbol.name!r}")
        code = decode(section.data[symbol.value : symbol.value + symbol.size], elf.byteorder, spec.path)
        references = dict(_references(spec, elf, section, symbol, code, by_place, filled[section.index]))
        last = symbol.value + symbol.size
        rows = cores.get(section.name, [])
        begin, end = (bisect_left(rows, at, key=lambda one: one.offset) for at in (symbol.value, last))
        found[symbol.name] = Function(
            symbol.name,
            section.name,
            symbol.value,
            code,
            references,
            ext.lines.get(section.name, Lines()),
            tuple(rows[begin:end]),
            symbol.bind != elf_module.STB_LOCAL and symbol.name not in spec.programs,
        )
    if lost := sorted(spec.programs.keys() - found.keys()):
        raise bad(spec.path, f"program {lost[0]!r} lies in a section that holds no code")
    anatomy, loaded = Anatomy(spec, found), 0
    for name in spec.programs:
        loaded += sum(one.slots for one in anatomy.reach(name))
        if loaded > MAX_LOADED:
            raise bad(spec.path, f"its programs with what they call have more than {MAX_LOADED} instructions")
    return anatomy


def _ext(elf: Elf, on: str) -> BtfExt:
    section, btf = elf.section(".BTF.ext"), elf.section(".BTF")
    if section is None or btf is None:
        return BtfExt({}, {})
    order = elf.byteorder
    header = int.from_bytes(btf.data[4:8], order)
    start, length = (int.from_bytes(btf.data[i : i + 4], order) for i in (16, 20))
    return btf_ext.parse(section.data, btf.data[header + start : header + start + length], order, on)


def _functions(elf: Elf, section: Section, on: str) -> Iterator[Symbol]:
    if not section.flags & elf_module.SHF_EXECINSTR or section.type != elf_module.SHT_PROGBITS:
        return
    end = 0
    symbols = [one for one in elf.by_section.get(section.index, ()) if one.kind == elf_module.STT_FUNC]
    for symbol in sorted(symbols, key=lambda s: s.value):
        if symbol.value + symbol.size > len(section.data) or symbol.value % 8 or symbol.size % 8:
            raise bad(on, f"function {symbol.name!r} does not lie in its section")
        if not symbol.size or symbol.value < end:
            raise bad(on, f"function {symbol.name!r} is empty or overlaps another")
        end = symbol.value + symbol.size
        yield symbol


def _references(
    spec: ObjectSpec,
    elf: Elf,
    section: Section,
    symbol: Symbol,
    code: tuple[Instruction, ...],
    by_place: Mapping[tuple[str, int], str],
    relocations: Mapping[int, Symbol],
) -> Iterator[tuple[int, Reference]]:
    for one in code:
        if one.code != LD_IMM64 and KINDS[one.code] != "call":
            continue
        target = relocations.get(symbol.value + one.slot * 8)
        call = one.kind == "call" and one.src == PSEUDO_CALL
        if target is None:
            if call:
                # Within one section the assembler fills the distance in itself.
                place = section.name, symbol.value + (one.slot + 1 + one.imm) * 8
                yield one.slot, Reference("function", _at(by_place, place, spec.path))
        elif 0 < target.section < len(elf.sections):
            where = elf.sections[target.section]
            code_there = bool(where.flags & elf_module.SHF_EXECINSTR)
            if call or (one.code == LD_IMM64 and (one.src == PSEUDO_FUNC or code_there)):
                distance = (one.imm + 1) * 8 if call else one.imm
                if target.kind == elf_module.STT_FUNC and not call:
                    distance = 0
                place = where.name, target.value + distance
                yield one.slot, Reference("function", _at(by_place, place, spec.path))
            elif target.name in spec.maps and where.name == ".maps":
                yield one.slot, Reference("map", target.name)
            elif where.name.startswith(_DATA):
                yield one.slot, Reference("data", where.name)
        else:
            yield one.slot, Reference("extern", target.name)


def _at(by_place: Mapping[tuple[str, int], str], place: tuple[str, int], on: str) -> str:
    try:
        return by_place[place]
    except KeyError:
        raise bad(on, f"a call goes to {place[0]}+{place[1]}, where no function begins") from None
