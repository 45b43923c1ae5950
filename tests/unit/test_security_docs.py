"""docs/SECURITY.md against the code: which sensor needs which capabilities, and the score of the unit."""

from __future__ import annotations

import importlib
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from mapek.contracts import Touchpoint, Variant

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/SECURITY.md").read_text()
SENSORS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["mapek.sensors"]


def table(head: str) -> list[list[str]]:
    lines = TEXT.split(f"| {head} |", 1)[1].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def capabilities(cell: str) -> set[str]:
    return set() if cell == "nothing" else set(cell.split())


def sensor(name: str) -> type[Touchpoint]:
    module, _, kind = SENSORS[name].partition(":")
    found: type[Touchpoint] = getattr(importlib.import_module(module), kind)
    return found


def test_which_sensor_needs_what():
    documented = {}
    for name, variants, to_open, to_go_on in table("Sensor"):
        opens = capabilities(to_open)
        keeps = opens if to_go_on == "the same" else capabilities(to_go_on)
        # One that needs none has no variants that differ in it.
        for variant in variants.split(", ") if opens else [""]:
            documented[name, variant] = (opens, keeps)
    found = {}
    for name in SENSORS:
        for one in sensor(name).variants or (Variant(""),):
            needs = {need for need in one.needs if need.startswith("CAP_")}
            found[name, one.name if needs else ""] = (needs, needs if one.keeps is None else set(one.keeps))
    assert documented == found


def test_every_capability_that_can_be_needed_has_its_worth():
    worth = {row[0] for row in table("Capability")}
    named = set(re.findall(r"CAP_[A-Z_]+", "".join(map(" ".join, table("Sensor")))))
    assert named <= worth
    assert {"CAP_SYS_NICE", "CAP_IPC_LOCK", "CAP_SYS_RESOURCE"} <= worth


@pytest.mark.needs("systemd_analyze")
def test_the_score_is_what_the_command_says():
    (command,) = re.findall(r"^    (systemd-analyze security .*)$", TEXT, re.MULTILINE)
    out = subprocess.run(command.split(), capture_output=True, text=True, check=True, cwd=ROOT).stdout
    found = re.search(r"exposure level for mapek.service: ([\d.]+ \w+)", out)
    assert found, out
    version = subprocess.run(
        ["systemd-analyze", "--version"], capture_output=True, text=True, check=True
    ).stdout
    if version.split()[1] == "252":  # others weigh otherwise
        assert f"says {found[1]} (systemd 252;" in TEXT


def test_what_it_names_is_there():
    for path in re.findall(r"`((?:tests|packaging|docs)/[^`*]+)`", TEXT):
        assert (ROOT / path).exists(), path
