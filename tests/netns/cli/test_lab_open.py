"""`mapek lab open` as a process: a script heals and measures, and however it ends, nothing stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mapek.simulations.clean import remains
from mapek.simulations.usage import descendants

pytestmark = pytest.mark.netns

ROOT = Path(__file__).resolve().parents[3]


def _start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mapek", "lab", "open", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )


def _script(text: str, *arguments: str, code: int = 0) -> tuple[list[dict[str, Any]], str]:
    process = _start("--json", *arguments)
    try:
        out, error = process.communicate(text, timeout=50)
    finally:
        process.kill()
    assert process.returncode == code, error
    assert "Traceback" not in error
    return [json.loads(line) for line in out.splitlines()], error


def _of(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record for record in records if record["type"] == kind]


def test_a_script_sees_a_link_healed():
    script = "wait 0.3\nstatus\ndrop l0\nwait 0.5\nstatus\nclear l0\nquit\nnever\n"
    records, error = _script(script, "--profile", "default")
    assert error == ""
    assert [node["node"] for node in _of(records, "node")] == ["a", "b"]
    assert {wire["wire"] for wire in _of(records, "wire")} == {"l0", "l1"}
    (fault,) = _of(records, "fault")
    healed = {one["node"]: one for one in _of(records, "incident") if one["state"] == "recovered"}
    assert set(healed) == {"a", "b"}
    assert all(one["recovered_ns"] > fault["time_ns"] for one in healed.values())
    flows = [(one["direction"], one["arrives_by"]) for one in _of(records, "flow")]
    assert flows == [("a>b", "l0"), ("b>a", "l0"), ("a>b", "l1"), ("b>a", "l1")]
    assert all(flow["per_second"] > 500 for flow in _of(records, "flow"))
    carried = {(one["wire"], one["direction"]): one for one in _of(records, "carried")[4:]}
    assert carried["l0", "ab"]["dropped"] > 0
    assert carried["l1", "ab"]["flow_per_second"] > carried["l0", "ab"]["flow_per_second"]
    assert all(use["pss_mb"] > 5 and use["cpu_percent"] >= 0 for use in _of(records, "usage"))
    assert records[-1]["type"] == "closed"


def test_without_agents_nothing_heals_but_a_wrong_line_is_said():
    script = (
        "drop l0 ab\nwait 0.6\nstatus\nbogus\nloss l7 3\ncarrier l0 down\nflap l1\nclear\nwait 2.5\nstatus\n"
    )
    records, error = _script(script, "--no-agents", code=2)
    assert error.splitlines() == [
        "mapek: read command 'bogus': there is none of that name; say help",
        "mapek: find wire 'l7': the lab has none of that name; take one of l0, l1",
    ]
    there, back, there_after, back_after = (flow["per_second"] for flow in _of(records, "flow"))
    assert there == 0 < 500 < back
    assert min(there_after, back_after) > 500
    assert _of(records, "usage") == []
    assert [one["type"] for one in records if "fault" in str(one["type"])] == ["fault"] * 3 + [
        "cleared_faults"
    ]


def test_a_line_of_three_forwards_from_end_to_end():
    records, _ = _script("wait 0.5\nstatus\n", "--topology", "line", "--no-agents", "--flow", "a:c")
    assert all(flow["per_second"] > 500 for flow in _of(records, "flow"))
    assert all(wire["flow_per_second"] > 500 for wire in _of(records, "carried"))


def test_a_triangle_with_agents():
    records, error = _script("status\nhelp\n", "--topology", "triangle", "--profile", "fast")
    assert error == ""
    assert len(_of(records, "usage")) == len(_of(records, "node")) == len(_of(records, "wire")) == 3


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_it_leaves_nothing(number, code):
    process = _start("--json", "--profile", "fast")
    try:
        assert process.stdout is not None
        while json.loads(process.stdout.readline())["type"] != "open":
            pass
        children = [pid for pid in descendants(process.pid) if pid != process.pid]
        assert len(children) > 4
        # As a terminal does it: all of the group hear Ctrl-C.
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        out, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code
    # Ctrl-C reaches the children too; asyncio may say that one had ended before it was told to.
    assert [line for line in error.splitlines() if not line.startswith("Unknown child process pid")] == []
    if number != signal.SIGKILL:
        assert json.loads(out.splitlines()[-1])["type"] == "closed"
    deadline = time.monotonic() + 10
    while any(map(descendants, children)) and time.monotonic() < deadline:
        os.sched_yield()
    assert not any(map(descendants, children))
    assert [remain for remain in remains() if remain.owner.startswith(f"{process.pid}:")] == []


def test_an_agent_that_dies_is_told():
    process = _start("--json", "--profile", "fast")
    try:
        assert process.stdin is not None and process.stdout is not None  # noqa: PT018
        holder = 0
        while (record := json.loads(process.stdout.readline()))["type"] != "open":
            if record["type"] == "node" and record["node"] == "a":
                holder = int(record["pid"])
        inside = os.stat(f"/proc/{holder}/ns/net")
        for pid in descendants(process.pid):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"mapek\0run" in command and os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), inside):
                os.kill(pid, signal.SIGKILL)
        while (record := json.loads(process.stdout.readline()))["type"] != "ended":
            pass
        assert record["node"] == "a"
        out, error = process.communicate("quit\n", timeout=30)
    finally:
        process.kill()
    assert (process.returncode, error) == (0, "")
    assert out.endswith("\n")
