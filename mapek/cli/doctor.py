"""`mapek doctor`: what this machine can do, and which sensors of a configuration could run here; opens none.

What a sensor needs is what its class says in `variants`, by the same probes that the sensor itself asks; what else
the kernel is asked for is what our BPF objects demand (`mapek.bpf.demands`).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mapek.cli.telling import tell

if TYPE_CHECKING:
    from argparse import _SubParsersAction
    from collections.abc import Mapping

    from mapek.bpf.demands import Part
    from mapek.bpf.host import Condition
    from mapek.config import Config
    from mapek.service.kernel import Kernel


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one configured sensor: in which `variant` it will run ("" where it needs none or cannot run at all).

    Args:
        missing: what keeps it from running.
        passed_over: why not in each better variant, by name.
        degraded: what it will do without, in the words that `/health` and `/metrics` will have.
        do: what would make it run, or run better.
    """

    variant: str = ""
    missing: tuple[str, ...] = ()
    passed_over: tuple[tuple[str, str], ...] = ()
    degraded: tuple[str, ...] = ()
    do: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Told:
    """Of one part that our objects demand: "yes", "no" or "unknown", what brings it, and which objects use it."""

    answer: str
    since: str
    used_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Examined:
    """All that was found; `sensors` is None without a configuration."""

    kernel: Kernel
    conditions: tuple[Condition, ...]
    granted: Mapping[str, bool]
    parts: Mapping[Part, Told]
    sensors: Mapping[str, Verdict] | None

    @property
    def well(self) -> bool:
        """Whether programs can be loaded at all, and every configured sensor can run."""
        return not self.kernel.trouble and not any(one.missing for one in (self.sensors or {}).values())


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    command = commands.add_parser("doctor", help="what this machine can do")
    command.add_argument(
        "-c", "--config", metavar="FILE.toml", help="also say which of its sensors could run"
    )
    command.add_argument("--json", action="store_true", help="as one JSON object")
    command.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from mapek.bpf import host
    from mapek.cli import diagnosis
    from mapek.config import load_config
    from mapek.service.kernel import examine

    config = load_config(arguments.config) if arguments.config else None
    found = Examined(
        examine(), host.conditions(), host.granted(), _parts(), _sensors(config) if config else None
    )
    if arguments.json:
        print(json.dumps(diagnosis.document(found)))
    else:
        tell(*diagnosis.lines(found))
    return 0 if found.well else 1


def _parts() -> dict[Part, Told]:
    from mapek.bpf import demands, parts

    return {
        part: Told(parts.probe(part).value, parts.since(part), used_by)
        for part, used_by in demands.ours().items()
    }


def _sensors(config: Config) -> dict[str, Verdict]:
    """How each sensor of `config` would run here."""
    found = {name: _verdict(name, chosen, config) for name, chosen in config.sensors.items()}
    if absent := sorted({path.interface for path in config.topology.paths()} - _interfaces()):
        known = found.get("link_watch", Verdict())
        missing = (*known.missing, f"no interface {', '.join(absent)}")
        do = (*known.do, f"make {', '.join(absent)}, or correct `interface` of the paths")
        found["link_watch"] = replace(known, missing=missing, do=do)
    return found


def _verdict(name: str, chosen: object, config: Config) -> Verdict:
    from mapek import plugins
    from mapek.errors import MapekError
    from mapek.sensors.variants import choose, cures

    try:
        plugin = plugins.create(plugins.SENSORS, chosen, config.plugin_directory)  # type: ignore[arg-type]
    except MapekError as error:
        return Verdict(missing=(str(error),), do=(error.do,) if error.do else ())
    do = cures(plugin.variants, plugin.wanted_variant)
    try:
        shortfalls = plugin.shortfalls()
        choice = choose(name, plugin.variants, plugin.wanted_variant) if plugin.variants else None
    except MapekError as error:
        return Verdict(missing=(str(error),), do=tuple(dict.fromkeys(one for one in (*do, error.do) if one)))
    if choice is None:
        return Verdict(degraded=shortfalls)
    degraded = (*choice.degraded(), *shortfalls)
    return Verdict(choice.variant.name, (), tuple(choice.passed_over.items()), degraded, do)


def _interfaces() -> set[str]:
    import socket

    return {name for _, name in socket.if_nameindex()}
