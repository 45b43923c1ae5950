"""The demo where there is no lab: it says what is missing and shows the recording, as anybody."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapek.cli import main
from tests.unit.cli.test_commands import ROOT


def _as_nobody() -> list[str]:
    setpriv = shutil.which("setpriv")
    assert setpriv is not None, "setpriv (util-linux) is missing"
    # The interpreter may lie where only root may read; nothing else is allowed.
    only = "-all,+dac_read_search"
    user = ["--reuid=65534", "--regid=65534", "--clear-groups"]
    return [setpriv, *user, f"--inh-caps={only}", f"--ambient-caps={only}"]


@pytest.fixture
def copy() -> Iterator[Path]:
    """A checkout that anybody may read and write; pytest's own folders are for their owner alone."""
    folder = Path(tempfile.mkdtemp(prefix="mapek-demo-"))
    folder.chmod(0o777)
    try:
        ignored = shutil.ignore_patterns("__pycache__", "include", "*.c", "*.h")
        shutil.copytree(ROOT / "mapek", folder / "mapek", ignore=ignored)
        yield folder
    finally:
        shutil.rmtree(folder)


def _check(folder: Path, out: str) -> None:
    assert "healed, MTTR" in out
    assert "detect" in out and "verify" in out  # noqa: PT018
    assert "all decisions" not in out
    assert "decisions as they were made then, byte for byte" in out
    report = json.loads((folder / "report.json").read_text())
    assert set(report) == {"profiles", "peers"}
    for profile in report["profiles"]:
        assert profile["decisions"]["alike"]
        healed = {fault["name"]: fault["recovered"] for fault in profile["faults"]}
        assert healed["path_dead"] >= 2
        assert healed["path_gray"] >= 1


@pytest.mark.needs("root")
def test_as_nobody_with_nothing_on_the_path(copy: Path) -> None:
    done = subprocess.run(
        [*_as_nobody(), sys.executable, "-m", "mapek", "demo"],
        capture_output=True,
        text=True,
        cwd=copy,
        env={"PATH": "", "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    first, second, third, *_ = done.stdout.splitlines()
    assert first == "the lab cannot run here:"
    assert second == "  not root: namespaces, veth and BPF need it; use sudo"
    assert third.startswith("so this is a recording of a lab run")
    _check(copy / "build/demo", done.stdout)


def test_on_demand_and_what_was_there_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trials.json").write_text("of a lab")
    assert main(["demo", "--replay", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("no lab this time: --replay was asked for\n")
    _check(tmp_path, out)
    assert not (tmp_path / "trials.json").exists()
    pytest.importorskip("matplotlib")
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["demo", "--replay", "--out", str(tmp_path)]) == 0
    assert "matplotlib is missing; pip install mapek[plot]" in capsys.readouterr().out
    assert (tmp_path / "report.json").exists()


def test_a_report_that_cannot_be_written_is_said_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", "--replay", "--out", str(tmp_path / "file/demo")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    why = "Not a directory; name a folder of yours with --out"
    assert captured.err == f"mapek: write the report to {tmp_path}/file/demo: {why}\n"
    assert os.listdir(tmp_path) == ["file"]
