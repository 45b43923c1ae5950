"""Defaults, files as such, plugin tables, and the functions with which plugins read their options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mapek.config import Table, load_config, parse_config, take, take_strings
from mapek.errors import ConfigError


def test_everything_has_a_default() -> None:
    config = parse_config('[node]\nname = "a"')
    assert list(config.sensors) == ["link_watch", "netlink", "xdp_counter"]
    assert list(config.analyzers) == ["path_health"]
    assert list(config.policies) == ["link_failover"]
    assert not config.actions
    assert (config.service.host, config.service.port) == ("127.0.0.1", 9464)
    assert (config.loop.profile, config.loop.realtime, config.loop.pin) == ("default", "auto", "auto")
    assert config.node.state_dir is config.record is config.plugin_directory is None
    assert not config.topology.peers


def test_paths_start_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "m.toml"
    file.write_text('[node]\nstate_dir = "state"\n[plugins]\ndirectory = "/p"\n[record]\nfile = "r.mcap"\n')
    config = load_config(file)
    assert config.node.state_dir == tmp_path / "state"
    assert config.plugin_directory == Path("/p")
    assert config.record == tmp_path / "r.mcap"


@pytest.mark.parametrize(
    ("listen", "host", "port"),
    [
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("[::1]:9464", "::1", 9464),
        ("0.0.0.0:80", "0.0.0.0", 80),
        ("", "", 0),
    ],
)
def test_listen(listen: str, host: str, port: int) -> None:
    service = parse_config(f'[service]\nlisten = "{listen}"').service
    assert (service.host, service.port) == (host, port)


def test_plugin_tables() -> None:
    config = parse_config(
        "[sensors.netlink]\nenabled = false\n[sensors.mine]\nspeed = 3\n"
        "[analyzers.load]\nplugin = 'threshold'\nlimit = 2\n"
    )
    assert list(config.sensors) == ["link_watch", "xdp_counter", "mine"]
    assert config.analyzers["load"].plugin == "threshold"
    assert config.analyzers["load"].options["limit"] == 2


@pytest.mark.parametrize(("profile", "interval"), [("default", 10.0), ("fast", 1.0)])
def test_a_profile_presets_the_probe_interval(profile: str, interval: float) -> None:
    config = parse_config(f'[loop]\nprofile = "{profile}"\npin = false')
    options = config.sensors["link_watch"].options
    assert take(options, "interval_ms", float, 99.0) == interval
    assert take(options, "pin", str, "auto") == "no"
    own = parse_config('[loop]\nprofile = "fast"\n[sensors.link_watch]\ninterval_ms = 3')
    assert take(own.sensors["link_watch"].options, "interval_ms", float, 99.0) == 3.0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "No such file or directory; name an existing TOML file with -c FILE.toml"),
        (b"a = '\xff'", "byte 5 is not UTF-8; save it as UTF-8"),
        (b"#" * (1 << 21), "is larger than 1 MiB; this cannot be a configuration"),
    ],
)
def test_a_bad_file(tmp_path: Path, data: bytes | None, message: str) -> None:
    file = tmp_path / "m.toml"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value) == f"read {file}: {message}"


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path)


def test_take_from_a_plain_mapping() -> None:
    assert take({"n": 3}, "n", float, 1.0) == 3.0
    assert take({}, "n", int, 7) == 7
    assert take_strings({"names": ["a", "b"]}, "names") == ("a", "b")
    assert take({"limits": {"a": 1}}, "limits", dict, {}) == {"a": 1}


@pytest.mark.parametrize(
    ("value", "kind", "limits", "message"),
    [
        (1.5, int, {}, "is a number, not a whole number; write a whole number"),
        (True, int, {}, "is true or false, not a whole number; write a whole number"),
        ("1", float, {}, "is a string, not a number; write it without quotes"),
        (float("nan"), float, {}, "is nan, not a finite number; write a finite number"),
        (0, int, {"minimum": 1}, "is 0; it must be at least 1"),
        (9, int, {"maximum": 8}, "is 9; it must be at most 8"),
        (9.5, float, {"minimum": 1, "maximum": 8}, "is 9.5; it must be between 1 and 8"),
        ("", str, {"minimum": 1}, "is 0 in length; it must be at least 1 in length"),
        ("c", str, {"choices": ("a", "b")}, 'is "c", not "a" or "b"; use one of them'),
        ("x", list, {}, "is a string, not a list; put it in square brackets"),
    ],
)
def test_take_refuses(value: object, kind: type, limits: dict[str, Any], message: str) -> None:
    table = Table({"key": value}, "m.toml", "[sensors.s]")
    with pytest.raises(ConfigError) as caught:
        take(table, "key", kind, kind(), **limits)
    assert str(caught.value) == f"read m.toml: [sensors.s] key: {message}"


def test_what_nobody_asked_for_is_unknown() -> None:
    table = Table({"period": 1, "perod": 2, "enabled": True}, "m.toml", "[sensors.s]")
    take(table, "period", int, 0)
    with pytest.raises(ConfigError) as caught:
        table.leftover()
    assert str(caught.value) == 'read m.toml: [sensors.s] perod: unknown key; did you mean "period"?'


def test_who_walks_the_table_judges_it_himself() -> None:
    table = Table({"a": 1, "b": 2}, defaults={"c": 3})
    assert dict(table) == {"a": 1, "b": 2, "c": 3}
    table.leftover()


def test_examples_are_good_configurations(tmp_path: Path) -> None:
    examples = sorted((Path(__file__).resolve().parents[3] / "examples").glob("*.toml"))
    assert examples
    for example in examples:
        text = example.read_text()
        (tmp_path / "keys").mkdir(exist_ok=True)
        for name in ("keys/attic.key", "keys/b.key"):
            (tmp_path / name).write_text("ab" * 32)
            (tmp_path / name).chmod(0o600)
        found = parse_config(text, tmp_path / example.name)
        assert found.sensors
        assert bool(found.topology.peers) == ("[[peer]]" in text)
