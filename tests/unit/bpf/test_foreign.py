"""Objects that nobody here wrote: Debian's xdp-tools, libxdp1 and bpfcc's libbpf-tools, read by us and by others.

libbpf itself says which programs and maps an object has, and llvm-objdump what the instructions are. libbpf-tools have
their objects inside of their executables. MAPEK_FOREIGN names a directory to look in besides the system's, such as that
to which `apt-get download libbpf-tools libxdp1 xdp-tools` and `dpkg-deb -x` have brought them.
"""

from __future__ import annotations

import ctypes
import os
import struct
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
from mapek.errors import FeatureError
from tests.unit.bpf.test_code import compare, disassembled

PLACES = [Path(one) for one in os.environ.get("MAPEK_FOREIGN", "").split(":") if one]
PLACES += sorted(Path("/usr/lib").glob("*/bpf"))
TOOLS = [Path("/usr/sbin")]
WHY = "no foreign objects; apt-get install libxdp1 xdp-tools libbpf-tools, or set MAPEK_FOREIGN"


pytestmark = pytest.mark.needs("foreign_objects")


def inside(path: Path) -> Iterator[bytes]:
    """Objects within an executable."""
    data, at = path.read_bytes(), -1
    while (at := data.find(b"\x7fELF\x02\x01\x01", at + 1)) >= 0:
        if struct.unpack_from("<HH", data, at + 16) == (1, 247) if len(data) >= at + 64 else False:
            table, count = (
                struct.unpack_from("<Q", data, at + 40)[0],
                struct.unpack_from("<H", data, at + 60)[0],
            )
            yield data[at : at + table + 64 * count]


def collect() -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for place in PLACES:
        for path in sorted(place.rglob("*")):
            if not path.is_file() or path.is_symlink():
                continue
            if path.suffix == ".o":
                found[path.name] = path.read_bytes()
            elif path.stat().st_mode & 0o111 and path.stat().st_size < 4 << 20:
                found.update((f"{path.name}.{number}", one) for number, one in enumerate(inside(path)))
    for path in (one for place in TOOLS for one in place.glob("*-libbpf")):
        found.update((f"{path.name}.{number}", one) for number, one in enumerate(inside(path)))
    return found


OBJECTS = collect()


@pytest.fixture(params=sorted(OBJECTS) or [""])
def foreign(request: pytest.FixtureRequest) -> ObjectSpec:
    if not request.param:
        pytest.skip(WHY)
    return ObjectSpec.parse(OBJECTS[request.param], request.param)


def opened(spec: ObjectSpec) -> tuple[set[tuple[str, str]], set[tuple[str, str, int, int, int]]]:
    """Programs and maps as libbpf sees them; it opens without asking the kernel."""
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
    assert handle, libbpf.take_prints()
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


def test_programs_and_maps_are_those_that_libbpf_sees(foreign: ObjectSpec):
    programs, maps = opened(foreign)
    assert {(one.name, one.type) for one in foreign.programs.values()} == programs
    ours = {(m.name, m.type, m.key_size, m.value_size, m.max_entries) for m in foreign.maps.values()}
    # Configuration and symbols of the kernel are filled in by libbpf when it loads.
    assert ours == {one for one in maps if one[0] not in (".kconfig", ".ksyms")}


def test_instructions_are_those_that_llvm_sees(foreign: ObjectSpec, tmp_path: Path):
    path = tmp_path / "foreign.o"
    path.write_bytes(foreign.raw)
    compare(take_apart(foreign), disassembled(path))


def test_they_are_judged_and_explained(foreign: ObjectSpec):
    began = time.thread_time()
    report = validate(foreign)
    told = explain(foreign, report.anatomy)
    said = words.text(told)
    assert time.thread_time() - began < 0.3
    assert [one.name for one in told.programs] == list(foreign.programs)
    assert all(f"program {name} (" in said for name in foreign.programs)
    assert all(one.complete for one in told.programs)


@pytest.mark.skipif(not os.access(VMLINUX, os.R_OK), reason=f"no {VMLINUX}")
def test_their_relocations_have_an_answer(foreign: ObjectSpec):
    for one in unresolved(take_apart(foreign), None):
        assert "the kernel has no " in one.why


@pytest.mark.parametrize(
    ("name", "drop", "change"),
    [
        ("xdpfilt_dny_udp.o", "yes", "no"),
        ("xdpfilt_alw_all.o", "yes", "no"),
        ("xdp-dispatcher.o", "yes", "no"),
        ("xdpdump_bpf.o", None, None),
    ],
)
def test_what_xdp_tools_do(name: str, drop: str | None, change: str | None):
    if name not in OBJECTS:
        pytest.skip(WHY)
    one = explain(ObjectSpec.parse(OBJECTS[name], name)).programs[0]
    answers = {what: ability.answer for what, ability in one.can.items()}
    assert (answers.get("drop packets"), answers.get("change packets")) == (drop, change)
    if name == "xdp-dispatcher.o":
        assert "prog0" in one.replaceable
