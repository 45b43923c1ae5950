"""What is refused before loading, each with its place and reason, and what is not."""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from mapek.bpf import MapSpec, ObjectSpec, helpers, object_path, words
from mapek.bpf.elf import parse
from mapek.bpf.rules import HELPERS, Rules, read, read_digests
from mapek.bpf.validate import map_bytes, refuse, validate
from mapek.errors import ConfigError, ObjectError

OBJECTS = sorted(object_path("empty").parent.glob("*.o"))
EMPTY = ObjectSpec.read(object_path("empty"))
COUNTER = ObjectSpec.read(object_path("xdp_counter"))
RETURN_PASS = struct.pack("=BBhi", 0xB4, 0, 0, 2)
BIG = object_path("xdp_counter").with_name("xdp_counter.bpfeb.o")


def with_instruction(*instruction: int) -> ObjectSpec:
    """The empty program with its `r0 = XDP_PASS` replaced."""
    assert EMPTY.raw.count(RETURN_PASS) == 1
    return ObjectSpec.parse(EMPTY.raw.replace(RETURN_PASS, struct.pack("=BBhi", *instruction)), "bad.o")


def calling(name: str, license_: bytes = b"") -> ObjectSpec:
    spec = with_instruction(0x85, 0, 0, helpers.NAMES.index(name))
    if license_:
        old = b"Dual BSD/GPL\0"
        assert spec.raw.count(old) == 1
        spec = ObjectSpec.parse(spec.raw.replace(old, license_.ljust(len(old), b"\0")), "bad.o")
    return spec


def refused(spec: ObjectSpec, rules: Rules | None = None) -> list[str]:
    return [str(one) for one in validate(spec, rules).findings if one.severity == "refuse"]


@pytest.mark.parametrize("path", OBJECTS, ids=lambda p: p.name)
def test_ours_are_valid(path: Path):
    spec = ObjectSpec.read(path)
    report = validate(spec, Rules(byteorder=spec.byteorder))
    assert report.findings == ()
    assert report.ok
    assert report.error() is None
    assert {name: one.slots for name, one in report.sizes.items()}.keys() == spec.programs.keys()
    assert words.report(report).splitlines()[-1].endswith(": valid")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (ObjectSpec.read(BIG), "big-endian, the machine little"),
        (with_instruction(0x95, 0, 0, 0), "1 instructions from 1 on cannot be reached"),
        (with_instruction(0x05, 0, 9, 0), r"instruction 0 \(.*empty.bpf.c:\d+\) leaves it"),
        (with_instruction(0xFF, 0, 0, 0), "instruction 0 is none: unknown code 0xff"),
        (with_instruction(0xE5, 0, 0, 0), ""),
        (with_instruction(0x85, 0, 0, 9999), "helper 9999 is not allowed in xdp"),
        (with_instruction(0x85, 0x20, 0, 77), "kernel function without a name is not allowed"),
        (calling("probe_write_user"), "probe_write_user is not allowed in xdp: it writes user memory"),
        (calling("send_signal"), "kills processes"),
        (calling("probe_read_kernel"), "reads kernel memory"),
        (calling("probe_read"), "reads user memory, reads kernel memory"),
        (calling("snprintf"), "reads user memory, reads kernel memory"),
        (calling("trace_printk"), "reads user memory, reads kernel memory"),
        (calling("snprintf_btf"), "reads kernel memory"),
        (calling("per_cpu_ptr"), "reads kernel memory"),
        (calling("skc_to_tcp_sock"), "reads kernel memory"),
        (calling("ktime_get_ns", b"Proprietary"), ""),
        (calling("fib_lookup", b"Proprietary"), "fib_lookup only serve GPL-compatible.*'Proprietary'"),
        (calling("fib_lookup", b"GPL"), ""),
        (calling("fib_lookup", b"GPL v3"), "GPL-compatible"),
        (calling("ktime_get_ns", b"GPL\0MIT"), "license: it has 2 licences"),
        (replace(EMPTY, programs={}), "it has no programs"),
        (
            replace(EMPTY, maps={str(i): MapSpec(str(i), "array", 4, 8, 1, 0) for i in range(1000)}),
            "1000 of them, more than 64",
        ),
        (
            replace(EMPTY, maps={"huge": MapSpec("huge", "array", 4, 8, 1 << 28, 0)}),
            "map huge would take 2048 MiB, all maps 2048, more than 1024",
        ),
        (replace(EMPTY, maps={"odd": MapSpec("odd", "type 99", 4, 8, 1, 0)}), "map odd: its type is type 99"),
        (
            replace(
                EMPTY, programs={"empty": replace(EMPTY.programs["empty"], type="unspec", section="what")}
            ),
            "nothing is known of section 'what'",
        ),
        (
            replace(EMPTY, programs={"empty": replace(EMPTY.programs["empty"], type="struct_ops")}),
            "programs of type struct_ops are not allowed",
        ),
    ],
)
def test_what_is_refused(spec: ObjectSpec, says: str):
    found = refused(spec)
    if not says:
        assert found == []
        return
    assert any(re.search(says, one) for one in found), found
    assert all("\n" not in one for one in found)
    report = validate(spec)
    assert not report.ok
    error = report.error()
    assert error is not None
    assert error.do
    if len(found) > 1:
        assert f"(and {len(found) - 1} more" in error.why
    assert "refused" in words.report(report).splitlines()[-1]


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (Rules(sha256=frozenset()), "is not on the list"),
        (Rules(helpers={"xdp": ["map_lookup_elem"]}), "helper tail_call is not allowed"),
        (Rules(helpers={"sched_cls": HELPERS["sched_cls"]}), "programs of type xdp are not allowed"),
        (Rules(maps=4), "5 of them, more than 4"),
        (Rules(map_bytes=1000), "map samples would take"),
        (Rules(slots=50), "instructions, more than 50"),
    ],
)
def test_rules_can_be_tighter(rules: Rules, says: str):
    assert any(says in one for one in refused(COUNTER, rules)), refused(COUNTER, rules)


