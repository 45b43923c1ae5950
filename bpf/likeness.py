"""Whether a program in the kernel was loaded from the very object that lies on disk now.

The kernel keeps no object, but the BTF that came with the program: names, types, and the text of each source line that
made an instruction. libbpf fills in sizes and offsets of data sections and may append names; all else is as it was
built. Two builds that differ in nothing but what a macro stands for look alike.
"""

from __future__ import annotations

from mapek.bpf import btf
from mapek.bpf.spec import ObjectSpec
from mapek.errors import ObjectError


def same_build(spec: ObjectSpec, loaded: bytes) -> bool:
    """Whether `loaded`, the BTF of a program, is the object's."""
    section = spec.elf.section(".BTF")
    try:
        types = btf.parse(memoryview(loaded), spec.byteorder, "program").types
    except ObjectError:
        return False
    if section is None or not _strings(spec, loaded).startswith(_strings(spec, bytes(section.data))):
        return False
    wanted = spec.btf.types
    return [t for t in wanted if t.kind != btf.DATASEC] == [
        t for t in types[: len(wanted)] if t.kind != btf.DATASEC
    ]


def _strings(spec: ObjectSpec, data: bytes) -> bytes:
    header, start, length = (int.from_bytes(data[at : at + 4], spec.byteorder) for at in (4, 16, 20))
    return data[header + start : header + start + length]
