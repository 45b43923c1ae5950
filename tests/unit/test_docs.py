"""docs/CONFIGURATION.md and docs/METRICS.md against the code: every key, default and range, every metric."""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mapek.config import Table, parse_config
from mapek.config.settings import PROFILES
from mapek.contracts import Status
from mapek.knowledge import Peer, Topology
from mapek.model import Entity, Frame, Schema
from mapek.service.collector import LoopCollector
from mapek.service.state import SensorView
from mapek.tally import KNOWN, Tally

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
ENTRIES = {
    f"[{group.removeprefix('mapek.')}.{name}]": target
    for group, entries in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "entry-points"
    ].items()
    for name, target in entries.items()
}
REQUIRED = {"sensor": "link_watch", "metric": "silent", "above": 1.0}
WORDS = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "list of strings",
    dict: "table",
}
BY_HAND = {
    ("[node]", "name"): "the host's name",
    ("[[peer]]", "prefixes"): "the addresses",
    ("[analyzers.threshold]", "clear"): "the limit",
    ("[analyzers.threshold]", "clear_hold_s"): "the hold time",
    ("[analyzers.robust_z]", "warm_up"): "`60`, or `window` if that is less",
}
"""Defaults that follow from something else."""
PARSED_BY_HAND = {
    ("[loop]", "realtime"): ("string or boolean", '`"auto"`', '`"auto"`, `true`, `false`'),
    ("[loop]", "pin"): ("string or boolean", '`"auto"`', '`"auto"`, `true`, `false`'),
    ("[[peer]]", "path"): ("tables", "required", ""),
}
"""Keys that are not read by `take`."""


@dataclass(frozen=True)
class Row:
    """A key as the table has it."""

    place: str
    key: str
    type: str
    default: str
    allowed: str


def tables(page: str) -> Iterator[tuple[str, list[str]]]:
    """(heading, cells) of every row of every table of a page, without heads."""
    heading = ""
    for line in (DOCS / page).read_text("utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ").strip("`")
        elif line.startswith("| `"):
            yield heading, [cell.strip() for cell in line.strip("|").split(" | ")]


def toml(value: object) -> str:
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"


