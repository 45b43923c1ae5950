"""Logs of the verifier, recorded from the programs in tests/netns/bpf/rejected, and what people are told.

Those of kernel 6.18 lie in `logs`, those of older ones in its folders.
"""

from __future__ import annotations

import errno
import mmap
from pathlib import Path

import pytest

from mapek.bpf import ObjectSpec, object_path, objects
from mapek.bpf.verifier import Complaint, complaint
from mapek.errors import VerifierError

LOGS = Path(__file__).parent / "logs"


@pytest.mark.parametrize(
    ("name", "register", "number", "cure"),
    [
        ("packet_bounds", "R1, which is pkt(r=0)", 23, "data_end"),
        ("null_value", "R0, which is map_value_or_null(id=1,map=numbers,ks=4,vs=32)", 32, "NULL"),
        ("value_bounds", "R0, which is map_value(map=numbers,ks=4,vs=32)", 41, "size of the map's value"),
        ("unbounded_index", "R0, which is map_value(map=numbers", 50, "bound the index"),
        ("not_set", "R5", 58, "on every way"),
        ("no_end", "R1, which is 1", 65, "bound that shrinks"),
        ("kept", "", 76, "release on every way"),
        ("other_type", "", 82, "helper that this program type"),
        ("no_pointer", "R0, which is scalar()", 90, "bpf_probe_read_kernel"),
        ("context_field", "", 96, "field that this program type has"),
        ("deep_stack", "R10, which is fp0", 102, "less than 512 bytes"),
        ("wrong_argument", "R1, which is", 109, "give the helper what it wants"),
        ("packet_offset", "", 119, "bound the index"),
        ("moved_pointer", "R1, which is pkt(", 125, "only add to a pointer"),
        ("untested_value", "R0, which is map_value_or_null(", 135, "NULL"),
        ("moved_context", "", 145, "offsets that are constant"),
        ("deep_calls", "", 0, "less than 512 bytes"),
        ("wrong_return", "R0, which is 7", 167, "return only what"),
        ("too_large", "", 176, "make loops shorter"),
        ("kept_lock", "", 200, "release on every way"),
        ("licence", "", 0, "license it so"),
    ],
)
def test_each_kind_names_the_register_the_line_and_the_cure(name: str, register: str, number: int, cure: str):
    found = complaint((LOGS / f"{name}.log").read_text("utf-8"))
    assert found.register.startswith(register)
    assert bool(found.register) == bool(register)
    assert cure in found.cure
    if number:
        assert found.place == f"rejected.bpf.c:{number}"
        source = (Path(__file__).parents[2] / "netns/bpf/rejected/rejected.bpf.c").read_text("utf-8")
        assert found.line in source.splitlines()[number - 1]


@pytest.mark.parametrize("kernel", ["5.10", "6.1"])
def test_the_words_of_older_kernels_have_the_same_cure(kernel: str):
    recorded = {one.stem for one in LOGS.glob("*.log")} - {"licence"}
    # The log of 5.10 to too_large is full before the verdict: test_a_log_that_is_full.
    lost = {"too_large"} if kernel == "5.10" else set()
    older = {one.stem: complaint(one.read_text("utf-8")) for one in (LOGS / kernel).glob("*.log")}
    assert older.keys() == recorded - lost
    for name, found in older.items():
        newer = complaint((LOGS / f"{name}.log").read_text("utf-8"))
        assert (name, found.cure, found.line) == (name, newer.cure, newer.line)
        assert found.place == ""


def test_a_log_that_is_full():
    with mmap.mmap(-1, objects._LOG_SIZE) as log:
        row = b"7: (85) call bpf_get_prandom_u32#7\n"
        log.write(row * ((objects._LOG_SIZE - 1) // len(row)))
        error = objects._load_error(ObjectSpec.read(object_path("empty")), errno.ENOSPC, log)
    assert isinstance(error, VerifierError)
    assert "filled its log of 16 MiB before it came to an end; make loops shorter" in str(error)
    assert error.log.startswith("7: (85)")


def test_every_recorded_log_is_looked_at():
    names = {one.stem for one in LOGS.glob("*.log")}
    assert len(names) >= 10
    assert all(complaint((LOGS / f"{name}.log").read_text("utf-8")).cure for name in names)


def test_a_program_that_is_too_large():
    found = complaint(
        "12: (bf) r6 = r1\nBPF program is too large. Processed 1000001 insn\nprocessed 1000001 insns\n"
    )
    assert "make loops shorter" in found.cure


@pytest.mark.parametrize("log", ["", "\0" * 9, "processed 5 insns (limit 1000000)\n"])
def test_no_complaint(log: str):
    assert complaint(log) == Complaint("")


def test_an_unknown_complaint_has_no_cure():
    assert complaint("0: (95) exit\nsomething new\n") == Complaint("something new")


def test_code_that_comes_from_no_line_does_not_hide_the_line_before():
    found = complaint("; good line @ a.c:7\n1: (07) r2 += -4\n;  @ a.c:0\n2: (95) exit\nR0 !read_ok\n")
    assert (found.place, found.line) == ("a.c:7", "good line")
