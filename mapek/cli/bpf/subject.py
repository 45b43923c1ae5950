"""The object that a command is about: a file, a program of ours by name, or one that is loaded by its id."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapek.errors import ObjectError

if TYPE_CHECKING:
    from mapek.bpf.spec import ObjectSpec


def subject(given: str) -> tuple[ObjectSpec, str]:
    """The object that is meant, and the program in it, "" for all of them."""
    from mapek.bpf.spec import ObjectSpec, object_path

    program = ""
    if given.isdigit():
        given, program = _loaded(int(given))
    path = given if "/" in given or given.endswith(".o") else object_path(given)
    return ObjectSpec.read(path), program


def _loaded(ident: int) -> tuple[str, str]:
    from mapek.bpf.inventory import programs
    from mapek.bpf.spec import ObjectSpec, object_path

    one = next((known for known in programs() if known.id == ident), None)
    if one is None:
        raise ObjectError("find program", ident, "no such program is loaded", "see mapek bpf list")
    if not one.object:
        why = "it is foreign, and the kernel keeps no object to explain"
        raise ObjectError("explain program", f"{ident} ({one.name})", why, "give the file it was loaded from")
    # The kernel keeps fifteen letters of a name.
    names = [name for name in ObjectSpec.read(object_path(one.object)).programs if name[:15] == one.name]
    return one.object, names[0] if len(names) == 1 else ""