class Spy:
    """Stands in for `take` and `take_strings` where a configuration is read, and notes what they ask."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: dict[tuple[str, str], Row] = {}
        self._patch = monkeypatch

    def on(self, module_name: str) -> None:
        module = importlib.import_module(module_name)
        for name in ("take", "take_strings"):
            if hasattr(module, name):
                self._patch.setattr(module, name, self._watching(getattr(module, name)))

    def _watching(self, function):
        signature = inspect.signature(function)

        def watched(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            self._note(bound.arguments)
            return function(*args, **kwargs)

        return watched

    def _note(self, asked) -> None:
        place = re.sub(r' "[^"]*"| \d+', "", asked["options"].place)
        place = "[[peer.path]]" if place.endswith("[[peer.path]]") else place
        key, kind = asked["key"], asked.get("kind", list)
        if key in ("enabled", "plugin", "peer") or (place, key) in self.found:
            return
        default = "required" if asked.get("required") else toml(asked["default"])
        if default in ("`None`", "`[]`"):
            default = "none"
        default = BY_HAND.get((place, key), default)
        allowed = ", ".join(map(toml, asked.get("choices", ())))
        low, high = asked.get("minimum"), asked.get("maximum")
        if kind in (int, float) and (low is not None or high is not None):
            allowed = f"{low:g} to {high:g}" if high is not None else f"at least {low:g}"
        self.found[place, key] = Row(place, key, WORDS[kind], default, allowed)


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[tuple[str, str], Row]:
    """Every key that the parser or a plugin asks for."""
    spy = Spy(monkeypatch)
    for module in ("mapek.config.read", "mapek.config.peers"):
        spy.on(module)
    secret = tmp_path / "k"
    secret.write_text("00" * 16)
    secret.chmod(0o600)
    parse_config(
        '[node]\nname = "a"\n[[peer]]\nname = "b"\naddresses = ["fd00::2"]\nkey_file = "k"\n'
        '[[peer.path]]\ninterface = "l0"\naddress = "fe80::2"\n',
        tmp_path / "m.toml",
    )
    for place, target in ENTRIES.items():
        module, _, name = target.partition(":")
        spy.on(module)
        for limit in ("above", "below"):
            wanted = {limit if key == "above" else key: value for key, value in REQUIRED.items()}
            options = wanted if "analyzers" in place and "path_health" not in place else {}
            getattr(importlib.import_module(module), name)(Table(options, place=place))
    for (place, key), (kind, default, allowed) in PARSED_BY_HAND.items():
        spy.found[place, key] = Row(place, key, kind, default, allowed)
    return spy.found


def test_every_key_is_documented_with_its_type_default_and_range(spied: dict[tuple[str, str], Row]) -> None:
    documented = {
        (place, cells[0].strip("`")): Row(place, cells[0].strip("`"), *cells[1:4])
        for place, cells in tables("CONFIGURATION.md")
        if place.startswith("[")
    }
    assert documented == spied


def test_profiles_are_documented() -> None:
    found = {
        cells[0].strip("`"): cells[1:] for place, cells in tables("CONFIGURATION.md") if place == "Profiles"
    }
    keys = [f"{plugin}.{key}" for plugin, options in PROFILES["default"].items() for key in options]
    assert set(found) == set(keys)
    for key in keys:
        plugin, _, option = key.partition(".")
        assert found[key] == [f"`{PROFILES[profile][plugin][option]:g}`" for profile in ("default", "fast")]


# -- metrics -----------------------------------------------------------------------------------------------


@dataclass
class View:
    sensors: Mapping[str, SensorView]
    tally: Tally
    trouble: str = ""


@dataclass
class Sensor:
    status: Status
    frame: Frame | None
    failure: str = ""


def zeros(schema: Schema) -> Frame:
    return Frame(
        1,
        schema,
        (Entity(schema.entity, "x"),),
        np.zeros((1, len(schema.counters)), np.uint64),
        np.zeros((1, len(schema.gauges))),
        np.ones(1, bool),
        tuple(np.zeros((1, len(one.bounds) + 1), np.uint64) for one in schema.histograms),
    )


def families(view: View) -> dict[str, list[str]]:
    """Name to [type, labels]; a name that comes twice is two lines of one series, which no scraper takes."""
    found: dict[str, list[str]] = {}
    for family in LoopCollector(view, "0").collect():
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        # prometheus_client keeps the suffixes of a family apart from its name
        name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        assert f"`{name}`" not in found, f"{name} is exported twice"
        kind = "gauge" if family.type == "info" else family.type
        found[f"`{name}`"] = [kind, ", ".join(f"`{label}`" for label in labels) or "none"]
    return found


def documented(heading: str) -> dict[str, list[str]]:
    return {cells[0]: cells[1:3] for place, cells in tables("METRICS.md") if place == heading}


SENSORS = [
    name
    for place in ENTRIES
    if place.startswith("[sensors.") and (name := place.partition(".")[2].rstrip("]"))
]


@pytest.mark.parametrize("name", SENSORS)
def test_a_sensors_metrics_are_documented(name: str) -> None:
    schema = importlib.import_module(f"mapek.sensors.{name}").SCHEMA
    with_it = families(View({name: Sensor(Status(True), zeros(schema))}, Tally()))
    without = families(View({name: Sensor(Status(True), None)}, Tally()))
    assert documented(name) == {one: told for one, told in with_it.items() if one not in without}


def test_the_loops_metrics_are_documented() -> None:
    tally = Tally()
    for name, known in KNOWN.items():
        labels = dict.fromkeys(known.labels, "x")
        if known.kind == "histogram":
            tally.observe(name, labels, 0.001)
        else:
            tally.count(name, labels)
    assert documented("The loop") == families(View({}, tally)) | {}


def test_the_sensors_own_counters_are_documented() -> None:
    counted: dict[str, list[str]] = {}
    for place, target in ENTRIES.items():
        module, _, name = target.partition(":")
        if place.startswith("[sensors."):
            for one in getattr(importlib.import_module(module), name).counted:
                counted.setdefault(f"`mapek_sensor_{one}_total`", []).append(place[9:-1])
    view = View({"one": Sensor(Status(True, {"l0": "xdp native"}, ("less",), {"sent": 1}), None)}, Tally())
    found = families(view)
    loops = families(View({}, Tally()))
    assert documented("Every sensor") == {
        name: told
        for name, told in found.items()
        if (name not in loops or "sensor" in name) and name != "`mapek_sensor_sent_total`"
    }
    assert found["`mapek_sensor_sent_total`"] == ["counter", "`sensor`"]
    table = {
        cells[0]: cells[1].split(", ")
        for place, cells in tables("METRICS.md")
        if place == "Counters of a sensor about itself"
    }
    assert table == counted


@pytest.mark.parametrize("name", SENSORS)
def test_a_sensor_has_its_page(name: str) -> None:
    text = (DOCS / "sensors" / f"{name}.md").read_text("utf-8")
    heads = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    wanted = ["What it shows", "What it costs", "Where it cannot be trusted", "Options", "Kernels"]
    assert [head for head in heads if head in wanted] == wanted
    assert f"[{name}](sensors/{name}.md)" in (DOCS / "SENSORS.md").read_text("utf-8")


def test_the_metric_pages_topology_is_not_needed() -> None:
    """Peers without paths make frames without rows: nothing is exported then, and nothing fails."""
    topology = Topology("a", (), (Peer("b", (), (), (), b""),))
    assert topology.paths() == ()
