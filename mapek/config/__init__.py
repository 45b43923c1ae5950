"""The configuration: one TOML file, checked whole before anything is opened.

`load_config` gives a frozen `Config` or raises ConfigError in one line that names the file, the key, what is
wrong and what to do. Plugins read their own tables with `take`.
"""

from __future__ import annotations

from mapek.config.options import Table, error, take, take_strings
from mapek.config.read import load_config, parse_config
from mapek.config.settings import Config, LoopConfig, NodeConfig, PluginConfig, ServiceConfig

__all__ = [
    "load_config",
    "parse_config",
    "Config",
    "NodeConfig",
    "LoopConfig",
    "ServiceConfig",
    "PluginConfig",
    "Table",
    "take",
    "take_strings",
    "error",
]
