"""Finding and making plugins: by entry point, from a directory, and every way in which that fails."""

# ruff: noqa: E501 -- messages stand here as they are printed, on one line
from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapek import plugins
from mapek.config import PluginConfig, Table
from mapek.contracts import Analyzer, Touchpoint
from mapek.errors import ConfigError, MapekError, PluginError

SENSOR = """
from dataclasses import dataclass
from mapek import Touchpoint, take

@dataclass
class Reading:
    value: int

class Fan(Touchpoint):
    name = "fan"

    def __init__(self, options):
        self.speed = take(options, "speed", int, 1, minimum=0)
        self.reading = Reading(self.speed)
"""


def _chosen(name: str, **options: object) -> PluginConfig:
    return PluginConfig(name, name, Table(options, "m.toml", f"[sensors.{name}]"))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o755)
    (folder / "fan.py").write_text(SENSOR)
    (folder / "fan.py").chmod(0o644)
    yield folder
    for name in [name for name in sys.modules if name.startswith("_mapek_plugin_")]:
        del sys.modules[name]


@pytest.fixture
def entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Install a distribution with these entry points, for real."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def install(text: str, module: str = "", name: str = "third") -> None:
        info = site / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(text)
        (site / f"{name}_plugins.py").write_text(module)
        importlib.invalidate_caches()

    yield install
    for name in [name for name in sys.modules if name.endswith("_plugins") and "." not in name]:
        del sys.modules[name]


def _message(chosen: PluginConfig, directory: Path | None = None, kind=plugins.SENSORS) -> str:
    with pytest.raises(MapekError) as caught:
        plugins.create(kind, chosen, directory)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(directory), "DIR")


def test_a_file_of_the_directory(folder: Path) -> None:
    made = plugins.create(plugins.SENSORS, _chosen("fan", speed=3), folder)
    assert isinstance(made, Touchpoint)
    assert vars(made)["speed"] == vars(made)["reading"].value == 3
    assert type(made).__module__ == "_mapek_plugin_fan"
    assert not list(folder.rglob("*.pyc"))


def test_two_instances_share_one_module(folder: Path) -> None:
    made = plugins.create_all(plugins.SENSORS, {"a": _chosen("fan"), "b": _chosen("fan", speed=2)}, folder)
    assert list(made) == ["a", "b"]
    assert type(made["a"]) is type(made["b"])


def test_options_are_checked(folder: Path) -> None:
    assert (
        _message(_chosen("fan", speed=-1), folder)
        == "read m.toml: [sensors.fan] speed: is -1; it must be at least 0"
    )
    assert (
        _message(_chosen("fan", sped=1), folder)
        == 'read m.toml: [sensors.fan] sped: unknown key; did you mean "speed"?'
    )


def test_a_plugin_without_a_constructor_takes_no_options(folder: Path) -> None:
    (folder / "fan.py").write_text("from mapek import Touchpoint\nclass Fan(Touchpoint):\n    name = 'fan'\n")
    assert plugins.create(plugins.SENSORS, _chosen("fan"), folder).name == "fan"
    with pytest.raises(ConfigError, match="unknown key"):
        plugins.create(plugins.SENSORS, _chosen("fan", speed=1), folder)


