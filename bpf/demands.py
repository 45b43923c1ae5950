"""What BPF objects demand of a kernel, taken from the objects themselves: program types, the helpers that each type
calls, map types, ways to attach, and what only newer verifiers let an instruction do.

Nothing here is a list kept by hand, so an object that changes cannot demand what `mapek doctor` does not look at.
No kernel is asked; `mapek.bpf.parts` does that.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from mapek.bpf import helpers
from mapek.bpf.anatomy import Function, take_apart
from mapek.bpf.instructions import KINDS as KINDS_OF_CODE
from mapek.bpf.instructions import LD_IMM64, PSEUDO_CALL, PSEUDO_KFUNC_CALL
from mapek.bpf.spec import ObjectSpec, ProgramSpec

Kind = Literal["program type", "map type", "helper", "attachment", "instruction"]
KINDS: Final[tuple[Kind, ...]] = ("program type", "attachment", "map type", "helper", "instruction")

_ATOMICS: Final = (0xC3, 0xDB)
_JMP32: Final = 0x06

# The ways in which a program of a type, or of its attach type, can be attached; the best first.
_WAYS: Final = {
    "xdp": ("xdp_link", "xdp_netlink"),
    "sched_cls": ("tcx", "clsact"),
    "raw_tracepoint": ("raw_tp",),
    "trace_raw_tp": ("tp_btf",),
    "tracepoint": ("tracepoint",),
    "kprobe": ("kprobe",),
}


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """One thing that a kernel has or has not.

    Args:
        name: the kernel's ("percpu_array"); of a helper without `bpf_`.
        of: of a helper the program type that calls it, else "".
    """

    kind: Kind
    name: str
    of: str = ""

    def __str__(self) -> str:
        return f"{self.of}: {self.name}" if self.of else self.name


def demands(spec: ObjectSpec, program: str = "") -> frozenset[Part]:
    """What the programs and maps of an object demand, or one of its programs. Raises ObjectError where its code is
    not sound."""
    anatomy = take_apart(spec)
    programs = [spec.programs[program]] if program else list(spec.programs.values())
    found = set[Part]()
    reached: dict[str, Function] = {}
    for one in programs:
        found.add(Part("program type", one.type))
        found.update(Part("attachment", way) for way in _ways(one))
        functions = anatomy.reach(one.name)
        reached.update((function.name, function) for function in functions)
        numbers = {number for function in functions for _, number in function.helpers()}
        found.update(Part("helper", helpers.name(number), one.type) for number in numbers)
    for function in reached.values():
        found.update(Part("instruction", one) for one in set(_instructions(function)))
        used = {known.name for known in function.references.values() if known.kind in ("map", "data")}
        found.update(Part("map type", spec.maps[name].type) for name in used if name in spec.maps)
    return frozenset(found)


def of_objects(paths: Iterable[Path]) -> dict[Part, tuple[str, ...]]:
    """What the objects at `paths` demand, and which of them (by name, sorted) each of it. Raises ObjectError."""
    found: dict[Part, list[str]] = {}
    for path in sorted(paths):
        for part in demands(ObjectSpec.read(path)):
            found.setdefault(part, []).append(path.name.split(".")[0])
    return {part: tuple(found[part]) for part in sorted(found)}


@functools.cache
def ours() -> Mapping[Part, tuple[str, ...]]:
    """What the built objects for this machine demand, by which of them; reads and parses for about 0.1 s."""
    target = "bpfel" if sys.byteorder == "little" else "bpfeb"
    return of_objects((Path(__file__).resolve().parent / "programs").glob(f"*.{target}.o"))


def _ways(program: ProgramSpec) -> tuple[str, ...]:
    return _WAYS.get(program.attach) or _WAYS.get(program.type, (program.attach or program.type,))


def _instructions(function: Function) -> Iterator[str]:
    for one in function.code:
        code, kind = one.code, KINDS_OF_CODE[one.code]
        if kind in ("jump", "branch"):
            if code & 0x07 == _JMP32:
                yield "jmp32"
            if one.target <= one.slot:
                yield "bounded_loop"
        elif kind == "call":
            if one.src == PSEUDO_CALL:
                yield "function_call"
            elif one.src == PSEUDO_KFUNC_CALL:
                yield "kernel_call"
        elif code in _ATOMICS and one.imm:
            yield "atomic_fetch"
        elif code == LD_IMM64 and (known := function.references.get(one.slot)):
            if known.kind == "function":
                yield "callback"
            elif known.kind == "data":
                yield "global_data"
