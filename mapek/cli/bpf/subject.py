"""What a command about an object is given: a path, a name, or the id of a program of ours that is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mapek.errors import ObjectError

if TYPE_CHECKING:
    from mapek.bpf.spec import ObjectSpec


@dataclass(frozen=True, slots=True)
class Subject:
    """An object, the program that is meant in it ("" for all), and whether what is loaded came from another build."""

    spec: ObjectSpec
    program: str = ""
    other_build: bool = False


def is_id(given: str) -> bool:
    """Whether it can be the kernel's number of a program: 32 bits, in digits that int() knows."""
    return given.isascii() and given.isdecimal() and len(given) <= 10


def subject(given: str) -> ObjectSpec:
    """The object of that path or name."""
    from mapek.bpf.spec import ObjectSpec, object_path
    from mapek.plugins import SENSORS, available

    if "/" in given or given.endswith(".o"):
        return ObjectSpec.read(given)
    if given in available(SENSORS) and not _objects(given):
        why = "this sensor has none in the kernel"
        raise ObjectError("find", f"program {given}", why, f"see docs/sensors/{given}.md for what it reads")
    try:
        return ObjectSpec.read(object_path(given))
    except OSError as error:
        # a name that no file can have
        why = error.strerror or str(error)
        raise ObjectError("find", f"program {given[:40]}", why, "give a name or a path") from error


def subjects(given: str, program: str = "") -> list[Subject]:
    """All that is meant: a sensor may have an object for each of its variants (net_events, net_events_tp).

    Args:
        program: only objects with a program of that name, if there are any.
    """
    from mapek.plugins import SENSORS, available

    if is_id(given):
        return [_loaded(int(given))]
    names = _objects(given) if given in available(SENSORS) else []
    found = [Subject(subject(name)) for name in names or [given]]
    return [one for one in found if program in one.spec.programs] or found


def _objects(sensor: str) -> list[str]:
    from mapek.bpf import build

    # Not all that is installed has its sources, nor all that has them is built.
    files = [one.name for one in build.PROGRAMS.iterdir() if one.name.endswith((".bpf.c", ".o"))]
    names = sorted({name.partition(".")[0] for name in files})
    return [name for name in names if name == sensor or name.startswith(f"{sensor}_")]


def _loaded(ident: int) -> Subject:
    from mapek.bpf.inventory import btf_of, programs
    from mapek.bpf.likeness import same_build
    from mapek.bpf.spec import ObjectSpec, object_path

    one = next((known for known in programs() if known.id == ident), None)
    if one is None:
        raise ObjectError("find program", ident, "no such program is loaded", "see mapek bpf list")
    if not one.object:
        why = "it is foreign, and the kernel keeps no object to explain"
        raise ObjectError("explain program", f"{ident} ({one.name})", why, "give the file it was loaded from")
    spec = ObjectSpec.read(object_path(one.object))
    # The kernel keeps fifteen letters of a name.
    names = [name for name in spec.programs if name[:15] == one.name]
    return Subject(spec, names[0] if len(names) == 1 else "", not same_build(spec, btf_of(ident)))
