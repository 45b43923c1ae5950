"""Objects that nobody here wrote, of other compilers, authors and times, read by us and by others.

libbpf and bpftool say which programs, maps and types an object has, llvm-objdump what the instructions are. Most lie
inside of executables. MAPEK_FOREIGN names a directory to look in besides the system's: `tools/foreign.sh DIRECTORY`
brings there what Debian has.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapek.bpf import ObjectSpec, libbpf, words
from mapek.bpf.anatomy import take_apart
from mapek.bpf.explain import explain
from mapek.bpf.names import MAP_TYPES, PROGRAM_TYPES
from mapek.bpf.relocate import VMLINUX, unresolved
from mapek.bpf.validate import validate
from mapek.errors import FeatureError, ObjectError
from tests.support import machine
from tests.unit.bpf.test_code import compare, disassembled

PLACES = [Path(one) for one in os.environ.get("MAPEK_FOREIGN", "").split(":") if one]
PLACES += sorted(Path("/usr/lib").glob("*/bpf"))
TOOLS = [Path("/usr/sbin")]
WHY = "no foreign objects; tools/foreign.sh DIRECTORY, and set MAPEK_FOREIGN to it"


pytestmark = pytest.mark.needs("foreign_objects")


def inside(path: Path) -> Iterator[bytes]:
    """Objects within an executable or a library, or an object itself; of either byte order."""
    data, at = path.read_bytes(), -1
    while (at := data.find(b"\x7fELF\x02", at + 1)) >= 0:
        mark = "<" if data[at + 5 : at + 6] == b"\1" else ">"
        if len(data) >= at + 64 and struct.unpack_from(mark + "HH", data, at + 16) == (1, 247):
            table = struct.unpack_from(mark + "Q", data, at + 40)[0]
            count = struct.unpack_from(mark + "H", data, at + 60)[0]
            yield data[at : at + table + 64 * count]


def collect() -> dict[str, bytes]:
    """By name; the same bytes once, though every xdp-tool carries those of libxdp."""
    paths = [one for place in PLACES for one in sorted(place.rglob("*"))]
    paths += [one for place in TOOLS for one in place.glob("*-libbpf")]
    found: dict[bytes, str] = {}
    for path in paths:
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 16 << 20:
            for number, one in enumerate(inside(path)):
                found.setdefault(one, path.name if path.suffix in (".o", ".elf") else f"{path.name}.{number}")
    return {name: data for data, name in found.items()}


def sort(objects: dict[str, bytes]) -> tuple[dict[str, bytes], dict[str, str]]:
    """Those that can be read, and why others cannot."""
    fit, unfit = {}, {}
    for name, data in objects.items():
        try:
            ObjectSpec.parse(data, name)
        except ObjectError as error:
            unfit[name] = error.why
        else:
            fit[name] = data
    return fit, unfit


FOUND = collect()
OBJECTS, UNFIT = sort(FOUND)


@pytest.fixture(params=sorted(OBJECTS) or [""])
def foreign(request: pytest.FixtureRequest) -> ObjectSpec:
    if not request.param:
        pytest.skip(WHY)
    return ObjectSpec.parse(OBJECTS[request.param], request.param)


def opened(spec: ObjectSpec) -> tuple[set[tuple[str, str]], set[tuple[str, str, int, int, int]]] | None:
    """Programs and maps as libbpf sees them, None where it opens no such object; it asks no kernel."""
    try:
        lib = libbpf.library()
    except FeatureError as error:
        pytest.skip(str(error))
    for name in (
        "bpf_program__type",
        "bpf_map__type",
        "bpf_map__key_size",
        "bpf_map__value_size",
        "bpf_map__max_entries",
    ):
        function = getattr(lib, name)
        function.argtypes, function.restype = (ctypes.c_void_p,), ctypes.c_uint32
    raw = ctypes.create_string_buffer(spec.raw, len(spec.raw))
    opts = libbpf.OpenOpts(sz=ctypes.sizeof(libbpf.OpenOpts), object_name=b"foreign")
    handle = lib.bpf_object__open_mem(raw, len(spec.raw), ctypes.byref(opts))
    if not handle:
        return None
    try:
        programs, maps = set(), set()
        at = lib.bpf_object__next_program(handle, None)
        while at:
            programs.add((lib.bpf_program__name(at).decode(), PROGRAM_TYPES[lib.bpf_program__type(at)]))
            at = lib.bpf_object__next_program(handle, at)
        at = lib.bpf_object__next_map(handle, None)
        while at:
            name = lib.bpf_map__name(at).decode()
            shape = (lib.bpf_map__key_size(at), lib.bpf_map__value_size(at), lib.bpf_map__max_entries(at))
            if lib.bpf_map__is_internal(at):
                name = name[name.index(".") :]
            maps.add((name, MAP_TYPES[lib.bpf_map__type(at)], *shape))
            at = lib.bpf_object__next_map(handle, at)
        return programs, maps
    finally:
        lib.bpf_object__close(handle)


def test_there_are_some():
    assert OBJECTS, WHY


def test_programs_and_maps_are_those_that_libbpf_sees(foreign: ObjectSpec):
    seen = opened(foreign)
    if seen is None:
        # Big-endian, of before libbpf 1.0, static programs: what it does not load, we say beforehand.
        assert not validate(foreign).ok
        return
    programs, maps = seen
    assert {(one.name, one.type) for one in foreign.programs.values()} == programs
    ours = {(m.name, m.type, m.key_size, m.value_size, m.max_entries) for m in foreign.maps.values()}
    # Configuration and symbols of the kernel are filled in by libbpf when it loads.
    assert ours == {one for one in maps if one[0] not in (".kconfig", ".ksyms")}


def bpftool(*words: object) -> str:
    """What it prints; it is asked nothing that needs a kernel."""
    path = shutil.which("bpftool")
    if path is None:
        pytest.skip("no bpftool; apt-get install bpftool")
    return subprocess.run([path, *map(str, words)], capture_output=True, text=True, check=True).stdout


def test_types_are_those_that_bpftool_sees(foreign: ObjectSpec, tmp_path: Path):
    if foreign.byteorder != sys.byteorder:
        return  # it reads its own only
    path = tmp_path / "foreign.o"
    path.write_bytes(foreign.raw)
    told = json.loads(bpftool("-j", "btf", "dump", "file", path))["types"]
    assert [one["id"] for one in told] == list(range(1, len(foreign.btf.types)))
    assert [one["name"] for one in told] == [one.name or "(anon)" for one in foreign.btf.types[1:]]
    for theirs, ours in zip(told, foreign.btf.types[1:], strict=True):
        if "vlen" in theirs and "members" in theirs:
            assert [one["name"] for one in theirs["members"]] == [m.name or "(anon)" for m in ours.members]


def test_names_are_those_of_its_skeleton(foreign: ObjectSpec, tmp_path: Path):
    if opened(foreign) is None:
        return
    path = tmp_path / "foreign.o"
    path.write_bytes(foreign.raw)
    made = bpftool("gen", "skeleton", path, "name", "foreign")
    programs = set(re.findall(r"s->progs\[\d+\]\.name = \"(.+?)\"", made))
    assert programs == foreign.programs.keys()


@pytest.mark.parametrize("name", sorted(UNFIT) or [""])
def test_what_cannot_be_read_lacks_what_we_say(name: str, tmp_path: Path):
    if not name:
        pytest.skip(WHY)
    path = tmp_path / "foreign.o"
    path.write_bytes(FOUND[name])
    headers = subprocess.run(
        [shutil.which("llvm-objdump") or "llvm-objdump-14", "-h", path],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    sections = {line.split()[1] for line in headers.splitlines() if line.strip()[:1].isdigit()}
    lacks = {"it has no license section": "license"}.get(UNFIT[name], ".BTF")
    assert lacks == "license" or UNFIT[name].startswith("it has no BTF"), UNFIT[name]
    assert lacks not in sections


def test_instructions_are_those_that_llvm_sees(foreign: ObjectSpec, tmp_path: Path):
    path = tmp_path / "foreign.o"
    path.write_bytes(foreign.raw)
    compare(take_apart(foreign), disassembled(path))


def test_they_are_judged_and_explained(foreign: ObjectSpec):
    began = time.thread_time()
    report = validate(foreign)
    told = explain(foreign, report.anatomy)
    said = words.text(told)
    assert time.thread_time() - began < machine.effort(0.3)
    assert [one.name for one in told.programs] == list(foreign.programs)
    assert all(f"program {name} (" in said for name in foreign.programs)
    assert all(one.complete for one in told.programs)


@pytest.mark.skipif(not os.access(VMLINUX, os.R_OK), reason=f"no {VMLINUX}")
def test_their_relocations_have_an_answer(foreign: ObjectSpec):
    for one in unresolved(take_apart(foreign), None):
        assert "the kernel has no " in one.why


# By the sources of each, read by people: what it does, and nothing else of what can be told.
DOES = {
    ("xdp_drop.o", "xdp_drop"): {"drop packets": "yes"},
    ("xdp_pass.o", "xdp_pass"): {},
    ("xdpfilt_dny_udp.o", "xdpfilt_dny_udp"): {"drop packets": "yes", "read packets": "yes"},
    ("xdpfilt_alw_all.o", "xdpfilt_alw_all"): {"drop packets": "yes", "read packets": "yes"},
    # bpf_redirect_map(&xsks_map, queue, XDP_PASS): what is returned is known only to lie in the flags or to redirect.
    ("xsk_def_xdp_prog.o", "xsk_def_prog"): {
        "drop packets": "maybe",
        "send packets back or elsewhere": "yes",
    },
    # The same with 0 for the flags: XDP_ABORTED where no socket is.
    ("xsk_def_xdp_prog_5.3.o", "xsk_def_prog"): {
        "drop packets": "yes",
        "send packets back or elsewhere": "yes",
    },
    ("xdpdump_xdp.o", "xdpdump"): {"read packets": "yes", "send to user space": "yes"},
    # It answers over the way that bpf_fib_lookup names, and writes the MAC address of it into the frame.
    ("libknot.so.13.0.0.0", "xdp_redirect_dns_func"): {
        "drop packets": "yes",
        "send packets back or elsewhere": "yes",
        "read packets": "yes",
        "change packets": "yes",
    },
    ("opensnoop.0", "tracepoint__syscalls__sys_enter_openat"): {},
    # Its stack is that of the process, by a flag of bpf_get_stack that is not looked at.
    ("opensnoop.0", "tracepoint__syscalls__sys_exit_openat"): {
        "read user memory": "yes",
        "read kernel memory": "maybe",
        "send to user space": "yes",
    },
    # The arguments from the process, the parent's id through task_struct.
    ("execsnoop.0", "tracepoint__syscalls__sys_enter_execve"): {
        "read user memory": "yes",
        "read kernel memory": "yes",
    },
    ("bashreadline.0", "printret"): {"read user memory": "yes", "send to user space": "yes"},
    # It tells of signals and sends none.
    ("sigsnoop.0", "kill_exit"): {"send to user space": "yes"},
}


@pytest.mark.parametrize(("name", "program"), DOES, ids=lambda one: one)
def test_what_some_do(name: str, program: str):
    if name not in OBJECTS:
        pytest.skip(WHY)
    told = explain(ObjectSpec.parse(OBJECTS[name], name))
    (one,) = (one for one in told.programs if one.name == program)
    assert {what: ability.answer for what, ability in one.can.items() if ability.answer != "no"} == DOES[
        name, program
    ]


def test_what_the_dispatcher_of_others_lets_be_replaced():
    if "xdp-dispatcher.o" not in OBJECTS:
        pytest.skip(WHY)
    one = explain(ObjectSpec.parse(OBJECTS["xdp-dispatcher.o"], "xdp-dispatcher.o")).programs[0]
    assert "prog0" in one.replaceable
    assert one.can["drop packets"].answer == "yes"
