"""Which sensors "all sensors" are: every one that has an entry point and that opens on this machine.

What is left out is named with its reason, so that a number for "all" says of what.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from mapek.errors import MapekError
from mapek.plugins import SENSORS, available, find
from mapek.sensors.variants import choose
from mapek.simulations.agent import Mapek, configuration
from mapek.simulations.bench.child import measured
from mapek.simulations.lab import Lab


@dataclass(frozen=True, slots=True)
class AllSensors:
    """`names` can run here; `left_out` says why others cannot, by name."""

    names: tuple[str, ...]
    left_out: Mapping[str, str]

    @property
    def tables(self) -> str:
        """The lines of a configuration that enable them all, with their defaults."""
        return "\n".join(f"[sensors.{name}]" for name in self.names)

    @property
    def note(self) -> str:
        """Who they are, and who is missing why."""
        out = "".join(f"; without {name} ({why})" for name, why in self.left_out.items())
        return f"{len(self.names)} sensors: {' '.join(self.names)}{out}"


async def all_sensors(lab: Lab) -> AllSensors:
    """Asks each sensor's variants, then opens the rest once on a node of `lab`, as an agent would."""
    hopeful = await asyncio.to_thread(_hopeful)
    # An agent with the defaults leaves behind what a configuration needs: keys and folders.
    agents = Mapek("default")
    try:
        await agents.open(lab)
    finally:
        await agents.close()
    node = next(iter(lab.nodes.values()))
    toml = configuration(lab, node, "default", extra=hopeful.tables)
    (node.namespace.files / "mapek.toml").write_text(toml)
    what = f"sensors on {node.name}"
    (found,) = await measured("reads_child", "/run/mapek.toml", 0, 0, what=what, inside=node.namespace)
    failed = found["failed"]
    assert isinstance(failed, dict)
    names = tuple(name for name in hopeful.names if name not in failed)
    return AllSensors(names, {**hopeful.left_out, **failed})


def _hopeful() -> AllSensors:
    """Imports them all."""
    names, left_out = [], dict[str, str]()
    for name in available(SENSORS):
        try:
            kind = find(SENSORS, name)
            if kind.variants:
                choose(name, kind.variants)
        except MapekError as error:
            left_out[name] = error.why
        else:
            names.append(name)
    return AllSensors(tuple(names), left_out)
