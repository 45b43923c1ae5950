"""The package as a user meets it: cheap to import, every name reachable, the rooms under `mapek` only."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("bpf", "sensors", "policies", "simulations")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"matplotlib", "mcap", "sklearn"}
HEAVY = EXTRAS | {"numpy", "pyroute2", "prometheus_client", "asyncio", "sqlite3", "ctypes"}
ENTRY_POINTS = [
    (group, name, target)
    for group, entries in {**PROJECT["entry-points"], "scripts": PROJECT["scripts"]}.items()
    for name, target in entries.items()
]


def _modules_after(statement: str) -> set[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    code = f"import sys, json; {statement}; print(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("mapek", HEAVY),
        ("mapek.errors", HEAVY),
        ("mapek.cli", EXTRAS | {"numpy", "pyroute2"}),
        ("mapek.loop", EXTRAS),
        ("mapek.sensors.link_watch", EXTRAS),
        ("mapek.policies.link_failover", EXTRAS),
    ],
)
def test_import_is_cheap(module: str, heavy: set[str]) -> None:
    bare = _modules_after("pass")
    assert not (_modules_after(f"import {module}") - bare) & heavy


def test_every_public_name_resolves() -> None:
    package = importlib.import_module("mapek")
    assert package.__all__
    for name in package.__all__:
        assert getattr(package, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    package = importlib.import_module("mapek")
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package.no_such_name


@pytest.mark.parametrize("room", ROOMS)
def test_room_is_a_symlink_below_the_package(room: str) -> None:
    link = ROOT / "mapek" / room
    if not (ROOT / room).exists():  # an sdist holds the rooms as real folders below mapek
        assert (link / "__init__.py").is_file()
    else:
        assert os.readlink(link) == f"../{room}"


@pytest.mark.parametrize(("group", "name", "target"), ENTRY_POINTS, ids=lambda value: str(value))
def test_entry_point_resolves(group: str, name: str, target: str) -> None:
    module, _, attribute = target.partition(":")
    assert callable(getattr(importlib.import_module(module), attribute)), (group, name)


def _sources() -> list[Path]:
    return [path for folder in ("mapek", "tests", "tools", "examples") for path in _walk(ROOT / folder)]


def _walk(folder: Path) -> list[Path]:
    found = []
    for base, _, names in os.walk(folder, followlinks=True):
        found += [Path(base, name) for name in names if name.endswith(".py")]
    return found


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_are_imported_below_the_package_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        assert not [name for name in names if name.partition(".")[0] in ROOMS]


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_says_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text))


def test_no_dependency_is_without_its_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    for requirement in PROJECT["dependencies"]:
        at = next(i for i, line in enumerate(lines) if f'"{requirement}"' in line)
        assert lines[at - 1].lstrip().startswith("#"), f"{requirement} has no comment above it"
