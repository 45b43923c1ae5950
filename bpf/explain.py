"""What an object will do once it is loaded, told from the object itself; `words` makes text of it.

Each "no" follows from a walk that may think too much possible and never too little, so it can be relied on for code
that the verifier accepts; a "maybe" is what the walk could not decide. What another program does, to which this one
hands on by a tail call, is not in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

from mapek.bpf import helpers, hooks
from mapek.bpf.alu import Value
from mapek.bpf.anatomy import Anatomy, take_apart
from mapek.bpf.spec import MapSpec, ObjectSpec, ProgramSpec
from mapek.bpf.validate import map_bytes
from mapek.bpf.values import Facts, Place, follow
from mapek.errors import ObjectError

Answer = Literal["yes", "maybe", "no"]
PACKETS: Final = frozenset((*hooks.RETURNS, "sched_act", "lwt_in", "lwt_out", "lwt_xmit", "sk_skb"))


@dataclass(frozen=True, slots=True)
class Where:
    """A place in an object: function, slot of the instruction, and the source line ("" and 0 without BTF.ext)."""

    function: str
    slot: int
    file: str = ""
    line: int = 0
    text: str = ""


@dataclass(frozen=True, slots=True)
class Ability:
    """Whether a program can do something, where it does, and by which helpers."""

    answer: Answer
    where: tuple[Where, ...] = ()
    helpers: tuple[str, ...] = ()


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
    return Explanation(
        spec.path,
        hashlib.sha256(spec.raw).hexdigest(),
        spec.license,
        spec.byteorder,
        tuple(_program(one, anatomy) for one in wanted),
        tuple(_map(one) for one in spec.maps.values()),
    )


def _program(spec: ProgramSpec, anatomy: Anatomy) -> Told:
    functions = anatomy.reach(spec.name)
    facts = follow(anatomy, spec.name)
    named: dict[str, list[Place]] = {}
    for function in functions:
        for one, number in function.helpers():
            named.setdefault(helpers.name(number), []).append((function.name, one.slot))
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
        tuple(sorted(named)),
        tuple(sorted({name for one in functions for _, name in one.kfuncs()})),
        tuple(_map(one, facts.maps.get(name, ())) for name, one in maps.items() if name in mentioned),
        _returns(spec.type, facts, anatomy),
        _abilities(spec.type, facts, named, anatomy),
        tuple(sorted({name or "a map that it does not name" for name in facts.hands_on.values()})),
        tuple(one.name for one in functions if one.replaceable),
        facts.complete,
    )


def _map(one: MapSpec, uses: Iterable[str] = ()) -> MapUse:
    size = map_bytes(one, 1)
    return MapUse(
        one.name, one.type, one.key_size, one.value_size, one.max_entries, size, tuple(sorted(uses))
    )


def _where(anatomy: Anatomy, places: Iterable[Place]) -> tuple[Where, ...]:
    found: dict[tuple[str, str | int, int], Where] = {}
    for name, slot in sorted(places):
        line = anatomy.functions[name].line(slot)
        # One line of source is many instructions; the first stands for all.
        key = (name, line.file, line.number) if line else (name, slot, 0)
        at = Where(name, slot, line.file, line.number, line.text) if line else Where(name, slot)
        found.setdefault(key, at)
    return tuple(found.values())


def _returns(type_: str, facts: Facts, anatomy: Anatomy) -> tuple[Return, ...]:
    found: dict[str, list[Place]] = {}
    for place, value in facts.returns.items():
        for atom in value:
            found.setdefault(_said(type_, atom), []).append(place)
    if not facts.complete:
        found.setdefault("any value", [])
    return tuple(Return(name, _where(anatomy, found[name])) for name in sorted(found))


def _said(type_: str, atom: int | str) -> str:
    if isinstance(atom, int):
        return hooks.verdict(type_, atom)
    return f"what {atom[7:]} says" if atom.startswith("helper:") else "any value"


def _abilities(
    type_: str, facts: Facts, named: dict[str, list[Place]], anatomy: Anatomy
) -> dict[str, Ability]:
    def ability(
        sure: Iterable[Place] = (), maybe: Iterable[Place] = (), effect: str = "", *, walked: bool = True
    ) -> Ability:
        used = tuple(sorted(helpers.EFFECTS[effect] & named.keys())) if effect else ()
        places = {*sure, *(place for name in used for place in named[name])}
        open_ = set(maybe)
        answer: Answer = "yes" if places else "maybe" if open_ or (walked and not facts.complete) else "no"
        return Ability(answer, _where(anatomy, places or open_), used)

    found = {}
    if type_ in PACKETS:
        found["drop packets"] = ability(*_returning(facts, lambda value: hooks.drops(type_, value)))
        found["send packets back or elsewhere"] = ability(
            *_returning(facts, lambda value: hooks.sends(type_, value)), "redirects packets"
        )
        found["read packets"] = ability(facts.packet_reads)
        found["change packets"] = ability(facts.packet_writes, facts.unknown_writes, "changes packets")
        found["change what the kernel knows of a packet"] = ability(facts.context_writes)
    if type_ == "lsm" or any(
        place for place in facts.returns if type_ == "tracing" and _denies(anatomy, place)
    ):
        found["deny what a process asks for"] = ability(
            (place for place, value in facts.returns.items() if any(isinstance(a, int) and a for a in value)),
            (place for place, value in facts.returns.items() if any(isinstance(a, str) for a in value)),
        )
    found["read user memory"] = ability(effect="reads user memory", walked=False)
    found["read kernel memory"] = ability(facts.kernel_reads, (), "reads kernel memory")
    found["write user memory"] = ability(effect="writes user memory", walked=False)
    found["kill or signal processes"] = ability(effect="kills processes", walked=False)
    found["make kernel functions fail"] = ability(effect="makes kernel functions fail", walked=False)
    found["change sockets"] = ability(effect="changes sockets", walked=False)
    found["make BPF system calls"] = ability(effect="makes BPF system calls", walked=False)
    found["send to user space"] = ability(effect="sends to user space", walked=False)
    return found


def _denies(anatomy: Anatomy, place: Place) -> bool:
    return anatomy.functions[place[0]].section.removeprefix("?").startswith("fmod_ret")


def _returning(facts: Facts, test: Callable[[int], bool]) -> tuple[list[Place], list[Place]]:
    """Where a value that passes the test is returned surely, and where it may be among others."""
    return (
        [place for place, value in facts.returns.items() if _any(value, test)],
        [place for place, value in facts.returns.items() if any(isinstance(a, str) for a in value)],
    )


def _any(value: Value, test: Callable[[int], bool]) -> bool:
    return any(isinstance(atom, int) and test(atom) for atom in value)
