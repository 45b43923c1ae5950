"""`mapek doctor`: what this machine can do, and which sensors of a configuration could run here; opens none.

What a sensor needs is what its class says in `variants`, by the same probes that the sensor itself asks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from mapek.config import Config
    from mapek.service.kernel import Kernel


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one configured sensor: in which `variant` it will run ("" where it needs none or cannot run at all).

    `missing`: what keeps it from running; `passed_over`: why not in each better variant, by name.
    """

    variant: str = ""
    missing: tuple[str, ...] = ()
    passed_over: Mapping[str, str] = field(default_factory=dict)


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    command = commands.add_parser("doctor", help="what this machine can do")
    command.add_argument(
        "-c", "--config", metavar="FILE.toml", help="also say which of its sensors could run"
    )
    command.add_argument("--json", action="store_true", help="as one JSON object")
    command.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from mapek.config import load_config
    from mapek.service.kernel import examine

    config = load_config(arguments.config) if arguments.config else None
    kernel = examine()
    sensors = _sensors(config) if config else {}
    well = not kernel.trouble and not any(verdict.missing for verdict in sensors.values())
    if arguments.json:
        print(json.dumps(_document(kernel, sensors if config else None, well)))
    else:
        print("\n".join(_lines(kernel, sensors)))
    return 0 if well else 1


def _sensors(config: Config) -> dict[str, Verdict]:
    """How each sensor of `config` would run here."""
    from mapek import plugins
    from mapek.errors import MapekError
    from mapek.sensors.variants import choose

    found: dict[str, Verdict] = {}
    for name, chosen in config.sensors.items():
        try:
            plugin = plugins.create(plugins.SENSORS, chosen, config.plugin_directory)
            if not plugin.variants:
                found[name] = Verdict()
                continue
            choice = choose(name, plugin.variants, plugin.wanted_variant)
        except MapekError as error:
            found[name] = Verdict(missing=(str(error),))
        else:
            found[name] = Verdict(choice.variant.name, passed_over=choice.passed_over)
    if absent := sorted({path.interface for path in config.topology.paths()} - _interfaces()):
        known = found.get("link_watch", Verdict())
        found["link_watch"] = replace(known, missing=(*known.missing, f"no interface {', '.join(absent)}"))
    return found


def _interfaces() -> set[str]:
    import socket

    return {name for _, name in socket.if_nameindex()}


def _document(kernel: Kernel, sensors: dict[str, Verdict] | None, well: bool) -> dict[str, object]:
    found: dict[str, object] = {
        "ok": well,
        "kernel": {"release": kernel.release, "features": dict(kernel.features)},
        "ebpf_loader": {"ok": not kernel.trouble, "libbpf": kernel.libbpf or None, "trouble": kernel.trouble},
        "capabilities": list(kernel.capabilities),
    }
    if sensors is not None:
        found["sensors"] = {
            name: {
                "ok": not one.missing,
                "variant": one.variant or None,
                "missing": list(one.missing),
                "passed_over": dict(one.passed_over),
            }
            for name, one in sensors.items()
        }
    return found


def _lines(kernel: Kernel, sensors: dict[str, Verdict]) -> list[str]:
    wanted = ("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "CAP_SYS_ADMIN", "CAP_SYS_NICE", "CAP_IPC_LOCK")
    lines = [f"kernel       {kernel.release}", f"libbpf       {kernel.libbpf or kernel.trouble}"]
    lines += [f"{name:<19}{'yes' if name in kernel.capabilities else 'no'}" for name in wanted]
    lines += [f"{name:<19}{answer}" for name, answer in kernel.features.items()]
    for name, one in sensors.items():
        lines.append(f"sensor {name:<17}{'; '.join(one.missing) or f'will run {one.variant}'.rstrip()}")
        lines += [f"{'':<24}not {better}: {why}" for better, why in one.passed_over.items()]
    return lines
