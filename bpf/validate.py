"""Judges an object before any kernel sees it: licence, program types, helpers, code, maps, relocations, origin.

Static and without privileges. It knows less than the kernel's verifier, which remains the last judge, and more than it
about what an operator wants: which helpers, how much memory, whose object. What it refuses, the loader refuses.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Final, Literal

from mapek.bpf import btf, elf, helpers
from mapek.bpf.anatomy import MAX_DEPTH, Anatomy, Function, take_apart
from mapek.bpf.instructions import unknown
from mapek.bpf.rules import Rules, in_force
from mapek.bpf.signatures import SUFFIX, read_signature, signed_by
from mapek.bpf.spec import MapSpec, ObjectSpec, ProgramSpec
from mapek.errors import ObjectError

Severity = Literal["refuse", "warn"]

MAX_FINDINGS: Final = 1000
"""Nobody reads more of them, and a hostile object may have one for each instruction of each program."""

# License strings that the kernel takes for GPL-compatible, from include/linux/license.h.
GPL_COMPATIBLE: Final = frozenset(
    ("GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL")
)
_REFERRING: Final = (btf.PTR, btf.TYPEDEF, btf.VOLATILE, btf.CONST, btf.RESTRICT, btf.FUNC, btf.VAR)
_PER_CPU: Final = ("percpu_hash", "percpu_array", "lru_percpu_hash", "percpu_cgroup_storage")
# A hash's element beside key and value, an LPM trie's node: struct htab_elem and lpm_trie_node, rounded up.
_ELEMENT: Final = {"hash": 48, "lru_hash": 72, "percpu_hash": 56, "lru_percpu_hash": 80, "lpm_trie": 40}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: where, why, and what to do. "refuse" keeps the object from being loaded."""

    severity: Severity
    place: str
    why: str
    do: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.why}" + (f"; {self.do}" if self.do else "")


@dataclass(frozen=True, slots=True)
class Size:
    """Of a program with all that it calls: slots, and the longest way through that goes round no loop twice."""

    slots: int
    longest: int
    loops: int


