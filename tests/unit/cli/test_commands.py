"""The commands as processes: exit codes, one line on stderr, never a traceback."""

# ruff: noqa: E501 -- messages stand here as they are printed, on one line
from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from mapek.cli import main

ROOT = Path(__file__).resolve().parents[3]
QUIET = """\
[node]
name = "a"
[service]
listen = "{listen}"
[plugins]
directory = "plugins"
[sensors.link_watch]
enabled = false
[sensors.netlink]
enabled = false
[sensors.xdp_counter]
enabled = false
[sensors.still]
{options}
[analyzers.path_health]
enabled = false
[policies.link_failover]
enabled = false
"""
STILL = """
from mapek import Touchpoint, take
from mapek.errors import AttachError

class Still(Touchpoint):
    name = "still"

    def __init__(self, options):
        self._fails = take(options, "fails", bool, False)

    async def open(self, surroundings):
        if self._fails:
            raise AttachError("attach xdp to", "wlan9", "there is no such interface", "create it or pass --wait")
"""


def _start(*arguments: str, **options) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mapek", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        **options,
    )


def _run(*arguments: str) -> tuple[int, str, str]:
    process = _start(*arguments)
    out, error = process.communicate(timeout=30)
    assert "Traceback" not in error
    return process.returncode, out, error


@pytest.fixture
def node(tmp_path: Path) -> Path:
    (tmp_path / "plugins").mkdir(mode=0o755)
    (tmp_path / "plugins/still.py").write_text(STILL)
    (tmp_path / "plugins/still.py").chmod(0o644)
    return tmp_path / "node.toml"


def _write(node: Path, listen: str = "127.0.0.1:0", options: str = "") -> str:
    node.write_text(QUIET.format(listen=listen, options=options))
    return str(node)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("no_such_command",),
        ("run",),
        ("run", "-c"),
        ("lab",),
        ("bench", "--trials", "many"),
        ("version", "x"),
    ],
)
def test_a_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    code, out, error = _run(*arguments)
    assert (code, out) == (2, "")
    assert error.startswith("usage: mapek")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("run", "-c", "/none.toml"), "read /none.toml: No such file or directory; name an existing TOML file with -c FILE.toml"),
        (("doctor", "-c", "/none.toml"), "read /none.toml: No such file or directory; name an existing TOML file with -c FILE.toml"),
        (("bench", "--trials", "0"), "run bench: trials or seconds out of range; use at least one trial and 1-3600 s"),
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_2(arguments: tuple[str, ...], line: str) -> None:
    assert _run(*arguments) == (2, "", f"mapek: {line}\n")


def test_an_unknown_key_is_2(node: Path) -> None:
    code, _, error = _run("run", "-c", _write(node, options="fals = true"))
    assert code == 2
    assert error == f'mapek: read {node}: [sensors.still] fals: unknown key; did you mean "fails"?\n'


def test_version() -> None:
    code, out, _ = _run("version", "--json")
    assert code == 0
    assert json.loads(out)["kernel"] == os.uname().release
    assert _run("version")[1].startswith("mapek ")


def test_doctor(node: Path) -> None:
    code, out, error = _run("doctor", "--json", "-c", _write(node))
    assert error == ""
    found = json.loads(out)
    well = {
        "ok": True,
        "variant": None,
        "missing": [],
        "passed_over": {},
        "degraded": [],
        "do": [],
        "waits": False,
    }
    assert found["sensors"] == {"still": well}
    assert found["ok"] == (code == 0) == found["ebpf_loader"]["ok"]


def test_doctor_names_a_sensor_that_cannot_be(node: Path) -> None:
    (node.parent / "plugins/still.py").write_text("import no_such_module")
    code, out, _ = _run("doctor", "-c", _write(node))
    assert code == 1
    assert "No module named 'no_such_module'; install no_such_module" in " ".join(out.split())


def test_lab_clean_finds_nothing_of_ours() -> None:
    code, out, error = _run("lab", "clean", "--dry-run", "--json")
    assert (code, error) == (0, "")
    assert isinstance(json.loads(out), list)


def _line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    text = process.stdout.readline()
    if not text:
        assert process.stderr is not None
        raise AssertionError(process.stderr.read())
    return json.loads(text)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGHUP, 0)])
def test_run_until_a_signal(node: Path, number: signal.Signals, code: int) -> None:
    process = _start("run", "--json", "-c", _write(node))
    try:
        ready = _line(process)
        assert ready["type"] == "ready"
        assert (ready["node"], ready["sensors"]) == ("a", ["still"])
        port = int(ready["service"].rpartition(" ")[2])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
            assert json.load(answer)["sensors"]["still"]["up"] is True
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert b'mapek_sensor_up{sensor="still"} 1.0' in answer.read()
        process.send_signal(number)
        assert _line(process)["type"] == "stopped"
        out, error = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out, error) == (code, "", "")


def test_a_sensor_that_cannot_open_ends_the_run(node: Path) -> None:
    code, _, error = _run("run", "--json", "-c", _write(node, options="fails = true"))
    assert code == 1
    assert error == "mapek: attach xdp to wlan9: there is no such interface; create it or pass --wait\n"


def test_wait_goes_on_and_says_503(node: Path) -> None:
    process = _start("run", "--json", "--wait", "-c", _write(node, options="fails = true"))
    try:
        ready = _line(process)
        assert ready["sensors"] == []
        port = int(ready["service"].rpartition(" ")[2])
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10)
        with caught.value as answer:
            assert answer.code == 503
            assert "there is no such interface" in json.load(answer)["loop"]["trouble"]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0


def test_a_port_in_use_is_one_line(node: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, error = _run("run", "-c", _write(node, f"127.0.0.1:{port}"))
    assert code == 1
    assert error == (
        f"mapek: listen on 127.0.0.1:{port}: the port is in use; "
        "end the program that holds it or set [service] listen\n"
    )


def test_a_reader_that_goes_away_does_not_stop_the_loop(node: Path) -> None:
    process = _start("run", "--json", "-c", _write(node))
    try:
        assert _line(process)["type"] == "ready"
        assert process.stdout is not None
        process.stdout.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
        process.stderr.close()
    finally:
        process.kill()


def test_main_returns_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-c", "/none.toml"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit) as caught:
        main(["no_such_command"])
    assert caught.value.code == 2


def test_no_library_file_touches_signals() -> None:
    """Signals belong to the command line; an embedding program keeps its own handlers."""
    for path in (*(ROOT / "mapek").glob("*.py"), *(ROOT / "mapek/service").glob("*.py")):
        assert "add_signal_handler" not in path.read_text(), path