def test_percpu_maps_count_once_for_each_cpu():
    one = MapSpec("m", "percpu_array", 4, 16, 10, 0)
    assert (map_bytes(one, 1), map_bytes(one, 8)) == (160, 1280)
    assert map_bytes(MapSpec("m", "ringbuf", 0, 0, 4096, 0), 8) == 4096
    assert map_bytes(MapSpec("m", "arena", 0, 0, 16, 0), 8) == 16 * mmap.PAGESIZE


def test_the_loader_counts_per_cpu_maps_for_the_cpus_of_the_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mapek.bpf.cpus.possible_cpus", lambda: 256)
    half_a_gib = {"counters": 1 << 25}
    assert map_bytes(replace(COUNTER.maps["counters"], max_entries=1 << 25), 1) == 1 << 29
    with pytest.raises(ObjectError, match="map counters would take 131072 MiB"):
        refuse(COUNTER, half_a_gib, ())
    refuse(COUNTER, {"counters": 1 << 17}, ())


def test_a_helper_that_no_program_type_may_call_is_in_no_default():
    for kind, names in HELPERS.items():
        for effect in ("writes user memory", "kills processes", "makes kernel functions fail"):
            assert not names & helpers.EFFECTS[effect], kind
    assert {"probe_read_kernel", "probe_read", "trace_printk"} <= HELPERS["tracing"]
    assert "redirect_map" in HELPERS["xdp"]


def test_the_loader_refuses_what_is_refused_here_and_judges_the_maps_that_will_be_made():
    refuse(COUNTER, {}, ())
    for spec in (calling("send_signal"), with_instruction(0x95, 0, 0, 0)):
        for _ in range(2):
            with pytest.raises(ObjectError, match="validate"):
                refuse(spec, {}, ())
    with pytest.raises(ObjectError, match="would take 2048 MiB"):
        refuse(COUNTER, {"samples": 1 << 31}, ())
    refuse(COUNTER, {"samples": 1 << 31}, ["samples"])


RULES = """
maps = 3
map_mib = 2
instructions = 4000
kfuncs = ["bpf_dynptr_from_xdp"]
sha256 = ["%s"]
[helpers]
xdp = ["default", "setsockopt"]
lsm = ["get_current_pid_tgid"]
"""