def test_nothing_else_is_imported(folder: Path) -> None:
    (folder / "other.py").write_text("raise SystemExit('imported')")
    assert "other" in plugins.available(plugins.SENSORS, folder)
    plugins.create(plugins.SENSORS, _chosen("fan"), folder)
    assert "_mapek_plugin_other" not in sys.modules


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_module", "import sensor fan: DIR/fan.py: ModuleNotFoundError: No module named 'no_such_module'; install no_such_module"),
        ("1/0", "import sensor fan: DIR/fan.py: ZeroDivisionError: division by zero; mend the file"),
        ("def", "import sensor fan: DIR/fan.py: SyntaxError: invalid syntax (fan.py, line 1); mend the file"),
        ("x = 1", 'use sensor fan: DIR/fan.py has no subclass of mapek.Touchpoint; write one, with name = "fan"'),
        (
            "from mapek import Analyzer\nclass Fan(Analyzer):\n    name = 'fan'",
            'use sensor fan: DIR/fan.py has no subclass of mapek.Touchpoint; write one, with name = "fan"',
        ),
        (
            "from mapek import Touchpoint\nclass A(Touchpoint): name = 'a'\nclass B(Touchpoint): name = 'b'",
            'use sensor fan: DIR/fan.py has 2 subclasses of mapek.Touchpoint; write one, with name = "fan"',
        ),
        (
            "from mapek import Touchpoint\nclass Fan(Touchpoint):\n    name = 'fan'\n    def __init__(self, o): o['x'] + 1",
            "construct sensor fan: KeyError: 'x'; mend _mapek_plugin_fan.Fan",
        ),
    ],
)  # fmt: skip
def test_a_bad_file(folder: Path, source: str, message: str) -> None:
    (folder / "fan.py").write_text(source)
    assert _message(_chosen("fan"), folder) == message
    if message.startswith("import"):
        assert "_mapek_plugin_fan" not in sys.modules


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_a_directory_that_others_may_write(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    assert _message(_chosen("fan"), folder) == (
        f"load plugins from DIR: others may write it (mode {mode:04o}), and its code would run as this user; chmod go-w it"
    )


def test_a_file_that_others_may_write(folder: Path) -> None:
    (folder / "fan.py").chmod(0o666)
    assert "DIR/fan.py: others may write it (mode 0666)" in _message(_chosen("fan"), folder)


def test_a_parent_that_others_may_write(folder: Path) -> None:
    folder.parent.chmod(0o777)
    assert f"load plugins from {folder.parent}: others may write it" in _message(_chosen("fan"), folder)


@pytest.mark.needs("root")
def test_a_file_of_somebody_else(folder: Path) -> None:
    import os

    os.chown(folder / "fan.py", 65534, 65534)
    assert "DIR/fan.py: it belongs to uid 65534" in _message(_chosen("fan"), folder)


def test_no_directory(tmp_path: Path) -> None:
    assert _message(_chosen("fan"), tmp_path / "none") == (
        "use plugin directory DIR: No such file or directory; make it, or remove [plugins] directory"
    )


def test_an_unknown_name() -> None:
    message = _message(_chosen("link_wach"))
    assert message == (
        'find sensor link_wach: no entry point of mapek.sensors has this name; did you mean "link_watch"?'
    )


def test_an_entry_point(entry_points) -> None:
    entry_points(
        "[mapek.analyzers]\nnose = third_plugins:Nose\n",
        "import mapek\nclass Nose(mapek.Analyzer):\n    name = 'nose'\n",
    )
    assert "nose" in plugins.available(plugins.ANALYZERS)
    assert "third_plugins" not in sys.modules
    assert isinstance(plugins.create(plugins.ANALYZERS, _chosen("nose")), Analyzer)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("third_plugins:Nose", "use sensor nose: third_plugins:Nose is no subclass of mapek.Touchpoint; derive it from mapek.Touchpoint"),
        ("third_plugins:Missing", "import sensor nose: third_plugins:Missing: AttributeError: module 'third_plugins' has no attribute 'Missing'; mend it"),
        ("no_third:Nose", "import sensor nose: no_third:Nose: ModuleNotFoundError: No module named 'no_third'; install no_third"),
    ],
)  # fmt: skip
def test_a_bad_entry_point(entry_points, target: str, message: str) -> None:
    entry_points(f"[mapek.sensors]\nnose = {target}\n", "class Nose: pass\n")
    assert _message(_chosen("nose")) == message


def test_a_name_that_is_there_twice(entry_points, folder: Path) -> None:
    entry_points("[mapek.sensors]\nfan = third_plugins:Fan\n")
    entry_points("[mapek.sensors]\nfan = fourth_plugins:Fan\n", name="fourth")
    message = _message(_chosen("fan"), folder)
    assert message.startswith("find sensor fan: it is there more than once: ")
    for place in ("DIR/fan.py", "third_plugins:Fan", "fourth_plugins:Fan"):
        assert place in message


def test_our_own_are_found_without_being_installed() -> None:
    assert {"link_watch", "netlink", "xdp_counter"} <= set(plugins.available(plugins.SENSORS))
    assert "path_health" in plugins.available(plugins.ANALYZERS)
    assert "link_failover" in plugins.available(plugins.POLICIES)


def test_errors_have_the_class_that_says_what_to_do() -> None:
    with pytest.raises(PluginError):
        plugins.find(plugins.POLICIES, "no_such_policy")
