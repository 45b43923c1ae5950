"""Recording a run and replaying it, and what is said of recordings that cannot be replayed."""

# ruff: noqa: E501 -- messages stand here as they are printed, on one line
from __future__ import annotations

import io
import json
import shutil
import signal
from pathlib import Path

import pytest

from mapek.cli import main
from mapek.knowledge.topology import Topology
from mapek.simulations.recording import About, RecordingWriter
from tests.unit.cli.test_commands import ROOT, _line, _run, _start

NODE = """\
[node]
name = "a"
[service]
listen = ""
[record]
file = "run.mcap"
[sensors.link_watch]
enabled = false
[sensors.netlink]
enabled = false
[sensors.xdp_counter]
enabled = false
"""


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    (tmp_path / "node.toml").write_text(NODE)
    process = _start("run", "--json", "-c", str(tmp_path / "node.toml"))
    try:
        assert _line(process)["type"] == "ready"
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, error) == (0, "")
    return tmp_path / "run.mcap"


def test_a_run_is_recorded_and_replayed(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--json", str(recording)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["node"], found["damage"]) == ("a", "")
    assert main(["replay", str(recording)]) == 0
    assert "0 recorded, 0 replayed: nothing to compare" in capsys.readouterr().out


def test_with_another_configuration(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = recording.parent / "other.toml"
    other.write_text("[policies.link_failover]\nhold_down_s = 9\n")
    assert main(["replay", "-c", str(other), str(recording)]) == 0
    other.write_text("[policies.link_failover]\nhold_dwn_s = 9\n")
    assert main(["replay", "-c", str(other), str(recording)]) == 2
    assert 'did you mean "hold_down_s"?' in capsys.readouterr().err


@pytest.mark.parametrize("data", [b"", b"no recording", b"\x89MCAP0\r\n" + b"\xff" * 100])
def test_what_is_no_recording(tmp_path: Path, data: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.mcap").write_bytes(data)
    assert main(["replay", str(tmp_path / "bad.mcap")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "it names no analyzers; name a configuration with -c FILE.toml"),
        ({"analyzers": {"x": {"plugin": "../x", "options": {}}}}, "its analyzers are no table of plugins; record it anew"),
        ({"analyzers": {"x": {"plugin": "os.system", "options": {}}}}, "its analyzers are no table of plugins; record it anew"),
        ({"analyzers": {"x": 7}}, "its analyzers are no table of plugins; record it anew"),
    ],
)  # fmt: skip
def test_a_recording_does_not_choose_what_runs(
    tmp_path: Path, config: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    buffer = io.BytesIO()
    RecordingWriter(buffer, About(Topology("a"), config)).finish()
    file = tmp_path / "r.mcap"
    file.write_bytes(buffer.getvalue())
    assert main(["replay", str(file)]) == 1
    assert capsys.readouterr().err == f"mapek: replay {file}: {message}\n"


def test_a_recording_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(NODE.replace("run.mcap", "none/run.mcap"))
    code, _, error = _run("run", "-c", str(tmp_path / "node.toml"))
    assert code == 1
    assert error == (
        f"mapek: record to {tmp_path}/none/run.mcap: No such file or directory; name a file that can be written\n"
    )


@pytest.mark.needs("root")
def test_the_demo_says_what_is_missing() -> None:
    import subprocess
    import sys

    if shutil.which("setpriv") is None:
        pytest.fail("setpriv (util-linux) is missing")
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-m", "mapek", "demo"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=50,
        check=False,
    )
    assert "Traceback" not in done.stderr
    first, second, *_ = done.stdout.splitlines()
    assert first == "the lab cannot run here:"
    assert second.strip().startswith("without CAP_SYS_ADMIN, CAP_NET_ADMIN")
    shipped = list((ROOT / "mapek/simulations/recordings").glob("*.mcap"))
    assert done.returncode == (0 if shipped else 1), done.stderr