def test_rules_from_a_file(tmp_path: Path):
    path = tmp_path / "rules.toml"
    path.write_text(RULES % ("A" * 64))
    rules = read(path)
    assert (rules.maps, rules.map_bytes, rules.slots) == (3, 2 << 20, 4000)
    assert rules.sha256 == {"a" * 64}
    assert rules.kfuncs == {"bpf_dynptr_from_xdp"}
    assert rules.helpers.keys() == {"xdp", "lsm"}
    assert set(rules.helpers["xdp"]) == HELPERS["xdp"] | {"setsockopt"}
    assert rules.helpers["lsm"] == {"get_current_pid_tgid"}
    path.write_text("")
    assert read(path) == Rules()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("maps = 'many'", "maps is no number"),
        ("maps = true", "maps is no number"),
        ("map_mib = -1", "map_mib is no number"),
        ("mapps = 1", "unknown key 'mapps'"),
        ("sha256 = ['abc']", "'abc' is no SHA-256"),
        ("kfuncs = 'x'", "kfuncs is no list"),
        ("helpers = 1", "helpers is no table"),
        ("[helpers]\nxdb = []", "unknown program type 'xdb'"),
        ("[helpers]\nxdp = ['map_lookup']", "unknown helper 'map_lookup'"),
        ("[helpers", "no TOML"),
        ("x = " + "[" * 5000, "no TOML"),
        ("#" * (1 << 20) + "\n", "more than 1048576 bytes"),
    ],
)
def test_rules_that_cannot_be_meant(tmp_path: Path, text: str, says: str):
    path = tmp_path / "rules.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_digests_as_sha256sum_writes_them(tmp_path: Path):
    path = tmp_path / "sums"
    path.write_text(f"# ours\n{'0' * 64}  xdp_counter.bpfel.o\n\n{'F' * 64} *other.o\n")
    assert read_digests(path) == {"0" * 64, "f" * 64}
    path.write_bytes(b"\xff\xfe not a digest\n")
    with pytest.raises(ConfigError, match="no SHA-256"):
        read_digests(path)
    with pytest.raises(ConfigError, match="check the path"):
        read_digests(tmp_path / "missing")


def test_a_program_whose_section_holds_no_code_is_not_passed_over():
    # Found by fuzzing: parsed as a program, but not looked into.
    data = bytearray(EMPTY.raw)
    table, count = struct.unpack_from("=Q", data, 40)[0], struct.unpack_from("=H", data, 60)[0]
    for at in range(table, table + 64 * count, 64):
        kind, flags = struct.unpack_from("=IQ", data, at + 4)[0], struct.unpack_from("=Q", data, at + 8)[0]
        if kind == 1 and flags & 4 and struct.unpack_from("=Q", data, at + 32)[0]:
            struct.pack_into("=I", data, at + 4, 7)
    with pytest.raises(ObjectError, match="'empty' lies in a section that holds no code"):
        validate(ObjectSpec.parse(bytes(data)))


def test_a_static_program_is_refused():
    data = bytearray(EMPTY.raw)
    table, count = struct.unpack_from("=Q", data, 40)[0], struct.unpack_from("=H", data, 60)[0]
    heads = [struct.unpack_from("=IIQQQQIIQQ", data, table + 64 * i) for i in range(count)]
    start, size = next((head[4], head[5]) for head in heads if head[1] == 2)
    for at in range(start, start + size, 24):
        if data[at + 4] == 0x12:
            data[at + 4] = 0x02  # STB_GLOBAL to STB_LOCAL, STT_FUNC
    assert "program empty: it is static; libbpf loads none: make it global" in refused(
        ObjectSpec.parse(bytes(data))
    )


def test_maps_of_before_libbpf_1_are_refused():
    # The name of another section, as long as the one that is wanted.
    assert COUNTER.raw.count(b"\0.maps\0") >= 1
    renamed = COUNTER.raw.replace(b"\0.maps\0", b"\0maps\0\0")
    assert any("section `maps`; define them by BTF" in one for one in refused(ObjectSpec.parse(renamed)))


def test_what_a_program_calls_is_judged_with_it():
    # bark() is called back by the timer of `stamp`, and stands in .text, where no program is.
    spec = ObjectSpec.read(object_path("link_watch"))
    section = parse(spec.raw).section(".text")
    assert section is not None
    start = spec.raw.index(bytes(section.data))
    clock, kill = (
        struct.pack("=BBhi", 0x85, 0, 0, helpers.NAMES.index(n)) for n in ("ktime_get_ns", "send_signal")
    )
    at = spec.raw.index(clock, start, start + section.size)
    found = refused(ObjectSpec.parse(spec.raw[:at] + kill + spec.raw[at + 8 :]))
    assert [one.split(" (")[0] for one in found] == [
        "program stamp: helper send_signal is not allowed in sched_cls: it kills processes"
    ]
