"""What ObjectSpec says about the objects in git, and the one clear error for everything that is not one."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from mapek.bpf import MapSpec, ObjectSpec, ProgramSpec, libbpf, object_path
from mapek.bpf.anatomy import take_apart
from mapek.bpf.dispatcher import SLOTS
from mapek.bpf.elf import parse
from mapek.bpf.names import _SECTIONS, PROGRAM_TYPES, program_kind
from mapek.errors import FeatureError, ObjectError

PROGRAMS = Path(__file__).parents[3] / "bpf" / "programs"
OBJECTS = sorted(PROGRAMS.glob("*.o"))
XDP_COUNTER = object_path("xdp_counter")


def test_xdp_counter_is_read_in_full():
    spec = ObjectSpec.read(XDP_COUNTER)
    assert spec.license == "Dual BSD/GPL"
    assert spec.byteorder == sys.byteorder
    assert spec.raw == XDP_COUNTER.read_bytes()
    program = spec.programs["xdp_counter"]
    assert program == ProgramSpec("xdp_counter", "xdp", "xdp", "xdp", program.instructions)
    assert program.instructions > 20
    assert spec.maps["counters"] == MapSpec("counters", "percpu_array", 4, 16, 24, 0)
    assert spec.maps["samples"] == MapSpec("samples", "ringbuf", 0, 0, 1 << 18, 0)
    assert spec.maps["chain"] == MapSpec("chain", "prog_array", 4, 4, len(SLOTS), 0)
    assert {(v.name, v.section, v.size) for v in spec.variables.values()} == {
        ("slot", ".rodata", 4),
        ("sample_every", ".rodata", 4),
        ("link_header", ".rodata", 4),
    }


@pytest.mark.parametrize("path", OBJECTS, ids=lambda p: p.name)
def test_every_object_parses_and_says_its_byte_order(path: Path):
    spec = ObjectSpec.read(path)
    assert spec.byteorder == ("little" if ".bpfel." in path.name else "big")
    assert spec.programs
    assert all(p.type != "unspec" and p.instructions for p in spec.programs.values())
    assert "GPL" in spec.license


@pytest.mark.parametrize("path", [p for p in OBJECTS if ".bpfel." in p.name], ids=lambda p: p.name)
def test_both_byte_orders_hold_the_same(path: Path):
    little, big = ObjectSpec.read(path), ObjectSpec.read(path.with_name(path.name.replace("bpfel", "bpfeb")))
    assert little.maps == big.maps
    assert little.variables == big.variables
    assert {(p.name, p.section, p.type) for p in little.programs.values()} == {
        (p.name, p.section, p.type) for p in big.programs.values()
    }


@pytest.mark.parametrize("path", OBJECTS, ids=lambda p: p.name)
def test_instruction_counts_agree_with_the_symbol_table_of_another_reader(path: Path):
    readelf = shutil.which("readelf") or shutil.which("llvm-readelf-14") or shutil.which("llvm-readelf")
    if readelf is None:
        pytest.skip("no readelf; apt-get install binutils")
    out = subprocess.run([readelf, "-sW", str(path)], capture_output=True, text=True, check=True).stdout
    functions = {
        row[7]: int(row[2], 0) // 8
        for line in out.splitlines()
        if len(row := line.split()) == 8 and row[3] == "FUNC"
    }
    spec = ObjectSpec.read(path)
    assert {name: one.slots for name, one in take_apart(spec).functions.items()} == functions
    assert {p.name: p.instructions for p in spec.programs.values()}.items() <= functions.items()


def test_struct_sizes_come_from_btf():
    btf = ObjectSpec.read(XDP_COUNTER).btf
    assert btf.struct_size("counter") == 16
    assert btf.struct_offsets("counter") == {"packets": 0, "bytes": 8}
    assert btf.struct_size("no such struct") is None
    assert btf.struct_offsets("no such struct") is None


def test_the_other_byte_order_is_refused_with_the_remedy():
    other = "bpfeb" if sys.byteorder == "little" else "bpfel"
    spec = ObjectSpec.read(PROGRAMS / f"xdp_counter.{other}.o")
    with pytest.raises(ObjectError, match="-endian, this machine") as caught:
        spec.check_byteorder()
    assert object_path("xdp_counter").name.split(".")[1] in str(caught.value)


GOOD = XDP_COUNTER.read_bytes()


def patched(at: int, form: str, *values: int) -> bytes:
    data = bytearray(GOOD)
    struct.pack_into("=" + form, data, at, *values)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "truncated at 0 bytes|not an ELF"),
        (b"\x7fEL", "truncated|not an ELF"),
        (b"#!/bin/sh\n" * 20, "not an ELF"),
        (GOOD[:63], "truncated at 63 bytes"),
        (GOOD[:2000], "truncated: section headers end"),
        (patched(4, "B", 1), "not a 64-bit"),
        (patched(5, "B", 7), "unknown byte order 7"),
        (patched(5, "B", 2 if sys.byteorder == "little" else 1), "not for BPF"),
        (patched(18, "H", 62), "built for machine 62, not for BPF"),
        (patched(16, "H", 2), "not a relocatable"),
        (patched(40, "Q", 1 << 63), "truncated: section headers"),
        (patched(58, "H", 40), "section headers of 40 bytes"),
        (patched(60, "H", 0), "0 section headers"),
        (patched(62, "H", 999), "section names are in section 999"),
    ],
)
def test_what_is_no_object_gets_one_line(data: bytes, why: str):
    with pytest.raises(ObjectError, match=why) as caught:
        ObjectSpec.parse(data, "some.o")
    assert "\n" not in str(caught.value)
    assert "some.o" in str(caught.value)


def doubled(name: str) -> bytes:
    """With one more section of that name, the same as the first."""
    data = bytearray(GOOD)
    table, count = struct.unpack_from("=Q", data, 40)[0], struct.unpack_from("=H", data, 60)[0]
    at = next(i for i, one in enumerate(parse(GOOD).sections) if one.name == name)
    struct.pack_into("=Q", data, 40, len(data))
    struct.pack_into("=H", data, 60, count + 1)
    return bytes(data + data[table : table + 64 * count] + data[table + 64 * at : table + 64 * at + 64])


@pytest.mark.parametrize("name", [".BTF", ".BTF.ext", ".maps", "license", ".rodata", "xdp"])
def test_two_sections_of_which_libbpf_reads_another_one(name: str):
    with pytest.raises(ObjectError, match=f"it has two sections '{name}'"):
        ObjectSpec.parse(doubled(name))


def test_other_sections_may_share_a_name():
    assert ObjectSpec.parse(doubled(".strtab")).programs.keys() == {"xdp_counter"}


def test_unreadable_paths(tmp_path: Path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        listener.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "missing.o", tmp_path, fifo, tmp_path / "socket", "/dev/null", "a\0b"):
            with pytest.raises(ObjectError, match="read"):
                ObjectSpec.read(path)


@pytest.mark.parametrize("name", ["../xdp_counter", ".hidden", "no_such_program", "a/b"])
def test_object_path_refuses(name: str):
    with pytest.raises(ObjectError):
        object_path(name)


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        ("xdp", ("xdp", "xdp")),
        ("?xdp", ("xdp", "xdp")),
        ("xdp.frags", ("xdp", "xdp")),
        ("tc", ("sched_cls", "")),
        ("tcx/ingress", ("sched_cls", "tcx_ingress")),
        ("tp_btf/sched_switch", ("tracing", "trace_raw_tp")),
        ("tp/sched/sched_switch", ("tracepoint", "")),
        ("kprobe.multi/tcp_*", ("kprobe", "trace_kprobe_multi")),
        ("syscall", ("syscall", "")),
        ("xdp.frags/devmap", ("xdp", "xdp_devmap")),
        ("freplace/subprog", ("ext", "")),
        ("lirc_mode2", ("lirc_mode2", "lirc_mode2")),
        ("cgroup/connect4", ("cgroup_sock_addr", "cgroup_inet4_connect")),
        ("uretprobe.s//bin/bash:readline", ("kprobe", "")),
        ("xdp/mine", ("unspec", "")),
        ("xdpx", ("unspec", "")),
        ("", ("unspec", "")),
    ],
)
def test_section_names(section: str, kind: tuple[str, str]):
    assert program_kind(section) == kind


@pytest.mark.parametrize("behind", ["", "/x"])
@pytest.mark.parametrize("name", _SECTIONS)
def test_section_names_mean_what_libbpf_takes_them_for(name: str, behind: str):
    try:
        ask = libbpf.library().libbpf_prog_type_by_name
    except FeatureError as error:
        pytest.skip(str(error))
    kind, attach = ctypes.c_int(), ctypes.c_int()
    ask.argtypes = (ctypes.c_char_p, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
    known = ask((name + behind).encode(), ctypes.byref(kind), ctypes.byref(attach)) >= 0
    if not known and name in ("tcx/ingress", "tcx/egress", "netfilter") and not behind:
        return  # of libbpf 1.3
    assert PROGRAM_TYPES[kind.value if known else 0] == program_kind(name + behind)[0]
