"""The suite's own guards: a skip that nothing excuses fails, and what a test leaves behind fails the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import machine, thin

ROOT = Path(__file__).resolve().parents[2]

SKIPS = """
import pytest
def test_skips():
    pytest.skip("no reason at all")
"""
NEEDS_NOTHING_KNOWN = """
import pytest
@pytest.mark.needs("a_thing_nobody_has")
def test_needs():
    pass
"""
NEEDS_CONFIGURED = """
import pytest
from tests.support import machine, thin
machine.FEATURES["never"] = machine.Feature(lambda: False, "it never is", strict=False)
machine.FEATURES["promised"] = machine.Feature(lambda: False, "it should be", since=(3, 0))
machine.FEATURES["future"] = machine.Feature(lambda: False, "it comes with Linux 99", since=(99, 0))
@pytest.mark.needs("{name}")
def test_needs():
    pass
"""
ORPHAN = """
import pathlib, subprocess
def test_leaves_a_process():
    started = subprocess.run(
        ["sh", "-c", "{command} >/dev/null 2>&1 & echo $!"], capture_output=True, text=True, check=True
    )
    pathlib.Path(__file__).with_name("pid").write_text(started.stdout)
"""


def _pytest(folder: Path, source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_inner.py").write_text(source)
    unset = ("MAPEK_REQUIRE_ALL", "MAPEK_LEAKS", "MAPEK_PROMISED", "MAPEK_ROWS")
    inherited = {key: value for key, value in os.environ.items() if key not in unset}
    options = ["-c", str(ROOT / "pyproject.toml"), "-p", "tests.conftest", "-p", "no:cacheprovider", "-rs"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(folder / "test_inner.py")],
        cwd=ROOT, env=inherited | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("source", "environment", "code", "said"),
    [
        (SKIPS, {}, 0, "no reason at all"),
        (SKIPS, {"MAPEK_REQUIRE_ALL": "1"}, 1, "skipped where the machine has what the test needs: Skipped"),
        (NEEDS_NOTHING_KNOWN, {}, 4, "'a_thing_nobody_has', which tests/support/machine.py lacks"),
        (NEEDS_CONFIGURED.replace("{name}", "never"), {}, 0, "it never is"),
        (NEEDS_CONFIGURED.replace("{name}", "never"), {"MAPEK_REQUIRE_ALL": "1"}, 0, "it never is"),
        (NEEDS_CONFIGURED.replace("{name}", "promised"), {"MAPEK_REQUIRE_ALL": "1"}, 1, "it should be"),
        (
            NEEDS_CONFIGURED.replace("{name}", "never"),
            {"MAPEK_PROMISED": "btf,never"},
            1,
            "was said to have it",
        ),
        (NEEDS_CONFIGURED.replace("{name}", "future"), {}, 0, "it comes with Linux 99"),
    ],
    ids=["plain", "plain-ci", "unknown", "configured", "configured-ci", "promised-ci", "said", "future"],
)
def test_a_skip_must_be_excused(
    tmp_path: Path, source: str, environment: dict[str, str], code: int, said: str
) -> None:
    done = _pytest(tmp_path, source, **environment)
    assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done.stdout + done.stderr


def test_an_older_kernel_excuses_a_skip_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAPEK_REQUIRE_ALL", "1")
    monkeypatch.setattr(machine, "capable", lambda: True)
    future = machine.Feature(lambda: False, "it comes with Linux 99", since=(99, 0))
    monkeypatch.setitem(machine.FEATURES, "future", future)
    assert machine.verdict(("future",)) == ("it comes with Linux 99", False)
    monkeypatch.setenv("MAPEK_PROMISED", "future")
    answer = machine.verdict(("future",))
    assert answer is not None
    assert answer[1]


def test_a_deadline_is_stretched_where_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAPEK_TIME_SCALE", raising=False)
    assert machine.patience(2.0) == 2.0
    monkeypatch.setenv("MAPEK_TIME_SCALE", "20")
    assert machine.patience(2.0) == 40.0


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ("", "a0 a1 a2 a3 a4 b0"),
        ("1", "a0 b0"),
        ("2", "a0 a4 b0"),
        ("3", "a0 a2 a4 b0"),
        ("9", "a0 a1 a2 a3 a4 b0"),
        ("0/3", "a0 b0"),
        ("1/3", "a2 b0"),
        ("2/3", "a4 b0"),
        ("7/9", "a2 b0"),
    ],
)
def test_long_tables_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch, keep: str, kept: str) -> None:
    monkeypatch.setenv("MAPEK_ROWS", keep)
    found = "a0 a1 a2 a3 a4 b0".split()
    chosen, left = thin.thinned(found, lambda row: row[0], thin.rows())
    assert chosen == kept.split()
    assert sorted(chosen + left) == found


def test_rows_that_run_here_are_kept_first() -> None:
    found = "a0 a1 a2 b0".split()
    chosen, left = thin.thinned(found, lambda row: row[0], (1, None), lambda row: row in ("a1", "a2"))
    assert chosen == ["a1", "b0"]
    assert left == ["a0", "a2"]


TABLE = """
import pytest
@pytest.mark.parametrize("row", range(9))
def test_row(row):
    print("row", row)
"""


def test_a_run_may_be_thinned(tmp_path: Path) -> None:
    assert "9 passed" in _pytest(tmp_path, TABLE).stdout
    assert "2 passed, 7 deselected" in _pytest(tmp_path, TABLE, MAPEK_ROWS="2").stdout
    whole = TABLE.replace("def test_row", "@pytest.mark.each_row\ndef test_row")
    assert "9 passed" in _pytest(tmp_path, whole, MAPEK_ROWS="2").stdout


def _leave(tmp_path: Path, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    try:
        return _pytest(tmp_path, ORPHAN.replace("{command}", command), **environment)
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


@pytest.mark.parametrize(
    ("environment", "code"), [({}, 1), ({"MAPEK_LEAKS": "end"}, 1), ({"MAPEK_LEAKS": "report"}, 0)]
)
def test_a_left_process_fails_the_run(tmp_path: Path, environment: dict[str, str], code: int) -> None:
    done = _leave(tmp_path, "sleep 50", **environment)
    assert done.returncode == code, done.stdout
    assert "sleep 50" in done.stdout.partition("left behind by the tests")[2]


@pytest.mark.netns
def test_a_left_namespace_fails_the_run(tmp_path: Path) -> None:
    done = _leave(tmp_path, "exec unshare --net sleep 50")
    assert done.returncode == 1, done.stdout
    assert "network namespace net:[" in done.stdout.partition("left behind by the tests")[2]


def test_a_promised_feature_may_not_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    promised = machine.Feature(lambda: False, "gone", since=(3, 0))
    monkeypatch.setitem(machine.FEATURES, "promised", promised)
    monkeypatch.setattr(machine, "capable", lambda: True)
    answer = machine.verdict(("promised",))
    assert answer is not None
    assert answer[1]
    assert "yet Linux" in answer[0]
    machine.has.cache_clear()


def test_a_future_feature_is_excused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAPEK_REQUIRE_ALL", raising=False)
    monkeypatch.setitem(machine.FEATURES, "future", machine.Feature(lambda: False, "too old", since=(99, 0)))
    assert machine.verdict(("future",)) == ("too old", False)
    machine.has.cache_clear()
