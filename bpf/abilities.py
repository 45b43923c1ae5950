"""Whether a program can do something: answers made of what the walk found and of which helpers it calls.

A "no" has to be true whatever the program does, so whatever is not known speaks against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from mapek.bpf import helpers, hooks
from mapek.bpf.alu import Value
from mapek.bpf.anatomy import Anatomy
from mapek.bpf.facts import Facts, Place
from mapek.bpf.spec import ProgramSpec

Answer = Literal["yes", "maybe", "no"]

# A flag says which stack. Of those that read either, the address or the format decides, and is not looked at.
_EITHER: Final = helpers.READ_EITHER | frozenset("get_stack get_stackid get_task_stack".split())
_PRINTS_RECORDS: Final = frozenset("snprintf_btf seq_printf_btf".split())

# They put headers in front of it, or other addresses into it.
_ENCAPSULATES: Final = frozenset("lwt_push_encap lwt_seg6_action redirect_neigh".split())
# What is put into one of these is a socket, which then works in another way. What nests shows not what is in it.
_HOLD_SOCKETS: Final = ("sockmap", "sockhash", "array_of_maps", "hash_of_maps")
_UPDATES: Final = frozenset("map_update_elem map_delete_elem".split())


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
    """Whether a program can do something, where it does, and by which helpers or functions of the kernel."""

    answer: Answer
    where: tuple[Where, ...] = ()
    helpers: tuple[str, ...] = ()


def abilities(
    program: ProgramSpec,
    anatomy: Anatomy,
    facts: Facts,
    named: Mapping[str, Sequence[Place]],
    strange: Mapping[str, Sequence[Place]],
) -> dict[str, Ability]:
    """Answers by what is asked.

    Args:
        named: where each helper is called. strange: where what is called of which nobody here knows what it does;
            with one of these nothing is impossible.
    """
    type_ = program.type

    def ability(
        sure: Iterable[Place] = (),
        maybe: Iterable[Place] = (),
        effect: str = "",
        may: frozenset[str] = frozenset(),
        *,
        walked: bool = True,
    ) -> Ability:
        used = tuple(sorted((helpers.EFFECTS[effect] - may) & named.keys())) if effect else ()
        places = {*sure, *(place for name in used for place in named[name])}
        if places:
            return Ability("yes", where(anatomy, places), used)
        by = (*sorted(may & named.keys()), *sorted(strange))
        open_ = {*maybe, *(place for name in by for place in (*named.get(name, ()), *strange.get(name, ())))}
        unsure = open_ or (walked and not facts.complete)
        return Ability("maybe" if unsure else "no", where(anatomy, open_), by)

    found = {}
    if type_ in hooks.PACKETS:
        sure, maybe = _returning(facts, lambda value: hooks.drops(type_, value))
        failing, _ = _returning(facts, lambda value: hooks.may_drop(type_, value))
        found["drop packets"] = ability(sure, (*maybe, *failing))
        found["send packets back or elsewhere"] = ability(
            *_returning(facts, lambda value: hooks.sends(type_, value)), "redirects packets"
        )
        found["read packets"] = ability(facts.packet_reads, facts.unknown_reads | facts.unknown_given)
        found["change packets"] = ability(
            facts.packet_writes, facts.unknown_writes, "changes packets", _ENCAPSULATES
        )
        found["change what the kernel knows of a packet"] = ability(
            facts.context_writes, facts.unknown_writes
        )
    section = program.section.removeprefix("?")
    if type_ == "lsm" or section.startswith("fmod_ret"):
        # Of a control group's 0 is the one that denies, elsewhere the one that does not.
        denies = 0 if section.startswith("lsm_cgroup") else 1
        found["deny what a process asks for"] = ability(
            *_returning(facts, lambda value: bool(value & 0xFFFFFFFF) == bool(denies))
        )
    found["read user memory"] = ability((), (), "reads user memory", _EITHER | _PRINTS_RECORDS, walked=False)
    found["read kernel memory"] = ability(
        facts.kernel_reads, facts.unknown_reads, "reads kernel memory", _EITHER
    )
    # The registers of a process are its context.
    registers = facts.context_writes if type_ == "kprobe" else ()
    found["write user memory"] = ability((), registers, "writes user memory", walked=False)
    found["kill or signal processes"] = ability(effect="kills processes", walked=False)
    found["make kernel functions fail"] = ability(effect="makes kernel functions fail", walked=False)
    sockets = () if type_ in hooks.PACKETS else (*facts.context_writes, *facts.unknown_writes)
    holds = any(one.type in _HOLD_SOCKETS for one in anatomy.spec.maps.values())
    found["change sockets"] = ability((), sockets, "changes sockets", _UPDATES if holds else frozenset())
    found["make BPF system calls"] = ability(effect="makes BPF system calls", walked=False)
    found["send to user space"] = ability(effect="sends to user space", walked=False)
    return found


def _returning(facts: Facts, test: Callable[[int], bool]) -> tuple[list[Place], list[Place]]:
    """Where a value that passes the test is returned surely, and where it may be among others."""
    return (
        [place for place, value in facts.returns.items() if _any(value, test)],
        [place for place, value in facts.returns.items() if any(isinstance(a, str) for a in value)],
    )


def _any(value: Value, test: Callable[[int], bool]) -> bool:
    return any(isinstance(atom, int) and test(atom) for atom in value)


def where(anatomy: Anatomy, places: Iterable[Place]) -> tuple[Where, ...]:
    """Places with their lines of source, one for each line."""
    found: dict[tuple[str, str | int, int], Where] = {}
    for name, slot in sorted(places):
        line = anatomy.functions[name].line(slot)
        # One line of source is many instructions; the first stands for all.
        key = (name, line.file, line.number) if line else (name, slot, 0)
        at = Where(name, slot, line.file, line.number, line.text) if line else Where(name, slot)
        found.setdefault(key, at)
    return tuple(found.values())
