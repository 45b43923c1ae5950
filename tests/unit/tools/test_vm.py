"""tools.vm without a guest: what apt says in, what QEMU and the reader of the table get out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.vm import boot
from tools.vm.apt import Archive
from tools.vm.catalogue import CATALOGUE, entries
from tools.vm.initramfs import load_order, pack
from tools.vm.problem import Problem
from tools.vm.results import Result, of_junit, once_more, table, write_summary
from tools.vm.store import Kernel

ROOT = Path(__file__).resolve().parents[3]

TARGETS = """\
https://other.example/apt tool-bookworm
http://one.example/debian/ bookworm
http://one.example/debian/ bookworm-updates
http://two.example/debian-security/ bookworm-security
"""


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (TARGETS, Archive("http://one.example/debian/", "http://two.example/debian-security/")),
        ("http://one.example/debian/ stable\n", Archive("http://one.example/debian/", None)),
        ("http://one.example/debian/ sid\n\nnonsense\n", Archive("http://one.example/debian/", None)),
    ],
)
def test_the_archive_is_the_one_of_apt(targets: str, found: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAPEK_DEBIAN_ARCHIVE", raising=False)
    assert Archive.parse(targets) == found


@pytest.mark.parametrize(
    "targets", ["", "http://one.example/ubuntu/ noble\n", "https://x.example/apt tool-bookworm\n"]
)
def test_no_archive_is_a_problem_unless_one_is_named(targets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAPEK_DEBIAN_ARCHIVE", raising=False)
    with pytest.raises(Problem, match="MAPEK_DEBIAN_ARCHIVE"):
        Archive.parse(targets)
    monkeypatch.setenv("MAPEK_DEBIAN_ARCHIVE", "http://named.example/debian")
    assert Archive.parse(targets).main == "http://named.example/debian"


@pytest.mark.parametrize(
    ("suite", "suites"),
    [
        ("bullseye", ["bullseye", "bullseye-security"]),
        ("sid", ["sid"]),
        ("trixie-backports", ["trixie-backports"]),
    ],
)
def test_every_source_is_signed(suite: str, suites: list[str]) -> None:
    lines = Archive("http://m.example/debian", "http://s.example/sec").sources(suite).splitlines()
    assert [line.split()[3] for line in lines] == suites
    assert all("[signed-by=/usr/share/keyrings/" in line for line in lines)


DEP = """\
kernel/fs/netfs/netfs.ko.xz: kernel/fs/fscache/fscache.ko.xz
kernel/fs/fscache/fscache.ko.xz:
kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz kernel/fs/fscache/fscache.ko.xz
kernel/net/9p/9pnet.ko.xz:
kernel/drivers/char/hw_random/virtio-rng.ko.xz:
"""


@pytest.mark.parametrize(
    ("wanted", "order"),
    [
        (["9p"], ["fscache", "netfs", "9pnet", "9p"]),
        (["virtio_rng", "9pnet", "9p"], ["virtio-rng", "9pnet", "fscache", "netfs", "9p"]),
        (["built_in"], []),
    ],
)
def test_modules_come_after_what_they_need(wanted: list[str], order: list[str]) -> None:
    assert [Path(path).name.removesuffix(".ko.xz") for path in load_order(DEP, wanted)] == order


def unpack(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Mode and content by name, after the kernel's Documentation/driver-api/early-userspace/buffer-format."""
    found, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        data_at = (at + 110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[data_at : data_at + size])
        at = (data_at + size + 3) & ~3


def test_the_initramfs_is_read_back() -> None:
    packed = pack([("init", b"#!/bin/sh\n"), ("mods/a/b.ko", b"x" * 5), ("mods/a/c.ko", b"")])
    assert unpack(packed) == {
        "init": (0o100755, b"#!/bin/sh\n"), "mods": (0o40755, b""), "mods/a": (0o40755, b""),
        "mods/a/b.ko": (0o100755, b"x" * 5), "mods/a/c.ko": (0o100755, b""),
    }  # fmt: skip
    assert len(packed) % 4 == 0


