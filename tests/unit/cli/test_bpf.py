"""`mapek bpf validate | explain` as people call them: exit codes, text, JSON and pictures."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from mapek.bpf import object_path
from mapek.cli import main

COUNTER = object_path("xdp_counter")
OTHER = COUNTER.with_name("xdp_counter.bpfeb.o" if ".bpfel." in COUNTER.name else "xdp_counter.bpfel.o")


def test_a_valid_object(capsys: pytest.CaptureFixture[str]):
    assert main(["bpf", "validate", "xdp_counter"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"{COUNTER}: valid"
    assert "instructions" in out


def test_a_refused_object_says_why(capsys: pytest.CaptureFixture[str]):
    assert main(["bpf", "validate", str(OTHER)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("refuse object: it is")
    assert out.splitlines()[-1] == f"{OTHER}: refused for 1 reason"


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]):
    assert main(["bpf", "validate", str(OTHER), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert [one["severity"] for one in told["findings"]] == ["refuse"]
    assert told["sha256"] == hashlib.sha256(OTHER.read_bytes()).hexdigest()
    assert told["sizes"]["xdp_counter"]["slots"] > told["sizes"]["xdp_counter"]["longest"] > 0


def test_rules_and_digests(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rules, sums = tmp_path / "rules.toml", tmp_path / "sums"
    rules.write_text('[helpers]\nxdp = ["map_lookup_elem"]\n')
    assert main(["bpf", "validate", "xdp_counter", "--rules", str(rules)]) == 1
    assert "helper ringbuf_reserve is not allowed in xdp" in capsys.readouterr().out
    sums.write_text("0" * 64 + "  other.o\n")
    assert main(["bpf", "validate", "xdp_counter", "--sha256", str(sums)]) == 1
    assert "is not on the list" in capsys.readouterr().out
    sums.write_text(f"{hashlib.sha256(COUNTER.read_bytes()).hexdigest()}  {COUNTER.name}\n")
    assert main(["bpf", "validate", "xdp_counter", "--sha256", str(sums)]) == 0
    rules.write_text("mapps = 1")
    assert main(["bpf", "validate", "xdp_counter", "--rules", str(rules)]) == 2
    assert "unknown key 'mapps'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["validate", "explain"])
@pytest.mark.parametrize("given", ["no_such_program", "./missing.o", "/dev/null"])
def test_what_is_no_object(command: str, given: str, capsys: pytest.CaptureFixture[str]):
    assert main(["bpf", command, given]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("mapek: ")
    assert said.err.count("\n") == 1


def test_explain_in_words_and_as_json(capsys: pytest.CaptureFixture[str]):
    assert main(["bpf", "explain", "xdp_counter"]) == 0
    out = capsys.readouterr().out
    assert "returns   XDP_PASS" in out
    assert "cannot    drop packets" in out
    assert "map       counters (percpu_array, 24 entries of 4 + 16 bytes" in out
    assert main(["bpf", "explain", str(COUNTER), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (program,) = told["programs"]
    assert program["can"]["drop packets"]["answer"] == "no"
    assert program["can"]["read packets"]["where"][0]["line"] > 0


def test_a_sensor_is_all_of_its_objects(capsys: pytest.CaptureFixture[str]):
    assert main(["bpf", "explain", "net_events", "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(one["path"]).name.partition(".")[0] for one in told] == ["net_events", "net_events_tp"]
    assert not any(one["other_build"] for one in told)
    # Only the first of them has it.
    assert main(["bpf", "explain", "net_events", "--program", "net_receive", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == told[0]["path"]
    # What is no sensor is the one object of that name, whatever others begin like it.
    assert main(["bpf", "explain", "empty", "--json"]) == 0
    json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("command", ["explain", "validate"])
def test_a_sensor_without_a_program(command: str, capsys: pytest.CaptureFixture[str]):
    assert main(["bpf", command, "psi"]) == 1
    assert "this sensor has none in the kernel; see docs/sensors/psi.md" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["²", "٣", "9" * 5000])
def test_what_looks_like_a_number(given: str, capsys: pytest.CaptureFixture[str]):
    assert main(["bpf", "explain", given]) == 1
    assert f"find program {given[:40]}: " in capsys.readouterr().err
    assert main(["bpf", "profile", given]) == 2
    assert "no sensor with a program of its own" in capsys.readouterr().err


def test_explain_one_program(capsys: pytest.CaptureFixture[str]):
    assert main(["bpf", "explain", "link_watch", "--program", "stamp", "--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)["programs"]] == ["stamp"]
    assert main(["bpf", "explain", "link_watch", "--program", "none"]) == 1
    assert "no program 'none'; it has" in capsys.readouterr().err


@pytest.mark.needs("graphviz")
def test_the_picture_is_one_that_graphviz_draws(capsys: pytest.CaptureFixture[str]):
    assert main(["bpf", "explain", "xdp_counter", "--dot"]) == 0
    picture = capsys.readouterr().out
    assert picture.startswith("digraph bpf {")
    if (graphviz := shutil.which("dot")) is None:
        pytest.skip("no dot to draw it; apt-get install graphviz")
    subprocess.run([graphviz, "-Tsvg"], input=picture, text=True, check=True, capture_output=True)


def test_one_form_at_a_time():
    with pytest.raises(SystemExit) as caught:
        main(["bpf", "explain", "empty", "--json", "--dot"])
    assert caught.value.code == 2
