"""packaging/mapek.service against systemd's own judgement, against the code, and against what docs/SECURITY.md says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mapek.sensors.link_watch import LinkWatch
from mapek.sensors.netlink import Netlink
from mapek.sensors.xdp_counter import XdpCounter
from tests.support import sandbox

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "packaging/mapek.service"
MOST = 2.0
"""The exposure that systemd may find at most, of 10."""


def one(key: str) -> str:
    (value,) = sandbox.settings(str(UNIT), key)
    return value


def test_its_capabilities_are_those_that_the_default_sensors_need():
    needed = {
        name
        for kind in (LinkWatch, Netlink, XdpCounter)
        for variant in kind.variants
        for name in variant.needs
        if name.startswith("CAP_")
    }
    assert set(one("AmbientCapabilities").split()) == set(one("CapabilityBoundingSet").split()) == needed


def test_it_is_what_the_agent_speaks():
    assert one("Type") == "notify"
    assert one("NoNewPrivileges") == "yes"
    assert int(one("WatchdogSec")) >= 6  # a loop is dead after three ticks of a second
    assert " run " in one("ExecStart")


@pytest.mark.needs("systemd_analyze")
def test_systemd_finds_no_fault(tmp_path):
    unit = tmp_path / "mapek.service"
    text = UNIT.read_text().replace("/usr/local/bin/mapek", shutil.which("true") or "/bin/true")
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    unit.write_text(text.replace("ProtectSystem=strict", "ProtectSystm=strict"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert "ProtectSystm" in done.stderr  # it does look


@pytest.mark.needs("systemd_analyze")
def test_its_exposure_is_what_the_docs_say():
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST * 10:.0f}", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    found = re.search(r"exposure level for mapek.service: ([\d.]+)", done.stdout)
    assert found, done.stdout
    assert float(found[1]) <= MOST


@pytest.mark.needs("systemd_analyze")
def test_what_its_filter_of_system_calls_leaves():
    calls = sandbox.allowed_calls(str(UNIT))
    assert {"bpf", "capset", "sendmmsg", "timerfd_create", "epoll_wait", "mlockall"} <= calls
    assert calls.isdisjoint(
        {
            "mount",
            "setuid",
            "ptrace",
            "perf_event_open",
            "kexec_load",
            "init_module",
            "chown",
        }
    )
