"""A TOML file into a `Config`, or one line that says what is wrong with it and what to do."""

from __future__ import annotations

import ipaddress
import os
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, cast

from mapek.config import peers
from mapek.config.options import Table, error, located, open_at_once, plain, take
from mapek.config.settings import (
    DEFAULT_ANALYZERS,
    DEFAULT_POLICIES,
    DEFAULT_SENSORS,
    PERSISTENT,
    PROFILES,
    Config,
    LoopConfig,
    NodeConfig,
    PluginConfig,
    Profile,
    ServiceConfig,
    Switch,
)
from mapek.errors import ConfigError
from mapek.knowledge.topology import Topology

_SIZE_LIMIT: Final = 1 << 20
_TABLES: Final = {"sensors": DEFAULT_SENSORS, "analyzers": DEFAULT_ANALYZERS, "policies": DEFAULT_POLICIES}


def load_config(file: str | os.PathLike[str]) -> Config:
    """The configuration in `file`. Relative paths in it start from its own folder. Raises ConfigError."""
    path = Path(file)
    shown = plain(path, 200)
    try:
        with open(path, "rb", opener=open_at_once) as opened:
            data = opened.read(_SIZE_LIMIT + 1)
    except (OSError, ValueError) as cause:
        why = getattr(cause, "strerror", None) or str(cause)
        raise ConfigError(
            "read", shown, plain(why), "name an existing TOML file with -c FILE.toml"
        ) from cause
    if len(data) > _SIZE_LIMIT:
        raise ConfigError("read", shown, "is larger than 1 MiB", "this cannot be a configuration")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as cause:
        raise ConfigError("read", shown, f"byte {cause.start} is not UTF-8", "save it as UTF-8") from cause
    return parse_config(text, path)


def parse_config(text: str, file: str | os.PathLike[str] = "mapek.toml") -> Config:
    """The configuration in `text`; `file` is named in messages, and its folder is where paths start."""
    path = Path(file)
    shown = plain(path, 200)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as cause:
        raise ConfigError("read", shown, f"not TOML: {plain(cause, 120)}", "mend that line") from cause
    except RecursionError:
        raise ConfigError("read", shown, "not TOML: nested too deeply", "mend it") from None
    top = Table(values, shown, folder=path.parent)
    node_table, loop_table = _table(top, "node"), _table(top, "loop")
    name = peers.name(node_table, "name", _hostname())
    own = peers.addresses(node_table, "addresses")
    node = NodeConfig(name, _path(node_table, "state_dir"))
    loop = _loop(loop_table)
    topology = Topology(name, own, peers.peers(top, name, own))
    plugin_table, record_table, bpf_table = (_table(top, name) for name in ("plugins", "record", "bpf"))
    plugin_directory = _path(plugin_table, "directory")
    record, rules = _path(record_table, "file"), _path(bpf_table, "rules")
    service = _service(_table(top, "service"))
    preset = _preset(loop)
    tables = {kind: _plugins(top, kind, default, preset) for kind, default in _TABLES.items()}
    actions = _plugins(top, "actions", (), preset)
    for table in (node_table, plugin_table, record_table, bpf_table, top):
        table.leftover()
    return Config(
        node=node,
        topology=topology,
        loop=loop,
        service=service,
        sensors=tables["sensors"],
        analyzers=tables["analyzers"],
        policies=tables["policies"],
        actions=actions,
        plugin_directory=plugin_directory,
        record=record,
        rules=rules,
        file=path,
    )


def _table(parent: Table, key: str) -> Table:
    try:
        values = parent[key]
    except KeyError:
        return Table({}, parent.file, f"[{key}]", folder=parent.folder)
    if not isinstance(values, dict):
        raise error(parent, key, "is not a table", f"write [{plain(key)}] on a line of its own")
    return Table(values, parent.file, f"[{plain(key)}]", folder=parent.folder)


def _hostname() -> str:
    # Only a default: a host whose name would not do has to be named in the file.
    return socket.gethostname().partition(".")[0] or "node"


def _path(table: Table, key: str) -> Path | None:
    return located(table, key, take(table, key, str, "", maximum=4096))


def _loop(table: Table) -> LoopConfig:
    profile = take(table, "profile", str, "default", choices=("default", "fast"))
    loop = LoopConfig(
        cast(Profile, profile),
        _switch(table, "realtime"),
        _switch(table, "pin"),
        take(table, "wait", bool, False),
        take(table, "persist", bool, False),
    )
    table.leftover()
    return loop


def _switch(table: Table, key: str) -> Switch:
    value = table.get(key, "auto")
    if isinstance(value, bool):
        return value
    if value == "auto":
        return "auto"
    raise error(table, key, f"is {plain(repr(value))}", 'write "auto", true or false')


def _service(table: Table) -> ServiceConfig:
    listen = take(table, "listen", str, "127.0.0.1:9464")
    table.leftover()
    if not listen:
        return ServiceConfig("", 0)
    host, colon, port = listen.rpartition(":")
    shown = f'"{plain(listen)}"'
    if not colon or not (port.isascii() and port.isdigit()) or int(port[:6]) > 65535:
        raise error(table, "listen", f"{shown} has no port", 'write it like "127.0.0.1:9464" or "[::1]:9464"')
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        found = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        do = 'write "127.0.0.1", "[::1]", or "0.0.0.0" for all' + f': "127.0.0.1:{port}"'
        raise error(table, "listen", f"{shown} does not begin with an address", do) from None
    if bracketed != (found.version == 6):
        do = f'write "[{found}]:{port}"' if found.version == 6 else f'write "{found}:{port}"'
        raise error(table, "listen", f"{shown} has brackets in the wrong place", do)
    return ServiceConfig(str(found), int(port))


def _preset(loop: LoopConfig) -> dict[str, dict[str, object]]:
    """What `[loop]` decides for plugins whose own tables say nothing else."""
    found = {plugin: dict(options) for plugin, options in PROFILES[loop.profile].items()}
    pin = "auto" if loop.pin == "auto" else "yes" if loop.pin else "no"
    found.setdefault("link_watch", {}).update(pin=pin, wait=loop.wait)
    for plugin in PERSISTENT:
        found.setdefault(plugin, {}).update(persist=loop.persist)
    return found


def _plugins(
    top: Table, kind: str, defaults: tuple[str, ...], preset: Mapping[str, Mapping[str, object]]
) -> dict[str, PluginConfig]:
    table = _table(top, kind)
    found: dict[str, PluginConfig] = {}
    for name in dict.fromkeys((*defaults, *table.set_keys())):
        values = table.get(name, {})
        place = f"[{kind}.{plain(name)}]"
        if not isinstance(values, dict):
            raise error(table, name, "is not a table", f"write {place} on a line of its own")
        if not _identifier(name):
            raise error(table, name, "cannot name a plugin", "use small letters, digits and underscore")
        options = Table(values, top.file, place, folder=top.folder)
        if "enabled" in values and not take(options, "enabled", bool, True):
            continue
        plugin = take(options, "plugin", str, name)
        if not _identifier(plugin):
            raise error(options, "plugin", f'"{plain(plugin)}" cannot name a plugin', "write the name of one")
        options = Table(values, top.file, place, preset.get(plugin), top.folder)
        found[name] = PluginConfig(name, plugin, options)
    return found


def _identifier(name: str) -> bool:
    return name.isascii() and name.isidentifier() and name == name.lower() and not name.startswith("_")