@dataclass(frozen=True)
class Report:
    """What was found in one object."""

    path: str
    sha256: str
    license: str
    byteorder: str
    sizes: dict[str, Size]
    map_bytes: int
    findings: tuple[Finding, ...]
    anatomy: Anatomy | None = field(default=None, repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """Nothing in it is refused."""
        return not any(one.severity == "refuse" for one in self.findings)

    def error(self) -> ObjectError | None:
        """The first thing that is refused, and how many more there are; None where nothing is."""
        refused = [one for one in self.findings if one.severity == "refuse"]
        if not refused:
            return None
        more = f" (and {len(refused) - 1} more; see mapek bpf validate)" if len(refused) > 1 else ""
        one = refused[0]
        return ObjectError("validate", self.path, f"{one.place}: {one.why}{more}", one.do)


def validate(spec: ObjectSpec, rules: Rules | None = None, signature: str | Path | None = None) -> Report:
    """Judge a parsed object. Raises ObjectError only where its code cannot even be taken apart.

    With `rules.keys` its signature is looked for in the file `signature`, or where the rules say that they lie;
    raises FeatureError where the package that checks them is missing.
    """
    rules = rules or Rules()
    anatomy = take_apart(spec)
    sizes = {name: _size(anatomy, name) for name in spec.programs}
    digest = hashlib.sha256(spec.raw).hexdigest()
    all_of_them = chain(
        _origin(spec, rules, digest),
        _signature(spec, rules, signature),
        _license(spec, anatomy),
        _programs(spec, rules),
        *(_calls(one, anatomy, rules) for one in spec.programs.values()),
        *(_code(function) for function in anatomy.functions.values()),
        _sizes(sizes, anatomy, rules),
        _types(spec),
        check_maps(spec, rules),
    )
    findings = list(islice(all_of_them, MAX_FINDINGS))
    if next(all_of_them, None) is not None:
        why = f"more is wrong with it than {MAX_FINDINGS} things"
        findings.append(Finding("refuse", "object", why, "mend the first ones"))
    taken = sum(map_bytes(one, rules.cpus) for one in spec.maps.values())
    return Report(spec.path, digest, spec.license, spec.byteorder, sizes, taken, tuple(findings), anatomy)


_verdicts: dict[tuple[bytes, int], ObjectError | None] = {}
_signed: set[tuple[bytes, int]] = set()


def refuse(spec: ObjectSpec, max_entries: Mapping[str, int], without: Collection[str]) -> None:
    """What `load` asks: raises ObjectError for an object that `validate` refuses by the rules in force.

    Args:
        max_entries: sizes of maps, by name, that differ from those of the object.
        without: maps that will not be made.

    The verdict on the code is kept: an object is often loaded once for each interface. That a signature is missing is
    not, for it may come. Raises FeatureError where signatures are wanted and cannot be checked.
    """
    rules, changes = in_force()
    key = hashlib.sha256(spec.raw).digest(), changes
    if len(_verdicts) >= 64:
        _verdicts.clear()
        _signed.clear()
    if rules.keys and key not in _signed:
        for found in _signature(spec, rules):
            raise ObjectError("load", spec.path, found.why, found.do)
        _signed.add(key)
    if key not in _verdicts:
        # The maps are judged below, by the sizes that they will have.
        report = validate(spec, replace(rules, map_bytes=1 << 60, maps=1 << 30, keys=()))
        _verdicts[key] = report.error()
    if (error := _verdicts[key]) is not None:
        raise ObjectError(error.tried, spec.path, error.why, error.do)
    # Not at the top: it brings numpy, and `mapek bpf validate` makes no maps.
    from mapek.bpf.cpus import possible_cpus

    for found in check_maps(spec, replace(rules, cpus=possible_cpus()), max_entries, without):
        raise ObjectError("load", spec.path, found.why, found.do)


def map_bytes(one: MapSpec, cpus: int) -> int:
    """About what a map takes when it is full, in bytes: what the kernel allocates but for the allocator's rounding."""
    if one.type in ("ringbuf", "user_ringbuf"):
        return one.max_entries
    if one.type == "arena":
        return one.max_entries * mmap.PAGESIZE
    value = -(-one.value_size // 8) * 8 * (cpus if one.type in _PER_CPU else 1)
    key = 0 if "array" in one.type else -(-one.key_size // 8) * 8
    return one.max_entries * max(8, key + value + _ELEMENT.get(one.type, 0))


def _size(anatomy: Anatomy, program: str) -> Size:
    functions = anatomy.reach(program)
    loops = sum(len(one.flow.back_edges) for one in functions)
    return Size(sum(one.slots for one in functions), anatomy.longest(program), loops)


def _origin(spec: ObjectSpec, rules: Rules, digest: str) -> Iterator[Finding]:
    if rules.sha256 is not None and digest not in rules.sha256:
        yield Finding(
            "refuse", "object", f"its SHA-256 {digest} is not on the list", "add it when it is known"
        )
    if spec.byteorder != rules.byteorder:
        why = f"it is {spec.byteorder}-endian, the machine {rules.byteorder}"
        yield Finding("refuse", "object", why, "take the object built for the other byte order")


def _signature(spec: ObjectSpec, rules: Rules, given: str | Path | None = None) -> Iterator[Finding]:
    if not rules.keys:
        return
    folder, name = os.path.split(spec.path)
    path = given or (rules.signatures or Path(folder)) / (name + SUFFIX)
    try:
        # Over the very bytes that are handed to the kernel, whatever the file holds by now.
        if signed_by(spec.raw, read_signature(path), rules.keys) is not None:
            return
    except ObjectError as error:
        yield Finding("refuse", "object", f"it has no signature: {error.on}: {error.why}", error.do)
    else:
        whose = "that key" if len(rules.keys) == 1 else f"any of {len(rules.keys)} keys"
        why = f"the signature {path} is not one of it by {whose}"
        yield Finding("refuse", "object", why, "have it signed by who may, or allow their key")


def _license(spec: ObjectSpec, anatomy: Anatomy) -> Iterator[Finding]:
    sections = [one for one in spec.elf.sections if one.name == "license"]
    strings = [one for section in sections for one in bytes(section.data[:4096]).split(b"\0") if one]
    if len(strings) != 1:
        yield Finding("refuse", "license", f"it has {len(strings)} licences", "give it exactly one")
    if spec.license in GPL_COMPATIBLE:
        return
    for name in spec.programs:
        wanted = sorted({one for one in _helpers(anatomy.reach(name)) if one in helpers.GPL_ONLY})
        if wanted:
            why = (
                f"{', '.join(wanted)} only serve GPL-compatible programs, and the licence is {spec.license!r}"
            )
            yield Finding("refuse", f"program {name}", why, "license it so, or do without")


def _programs(spec: ObjectSpec, rules: Rules) -> Iterator[Finding]:
    if not spec.programs:
        yield Finding("refuse", "object", "it has no programs", "compile it with SEC() on a function")
    for program in spec.programs.values():
        if program.type not in rules.helpers:
            yield Finding(
                "refuse", f"program {program.name}", _type(program), "allow the type if it is meant"
            )
    for symbol in spec.elf.symbols:
        if symbol.bind == elf.STB_LOCAL and symbol.kind == elf.STT_FUNC and symbol.name in spec.programs:
            yield Finding(
                "refuse", f"program {symbol.name}", "it is static", "libbpf loads none: make it global"
            )


def _type(program: ProgramSpec) -> str:
    if program.type == "unspec":
        return f"nothing is known of section {program.section!r}"
    return f"programs of type {program.type} are not allowed"


def _helpers(functions: tuple[Function, ...]) -> set[str]:
    return {helpers.name(number) for function in functions for _, number in function.helpers()}


def _calls(program: ProgramSpec, anatomy: Anatomy, rules: Rules) -> Iterator[Finding]:
    functions, place = anatomy.reach(program.name), f"program {program.name}"
    allowed = set(rules.helpers.get(program.type, ()))
    refused = _first_calls(functions, allowed) if program.type in rules.helpers else {}
    for helper, where in sorted(refused.items()):
        effect = ", ".join(helpers.effects([helper]))
        why = f"helper {helper.removeprefix('helper ')} is not allowed in {program.type}" + (
            f": it {effect}" if effect else ""
        )
        yield Finding("refuse", place, why + where, "allow it if it is meant")
    for kfunc in sorted({one for function in functions for _, one in function.kfuncs()} - set(rules.kfuncs)):
        why = f"kernel function {kfunc or 'without a name'} is not allowed"
        yield Finding("refuse", place, why, "allow it if it is meant")


def _first_calls(functions: tuple[Function, ...], allowed: Collection[str]) -> dict[str, str]:
    """Helpers that are called and not allowed, each with where it is first, " (FILE:LINE)" or "" without lines."""
    found: dict[str, str] = {}
    for function in functions:
        for one, number in function.helpers():
            name = helpers.name(number)
            if name not in allowed and not found.get(name):
                line = function.line(one.slot)
                found[name] = f" ({line.file}:{line.number})" if line else ""
    return found


def _code(function: Function) -> Iterator[Finding]:
    flow, place = function.flow, f"function {function.name}"
    if flow.strays:
        line = function.line(flow.strays[0])
        where = f" ({line.file}:{line.number})" if line else ""
        yield Finding("refuse", place, f"instruction {flow.strays[0]}{where} leaves it", "compile it anew")
    if flow.unreachable:
        why = f"{len(flow.unreachable)} instructions from {flow.unreachable[0]} on cannot be reached"
        yield Finding("refuse", place, why, "no kernel loads that: compile it anew")
    if (one := unknown(function.code)) is not None:
        yield Finding("refuse", place, f"instruction {one.slot} is none: {one}", "compile it anew")


def _sizes(sizes: dict[str, Size], anatomy: Anatomy, rules: Rules) -> Iterator[Finding]:
    for name, size in sizes.items():
        if size.slots > rules.slots:
            why = f"{size.slots} instructions, more than {rules.slots}"
            yield Finding("refuse", f"program {name}", why, "make it smaller")
        if anatomy.depth(name) > MAX_DEPTH:
            why = f"its functions call each other more than {MAX_DEPTH} deep, or for ever"
            yield Finding("refuse", f"program {name}", why, "call less deep; no kernel loads that")


def _types(spec: ObjectSpec) -> Iterator[Finding]:
    known = {one.name for one in spec.btf.types if one.kind == btf.FUNC}
    for name in spec.programs:
        if name not in known:
            yield Finding("warn", f"program {name}", "BTF does not know it", "compile it with -g")
    last = len(spec.btf.types) - 1
    lost = [one for one in spec.btf.types if one.kind in _REFERRING and one.size_or_type > last]
    if lost:
        why = f"{lost[0].name or 'a type'} refers to type {lost[0].size_or_type}, and the last is {last}"
        yield Finding("refuse", "BTF", why, "compile it anew")


def check_maps(
    spec: ObjectSpec,
    rules: Rules,
    max_entries: Mapping[str, int] | None = None,
    without: Collection[str] = (),
) -> Iterator[Finding]:
    """What is wrong with an object's maps, where some have other sizes and some are not made."""
    if spec.elf.section("maps") is not None:
        why = "they are defined as before libbpf 1.0, in a section `maps`"
        yield Finding("refuse", "maps", why, 'define them by BTF, in SEC(".maps")')
    made = [
        replace(one, max_entries=(max_entries or {}).get(name, one.max_entries))
        for name, one in spec.maps.items()
        if name not in without
    ]
    if len(made) > rules.maps:
        yield Finding("refuse", "maps", f"{len(made)} of them, more than {rules.maps}", "use fewer")
    for one in made:
        if one.type.split(" ")[0] in ("unspec", "type"):
            yield Finding("refuse", f"map {one.name}", f"its type is {one.type}", "use a type that is known")
    taken = sum(map_bytes(one, rules.cpus) for one in made)
    if taken > rules.map_bytes:
        largest = max(made, key=lambda one: map_bytes(one, rules.cpus))
        size = map_bytes(largest, rules.cpus) >> 20
        why = f"map {largest.name} would take {size} MiB, all maps {taken >> 20}, more than {rules.map_bytes >> 20}"
        yield Finding("refuse", "maps", why, "set max_entries")