@pytest.mark.parametrize(
    ("command", "printed"),
    [(["echo $A; exit 7"], "a 'b\n"), (["sh", "-c", 'echo "$0"; exit 7', "two  words"], "two  words\n")],
)
def test_the_guests_script_keeps_words_status_and_folder(
    command: list[str], printed: str, tmp_path: Path
) -> None:
    text = boot.script(command, {"A": "a 'b"})
    done = subprocess.run(["sh"], input=text, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (7, printed)
    assert f"cd {os.getcwd()}" in text


def test_the_root_is_read_only_and_btf_hides_on_request() -> None:
    kernel = Kernel("6.1.0-1-amd64", Path("/k"))
    line = boot.qemu(boot.Guest(kernel), Path("/i"), Path("/c"), 3, 4)
    assert "local,id=root,path=/,readonly=on,security_model=none,multidevs=remap" in line
    assert not any("vm.btf" in word for word in line)
    hidden = boot.qemu(boot.Guest(kernel, hides_btf=True), Path("/i"), Path("/c"), 3, 4)
    assert any("vm.btf=hidden" in word for word in hidden)


JUNIT = """<?xml version="1.0"?><testsuites><testsuite>
<testcase classname="t.a" name="one"/><testcase classname="t.a" name="two"/>
<testcase classname="t.a" name="bad"><failure message="m">the text</failure></testcase>
<testcase classname="t.a" name="broken"><error message="no text"/></testcase>
<testcase classname="t.b" name="later"><skipped message="tcx needs Linux 6.6"/></testcase>
</testsuite></testsuites>"""


def test_results_are_those_of_junit(tmp_path: Path) -> None:
    (tmp_path / "j.xml").write_text(JUNIT)
    found = of_junit(tmp_path / "j.xml", "5.10", "5.10.0-1-amd64")
    assert found.passed == 2
    assert found.failed == {"t.a::bad": "the text", "t.a::broken": "no text"}
    assert found.skipped == {"t.b::later": "tcx needs Linux 6.6"}
    assert not found.good
    shown = table([found]).splitlines()
    assert shown[1].split() == ["5.10", "5.10.0-1-amd64", "2", "2", "1", "0", "0"]
    assert shown[2] == "5.10: 1 skipped: tcx needs Linux 6.6"
    write_summary([found], tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text())[0]["passed"] == 2


def test_what_failed_has_a_second_chance() -> None:
    first = Result("a", "r", 3, failed={"x": "why x", "y": "why y"})
    second = once_more(first, Result("a", "r", 1, failed={"y": "again"}))
    assert (second.passed, second.failed, second.again) == (4, {"y": "again"}, {"x": "why x"})
    assert table([second]).splitlines()[-1] == "a: passed only when it ran again, alone: x"
    # A second run that did not run them all proves nothing.
    assert once_more(first, Result("a", "r", 1)) == first


@pytest.mark.parametrize(
    ("result", "good"),
    [
        (Result("a", "r", 3), True),
        (Result("a", "r", 3, skipped={"x": "y"}), True),
        (Result("a", "r", 3, failed={"x": "y"}), False),
        (Result("a", "r"), False),  # a guest that ran nothing proves nothing
    ],
)
def test_what_is_good(result: Result, good: bool) -> None:
    assert result.good is good


def test_a_guest_without_a_report_passed_nothing(tmp_path: Path) -> None:
    assert of_junit(tmp_path / "none.xml", "5.10", "r") == Result("5.10", "r")


def test_the_catalogue() -> None:
    assert entries([]) == list(CATALOGUE)
    assert [entry.name for entry in entries(["6.12", "5.10"])] == ["6.12", "5.10"]
    with pytest.raises(Problem, match=r"'5\.15' is none of 5\.10, "):
        entries(["5.15"])
    hidden = [entry for entry in CATALOGUE if entry.hides_btf]
    assert hidden
    assert all("btf" not in entry.promises for entry in hidden)
    assert all("btf" in entry.promises for entry in CATALOGUE if not entry.hides_btf)


def test_a_wrong_name_is_one_line_and_exit_status_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.vm", "run", "2.4", "true"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "'2.4' is none of" in done.stderr
