"""What a recording keeps of a configuration, and the plugins made from it again.

Only names and options are kept, never paths: a recording may come from anybody, and must not decide which
files run here. Its plugins are found among those that are installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mapek.errors import RecordingError

if TYPE_CHECKING:
    from pathlib import Path

    from mapek.config import Config, PluginConfig
    from mapek.contracts import Analyzer, Policy
    from mapek.simulations.recorder import Recorder

_KINDS = ("sensors", "analyzers", "policies")


def recorder(config: Config, file: Path) -> Recorder:
    """A recorder of all that a loop of `config` is told and decides."""
    from mapek.simulations.recorder import Recorder
    from mapek.simulations.recording import About, versions

    tables = {
        kind: {name: {"plugin": one.plugin, "options": one.options.merged()} for name, one in plugins.items()}
        for kind, plugins in zip(_KINDS, (config.sensors, config.analyzers, config.policies), strict=True)
    }
    return Recorder(file, About(config.topology, {"profile": config.loop.profile, **tables}, versions()))


def deciders(recorded: Mapping[str, object], file: Path) -> tuple[list[Analyzer], list[Policy]]:
    """New analyzers and policies as `recorded` (About.config) had them.

    Raises RecordingError for what is no such table, PluginError for what is not installed here.
    """
    from mapek.plugins import ANALYZERS, POLICIES, create_all

    return (
        list(create_all(ANALYZERS, _chosen(recorded, "analyzers", file)).values()),
        list(create_all(POLICIES, _chosen(recorded, "policies", file)).values()),
    )


def _chosen(recorded: Mapping[str, object], kind: str, file: Path) -> dict[str, PluginConfig]:
    from mapek.config import PluginConfig, Table

    found = {}
    table = recorded.get(kind)
    for name, one in table.items() if isinstance(table, Mapping) else ():
        plugin = one.get("plugin") if isinstance(one, Mapping) else None
        options = one.get("options") if isinstance(one, Mapping) else None
        if not (isinstance(plugin, str) and plugin.isidentifier() and isinstance(options, Mapping)):
            raise RecordingError("replay", file, f"its {kind} are no table of plugins", "record it anew")
        found[str(name)] = PluginConfig(str(name), plugin, Table(options, str(file), f"[{kind}.{name}]"))
    if not found:
        raise RecordingError("replay", file, f"it names no {kind}", "name a configuration with -c FILE.toml")
    return found
