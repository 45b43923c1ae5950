"""`mapek doctor`: what this machine can do, and which sensors of a configuration could run here; opens none.

What a sensor needs is what its class says in `variants`, by the same probes that the sensor itself asks; what else
the kernel is asked for is what our BPF objects demand (`mapek.bpf.demands`).
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from mapek.cli.telling import tell

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from mapek.bpf.demands import Part
    from mapek.cli.diagnosis import Told, Verdict
    from mapek.config import Config


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
    found = diagnosis.Examined(
        examine(), host.conditions(), host.granted(), _parts(), _sensors(config) if config else None
    )
    if arguments.json:
        print(json.dumps(diagnosis.document(found)))
    else:
        tell(*diagnosis.lines(found))
    return 0 if found.well else 1


def _parts() -> dict[Part, Told]:
    from mapek.bpf import demands, parts
    from mapek.cli.diagnosis import Told

    return {
        part: Told(parts.probe(part).value, parts.since(part), used_by)
        for part, used_by in demands.ours().items()
    }


def _sensors(config: Config) -> dict[str, Verdict]:
    """How each sensor of `config` would run here."""
    return {name: _verdict(name, chosen, config) for name, chosen in config.sensors.items()}


def _verdict(name: str, chosen: object, config: Config) -> Verdict:
    from mapek import plugins
    from mapek.cli.diagnosis import Verdict
    from mapek.errors import MapekError, TemporaryError
    from mapek.sensors.variants import choose, cures

    try:
        plugin = plugins.create(plugins.SENSORS, chosen, config.plugin_directory)  # type: ignore[arg-type]
    except MapekError as error:
        return Verdict(missing=(str(error),), do=(error.do,) if error.do else ())
    do = cures(plugin.variants, plugin.wanted_variant)
    shortfalls: tuple[str, ...] = ()
    away: MapekError | None = None
    try:
        # What may come is told only where nothing worse is: an agent meets that first.
        try:
            shortfalls = plugin.shortfalls(config.topology)
        except TemporaryError as error:
            away = error
        choice = choose(name, plugin.variants, plugin.wanted_variant) if plugin.variants else None
        if away is not None:
            raise away
    except MapekError as error:
        cures_it = tuple(dict.fromkeys(one for one in (*do, error.do) if one))
        waits = config.loop.wait and isinstance(error, TemporaryError)
        return Verdict(missing=(str(error),), do=cures_it, waits=waits)
    if choice is None:
        return Verdict(degraded=shortfalls)
    degraded = (*choice.degraded(), *shortfalls)
    return Verdict(choice.variant.name, (), tuple(choice.passed_over.items()), degraded, do)
