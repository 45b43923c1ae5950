"""What an object will do once it is loaded, told from the object itself; `words` makes text of it.

Each "no" follows from a walk that may think too much possible and never too little, so it can be relied on for code
that the verifier accepts; a "maybe" is what the walk could not decide. What another program does, to which this one
hands on by a tail call or which it loads by sys_bpf, is not in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mapek.bpf import helpers, hooks
from mapek.bpf.abilities import Ability, Where, abilities, where
from mapek.bpf.anatomy import Anatomy, Function, take_apart
from mapek.bpf.facts import Facts, Place
from mapek.bpf.spec import MapSpec, ObjectSpec, ProgramSpec
from mapek.bpf.validate import map_bytes
from mapek.bpf.values import Budget, follow
from mapek.errors import ObjectError

MOST_PARTS: Final = 60_000
"""Calls, references and basic blocks of all programs with what they call; ours have at most some thousands."""

NAMELESS: Final = "a function without a name"
_THROWS: Final = {"bpf_throw", NAMELESS}


@dataclass(frozen=True, slots=True)
class MapUse:
    """A map and its size: `bytes` when it is full, on one CPU. `uses` is what this program does with it, in words."""

    name: str
    type: str
    key_size: int
    value_size: int
    max_entries: int
    bytes: int
    uses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Return:
    """One value that a program can return: its name, "any value" or "what HELPER says"; and where."""

    value: str
    where: tuple[Where, ...]


@dataclass(frozen=True, slots=True)
class Told:
    """One program.

    Args:
        runs: when, as a phrase.
        slots: its length with all that it calls, in eight-byte instructions.
        longest: instructions on the longest way through; each of the `loops` is gone round once.
        can: answers by what is asked: "drop packets", "redirect packets", "change packets", "read user memory", ...
        hands_on: maps of programs that it may hand on to by a tail call.
        replaceable: functions of it that another program may take the place of, and do otherwise (freplace).
        complete: the walk saw all; else every "no" that depends on it is a "maybe".
    """

    name: str
    type: str
    section: str
    source: str
    runs: str
    slots: int
    longest: int
    loops: int
    functions: tuple[str, ...]
    helpers: tuple[str, ...]
    kfuncs: tuple[str, ...]
    maps: tuple[MapUse, ...]
    returns: tuple[Return, ...]
    can: dict[str, Ability]
    hands_on: tuple[str, ...]
    replaceable: tuple[str, ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """One object."""

    path: str
    sha256: str
    license: str
    byteorder: str
    programs: tuple[Told, ...]
    maps: tuple[MapUse, ...]


def explain(spec: ObjectSpec, anatomy: Anatomy | None = None, program: str = "") -> Explanation:
    """Tell what an object does. Raises ObjectError where its code cannot be taken apart, or has no such `program`.

    Args:
        anatomy: of `spec`, if it is there already.
        program: only this one.
    """
    anatomy = anatomy or take_apart(spec)
    if program and program not in spec.programs:
        why = f"it has no program {program!r}"
        raise ObjectError("explain", spec.path, why, f"it has {', '.join(spec.programs) or 'none'}")
    wanted = [one for one in spec.programs.values() if program in ("", one.name)]
    parts, budget = MOST_PARTS, Budget()
    order = {name: place for place, name in enumerate(spec.maps)}
    reached: dict[str, list[Function]] = {}
    for one in wanted:
        reached[one.name], parts = _reach(anatomy, one.name, parts)
        if parts < 0:
            why = f"its programs have more than {MOST_PARTS} calls, references and basic blocks"
            raise ObjectError("explain", spec.path, why, "take one with --program, if it has several")
    return Explanation(
        spec.path,
        hashlib.sha256(spec.raw).hexdigest(),
        spec.license,
        spec.byteorder,
        tuple(_program(one, anatomy, reached[one.name], order, budget) for one in wanted),
        tuple(_map(one) for one in spec.maps.values()),
    )


def _reach(anatomy: Anatomy, program: str, parts: int) -> tuple[list[Function], int]:
    """A program and what it may call, and how many of the `parts` are left, less than none if they do not suffice."""
    waiting, found = [program], dict[str, Function]()
    while waiting and parts >= 0:
        name = waiting.pop()
        if name in found or name not in anatomy.functions:
            continue
        function = found[name] = anatomy.functions[name]
        parts -= 1 + len(function.references) + len(function.all_calls) + len(function.flow.blocks)
        waiting.extend(function.calls())
    return list(found.values()), parts


def _program(
    spec: ProgramSpec,
    anatomy: Anatomy,
    functions: Sequence[Function],
    order: Mapping[str, int],
    budget: Budget,
) -> Told:
    facts = follow(anatomy, spec.name, budget)
    named: dict[str, list[Place]] = {}
    strange: dict[str, list[Place]] = {}
    for function in functions:
        for one, number in function.helpers():
            name = helpers.name(number)
            known = 0 < number < len(helpers.NAMES)
            (named if known else strange).setdefault(name, []).append((function.name, one.slot))
        for one, name in function.kfuncs():
            strange.setdefault(name or NAMELESS, []).append((function.name, one.slot))
    mentioned = {
        known.name for one in functions for known in one.references.values() if known.kind in ("map", "data")
    }
    maps = anatomy.spec.maps
    first = anatomy.functions[spec.name].line(0)
    return Told(
        spec.name,
        spec.type,
        spec.section,
        f"{first.file}:{first.number}" if first else "",
        hooks.runs(spec),
        sum(one.slots for one in functions),
        anatomy.longest(spec.name),
        sum(len(one.flow.back_edges) for one in functions),
        tuple(one.name for one in functions[1:]),
        tuple(sorted({helpers.name(number) for one in functions for _, number in one.helpers()})),
        tuple(sorted({name for one in functions for _, name in one.kfuncs()})),
        tuple(
            _map(maps[name], facts.maps.get(name, ()))
            for name in sorted(mentioned & order.keys(), key=order.__getitem__)
        ),
        _returns(spec.type, facts, strange, anatomy),
        abilities(spec, anatomy, facts, named, strange),
        tuple(sorted({name or "a map that it does not name" for name in facts.hands_on.values()})),
        tuple(one.name for one in functions if one.replaceable),
        facts.complete,
    )


def _map(one: MapSpec, uses: Iterable[str] = ()) -> MapUse:
    size = map_bytes(one, 1)
    return MapUse(
        one.name, one.type, one.key_size, one.value_size, one.max_entries, size, tuple(sorted(uses))
    )


def _returns(
    type_: str, facts: Facts, strange: Mapping[str, Sequence[Place]], anatomy: Anatomy
) -> tuple[Return, ...]:
    found: dict[str, list[Place]] = {}
    for place, value in facts.returns.items():
        for atom in value:
            found.setdefault(_said(type_, atom), []).append(place)
    # What it throws takes the place of what it returns.
    for name in _THROWS & strange.keys():
        found.setdefault("any value", []).extend(strange[name])
    if not facts.complete:
        found.setdefault("any value", [])
    return tuple(Return(name, where(anatomy, found[name])) for name in sorted(found))


def _said(type_: str, atom: int | str) -> str:
    if isinstance(atom, int):
        return hooks.verdict(type_, atom)
    return f"what {atom[7:]} says" if atom.startswith("helper:") else "any value"
