"""The JSON of `/health`: what works, what works with less, and what does not, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from mapek.service.kernel import Kernel
from mapek.service.state import LoopView, SensorView

if TYPE_CHECKING:
    from mapek.service.privileges import Privileges

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]


def status_of(view: LoopView) -> Literal["ok", "degraded", "failing"]:
    """failing: the loop cannot work. degraded: it does, with less than what was configured."""
    if view.trouble:
        return "failing"
    for sensor in view.sensors.values():
        # A sensor that is attached but fails when it is read says "up" of itself.
        if not sensor.status.up or sensor.status.degraded or sensor.failure:
            return "degraded"
    return "ok"


def health(
    view: LoopView,
    kernel: Kernel | None,
    *,
    node: str,
    version: str,
    privileges: Privileges | None = None,
) -> dict[str, Json]:
    """The whole document. `kernel` is None until it has been examined; `privileges` where they are not looked after."""
    return {
        "status": status_of(view),
        "node": node,
        "version": version,
        "loop": {"working": not view.trouble, "trouble": view.trouble, "incidents": _incidents(view)},
        "sensors": {name: _sensor(sensor) for name, sensor in view.sensors.items()},
        "ebpf_loader": _loader(kernel),
        "kernel": {
            "release": kernel.release if kernel else None,
            "features": _words(kernel.features) if kernel else None,
            "capabilities": list[Json](kernel.capabilities) if kernel else None,
        },
        "privileges": _privileges(privileges) if privileges else None,
    }


def _privileges(privileges: Privileges) -> Json:
    return {
        "held": list[Json](sorted(privileges.held)),
        "dropped": list[Json](sorted(privileges.dropped)),
        "needed_by": {
            name or "the process": list[Json](sorted(needed)) for name, needed in privileges.needed_by.items()
        },
    }


def _sensor(sensor: SensorView) -> Json:
    status = sensor.status
    return {
        "up": status.up,
        "attached": [{"target": target, "mode": mode} for target, mode in status.attached.items()],
        "degraded": list[Json](status.degraded),
        "counts": _numbers(status.counts),
        "failure": sensor.failure,
    }


def _loader(kernel: Kernel | None) -> Json:
    if kernel is None:
        return {"ok": None, "libbpf": None, "trouble": "not examined yet"}
    return {"ok": not kernel.trouble, "libbpf": kernel.libbpf or None, "trouble": kernel.trouble}


def _incidents(view: LoopView) -> Json:
    states: dict[str, Json] = {}
    for labels, count in view.tally.counters.get("incidents", {}).items():
        state = dict(labels).get("state", "")
        before = states.get(state, 0)
        states[state] = (before if isinstance(before, int) else 0) + count
    return states


def _numbers(found: Mapping[str, int]) -> dict[str, Json]:
    return dict(found)


def _words(found: Mapping[str, str]) -> dict[str, Json]:
    return dict(found)
