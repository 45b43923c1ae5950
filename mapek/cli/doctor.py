"""`mapek doctor`: what this machine can do, and which sensors of a configuration could run here; opens none.

What a sensor needs is what its class says in `needs`: capabilities ("CAP_BPF") and features of
`mapek.bpf.features` ("bpf_timer").
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from mapek.config import Config
    from mapek.service.kernel import Kernel

_NEEDS = {
    "xdp_counter": ("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "ringbuf"),
    "link_watch": ("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "ringbuf", "mmapable_array"),
    "netlink": ("CAP_NET_ADMIN",),
}


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
    sensors = _sensors(config, kernel) if config else {}
    well = not kernel.trouble and not any(sensors.values())
    if arguments.json:
        print(json.dumps(_document(kernel, sensors if config else None, well)))
    else:
        print("\n".join(_lines(kernel, sensors)))
    return 0 if well else 1


def _sensors(config: Config, kernel: Kernel) -> dict[str, list[str]]:
    """What keeps each sensor of `config` from running; an empty list where nothing does."""
    from mapek import plugins
    from mapek.errors import MapekError

    found: dict[str, list[str]] = {}
    for name, chosen in config.sensors.items():
        try:
            plugin = plugins.create(plugins.SENSORS, chosen, config.plugin_directory)
        except MapekError as error:
            found[name] = [str(error)]
            continue
        needs: tuple[str, ...] = getattr(type(plugin), "needs", _NEEDS.get(chosen.plugin, ()))
        found[name] = [missing for need in needs if (missing := _missing(need, kernel))]
    if absent := sorted({path.interface for path in config.topology.paths()} - _interfaces()):
        found.setdefault("link_watch", []).append(f"no interface {', '.join(absent)}")
    return found


def _missing(need: str, kernel: Kernel) -> str:
    if need.startswith("CAP_"):
        return "" if need in kernel.capabilities else f"{need} is missing"
    if kernel.trouble:
        return kernel.trouble
    answer = kernel.features.get(need, "unknown")
    return f"the kernel has no {need}: {answer}" if answer.startswith("no") else ""


def _interfaces() -> set[str]:
    import socket

    return {name for _, name in socket.if_nameindex()}


def _document(kernel: Kernel, sensors: dict[str, list[str]] | None, well: bool) -> dict[str, object]:
    found: dict[str, object] = {
        "ok": well,
        "kernel": {"release": kernel.release, "features": dict(kernel.features)},
        "ebpf_loader": {"ok": not kernel.trouble, "libbpf": kernel.libbpf or None, "trouble": kernel.trouble},
        "capabilities": list(kernel.capabilities),
    }
    if sensors is not None:
        found["sensors"] = {
            name: {"ok": not missing, "missing": missing} for name, missing in sensors.items()
        }
    return found


def _lines(kernel: Kernel, sensors: dict[str, list[str]]) -> list[str]:
    wanted = ("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "CAP_SYS_ADMIN", "CAP_SYS_NICE", "CAP_IPC_LOCK")
    lines = [f"kernel       {kernel.release}", f"libbpf       {kernel.libbpf or kernel.trouble}"]
    lines += [f"{name:<19}{'yes' if name in kernel.capabilities else 'no'}" for name in wanted]
    lines += [f"{name:<19}{answer}" for name, answer in kernel.features.items()]
    lines += [f"sensor {name:<12}{'; '.join(missing) or 'can run'}" for name, missing in sensors.items()]
    return lines
