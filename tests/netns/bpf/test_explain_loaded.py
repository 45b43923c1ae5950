"""`mapek bpf explain ID`: a program of ours that is loaded is told from its object; a foreign one is refused."""

from __future__ import annotations

import ctypes
import json
import os
import struct

import pytest

from mapek.bpf import ObjectSpec, load, object_path, syscall
from mapek.bpf.inventory import programs
from mapek.cli import main

pytestmark = pytest.mark.netns


def test_ours_by_id(capsys: pytest.CaptureFixture[str]):
    with load(ObjectSpec.read(object_path("syscall_latency")), programs=["raw_tp_exit"]) as loaded:
        ident = loaded.programs["raw_tp_exit"].id
        assert main(["bpf", "explain", str(ident), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in told["programs"]] == ["raw_tp_exit"]


def test_one_of_another_build(capsys: pytest.CaptureFixture[str]):
    here = object_path("syscall_latency")
    line = b"__u64 took = bpf_ktime_get_ns()"
    raw = here.read_bytes()
    assert line in raw
    for data, other in ((raw, False), (raw.replace(line, line.swapcase()), True)):
        with load(ObjectSpec.parse(data, "old.o"), programs=["raw_tp_exit"]) as loaded:
            ident = loaded.programs["raw_tp_exit"].id
            assert main(["bpf", "explain", str(ident)]) == 0
            assert ("loaded from another build" in capsys.readouterr().out) is other
            assert main(["bpf", "explain", str(ident), "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["other_build"] is other


def test_a_foreign_one_and_none(capsys: pytest.CaptureFixture[str]):
    code = ctypes.create_string_buffer(
        struct.pack("=BBhi", 0xB7, 0, 0, 2) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    )
    licence = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack("=IIQQ", 6, 2, ctypes.addressof(code), ctypes.addressof(licence)) + bytes(96)
    before = {one.id for one in programs()}
    fd = syscall.bpf_raw(syscall.PROG_LOAD, attr)
    try:
        (ident,) = {one.id for one in programs()} - before
        assert main(["bpf", "explain", str(ident)]) == 1
        assert "it is foreign" in capsys.readouterr().err
    finally:
        os.close(fd)
    assert main(["bpf", "explain", "4294967295"]) == 1
    assert "no such program is loaded; see mapek bpf list" in capsys.readouterr().err
