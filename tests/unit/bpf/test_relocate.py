"""CO-RE relocations against a kernel's types: what is there, what is not, and what was only asked for.

The local types and the kernel's are one BTF here, from our own object, with names changed where a kernel would differ.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from mapek.bpf import ObjectSpec, object_path
from mapek.bpf.anatomy import Anatomy, take_apart
from mapek.bpf.elf import parse
from mapek.bpf.relocate import VMLINUX, KernelBtf, unresolved
from mapek.cli import main
from mapek.errors import ObjectError
from tests.support import machine

SPEC = ObjectSpec.read(object_path("net_events"))
ANATOMY = take_apart(SPEC)


def own_btf() -> bytes:
    section = parse(SPEC.raw).section(".BTF")
    assert section is not None
    return bytes(section.data)


def missing(tmp_path: Path, btf: bytes, anatomy: Anatomy = ANATOMY) -> set[str]:
    path = tmp_path / "btf"
    path.write_bytes(btf)
    return {
        one.why.split(" (")[0].removeprefix("the kernel has no ") for one in unresolved(anatomy, str(path))
    }


def renamed(name: bytes) -> bytes:
    """The BTF where what has this name is called otherwise."""
    data = own_btf()
    old = b"\0" + name + b"\0"
    assert old in data
    return data.replace(old, b"\0" + b"x" * len(name) + b"\0")


def relocated() -> dict[str, set[str]]:
    """Kinds of relocations by the name of their type."""
    found: dict[str, set[str]] = {}
    for function in ANATOMY.functions.values():
        for one in function.relocations:
            found.setdefault(SPEC.btf.resolve(one.type).name, set()).add(one.kind)
    return found


def test_there_is_something_to_resolve():
    assert any("field_byte_offset" in kinds for kinds in relocated().values())


def test_all_is_found_in_its_own_types(tmp_path: Path):
    # Two local views of one kernel type ("sk_buff___old") have members that the plain one lacks; a kernel has them all.
    flavoured = {name.split("___")[0] for name in relocated() if "___" in name}
    assert {one.split()[1].split(".")[0] for one in missing(tmp_path, own_btf())} <= flavoured


@pytest.mark.parametrize(
    "name",
    # a flavour stands for the type of the same name
    sorted(n for n, kinds in relocated().items() if "field_byte_offset" in kinds and "___" not in n),
)
def test_a_type_that_is_gone(tmp_path: Path, name: str):
    gone = missing(tmp_path, renamed(name.encode()))
    assert any(one == f"struct {name}" for one in gone), gone
    # It may be a module's.
    found = list(unresolved(ANATOMY, str(tmp_path / "btf")))
    assert {one.severity for one in found if f"no struct {name} (" in one.why} == {"warn"}


def test_a_member_that_is_gone(tmp_path: Path):
    names = set()
    for function in ANATOMY.functions.values():
        for one in function.relocations:
            root = SPEC.btf.resolve(one.type)
            path = [int(word) for word in one.access.split(":")]
            if one.kind == "field_byte_offset" and len(path) == 2 and root.members[path[1]].name:
                names.add((root.name.split("___")[0], root.members[path[1]].name))
    assert names
    struct_name, member = sorted(names)[0]
    assert f"member {struct_name}.{member}" in missing(tmp_path, renamed(member.encode()))
    found = [
        one for one in unresolved(ANATOMY, str(tmp_path / "btf")) if f"{struct_name}.{member}" in one.why
    ]
    assert {one.severity for one in found if "may be meant" not in one.do} == {"refuse"}


@pytest.mark.skipif(not machine.has("btf"), reason=f"no {VMLINUX}")
def test_ours_can_be_resolved_here():
    for path in sorted(object_path("empty").parent.glob("*.bpfel.o")):
        for found in unresolved(take_apart(ObjectSpec.read(path)), None):
            # What is missing here was asked for before it is used (batman-adv is a module).
            assert found.severity == "warn", str(found)


@pytest.mark.skipif(not machine.has("btf"), reason=f"no {VMLINUX}")
def test_the_kernels_types_are_those_that_bpftool_counts():
    kernel = KernelBtf.read(VMLINUX)
    (ident,) = kernel.named("task_struct", 4)
    names = {name for name, _ in kernel.members(ident)}
    assert {"pid", "tgid", "comm"} <= names
    assert kernel.member(ident, "no such member") is None
    assert kernel.named("no such type", 4) == []


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "truncated"),
        (b"\0" * 24, "magic 0x0"),
        (own_btf()[:60], "header lies"),
        (
            struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 12, 12, 1)
            + struct.pack("<III", 0, 31 << 24, 0)
            + b"\0",
            "kind 31",
        ),
        (
            struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 12, 12, 1)
            + struct.pack("<III", 0, 4 << 24 | 9, 0)
            + b"\0",
            "cut short",
        ),
    ],
)
def test_what_is_no_btf(tmp_path: Path, data: bytes, says: str):
    with pytest.raises(ObjectError, match=says):
        missing(tmp_path, data)


def test_a_btf_that_is_not_there(tmp_path: Path):
    with pytest.raises(ObjectError, match="give the BTF of the kernel"):
        list(unresolved(ANATOMY, str(tmp_path / "none")))


BIG = ObjectSpec.read(object_path("net_events").with_name("net_events.bpfeb.o"))


def test_an_object_of_the_other_byte_order_is_not_held_against_this_kernel(
    capsys: pytest.CaptureFixture[str],
):
    assert list(unresolved(take_apart(BIG), None)) == []
    assert main(["bpf", "validate", BIG.path]) == 1
    assert "it is big-endian, the machine little" in capsys.readouterr().out


def test_the_byte_order_of_a_btf_is_that_of_its_magic(tmp_path: Path):
    path, section = tmp_path / "btf", BIG.elf.section(".BTF")
    assert section is not None
    path.write_bytes(section.data)
    assert KernelBtf.read(str(path)).byteorder == "big"
    said = {one.why for one in unresolved(take_apart(BIG), str(path))}
    assert {one.replace("the kernel has no ", "").split(" (")[0] for one in said} == missing(
        tmp_path, own_btf()
    )
    path.write_bytes(section.data)
    (first, *_) = unresolved(ANATOMY, str(path))
    assert str(first).startswith("CO-RE: it is little-endian, the kernel of that BTF big; take the object")


def test_an_object_without_relocations_asks_for_no_btf(tmp_path: Path):
    plain = take_apart(ObjectSpec.read(object_path("xdp_counter")))
    assert list(unresolved(plain, str(tmp_path / "none"))) == []
