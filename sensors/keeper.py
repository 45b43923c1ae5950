"""What the BPF sensors of one loop keep for the agent after this one: where, and for whom.

The directory is that of the agent's state directory in its network namespace, so that several agents of one machine,
or of one namespace, do not meet. What sensors kept that are not configured any more is ended by the first that opens.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

from mapek.bpf import ObjectSpec, pins
from mapek.bpf.keep import Keep, Kept
from mapek.bpf.place import Place, places
from mapek.bpf.worker import in_thread
from mapek.contracts import Surroundings
from mapek.errors import MapekError
from mapek.sensors.hooks import Hooks

log = logging.getLogger("mapek")


class Keeper:
    """Shared by the sensors of one loop; get it by `keeper`."""

    def __init__(self) -> None:
        self._agent: Path | None = None
        self._sensors: frozenset[str] = frozenset()
        self._served = self._swept = False

    def begin(self, around: Surroundings) -> None:
        """Know whose it is. Again is fine."""
        state = "" if around.state_dir is None else str(around.state_dir.resolve())
        self._agent = pins.agent_dir(hashlib.sha256(state.encode()).hexdigest()[:12])
        self._sensors = around.touchpoints

    def serve(self) -> None:
        """A loop has run with it: what it made is worth keeping."""
        self._served = True

    def slots(self, interface: str) -> set[str]:
        """Which slots of an interface's chain belong to sensors that kept something and are still configured."""
        assert self._agent is not None
        found = {name for name in self._sensors if Place(self._agent, name, interface).exists()}
        return found | {name for name in self._sensors if Place(self._agent, name).exists()}

    def keep(
        self,
        sensor: str,
        maps: tuple[str, ...],
        *,
        on: bool,
        interface: str = "",
        meaning: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
        beside: Mapping[str, tuple[str, int, int, int]] | None = None,
    ) -> Keep:
        """What `sensor` keeps, or without `on` nothing, and no longer what it kept before; see `Keep`."""
        assert self._agent is not None
        place = Place(self._agent, sensor, interface)
        return Keep(place, maps, meaning or {}, settings or {}, beside or {}, on, lambda: self._served)

    async def take(self, keep: Keep, spec: ObjectSpec, max_entries: Mapping[str, int] | None = None) -> Kept:
        """Raises AttachError and PinError as `Kept.take`."""
        if not keep.on and not pins.seen(keep.place.agent):
            # Nobody of ours ever kept anything: no need for a thread.
            return Kept(keep)
        return await in_thread(lambda: self.take_now(keep, spec, max_entries), Kept.close)

    def take_now(self, keep: Keep, spec: ObjectSpec, max_entries: Mapping[str, int] | None = None) -> Kept:
        """`take` in a thread that may block."""
        swept, self._swept = self._swept, True
        if not swept:
            self._sweep(keep.place.agent)
        return Kept.take(keep, spec, max_entries)

    def _sweep(self, agent: Path) -> None:
        """End what sensors kept that are configured no more. Blocks."""
        if not self._sensors or pins.trouble():
            return
        try:
            found = places(agent)
        except MapekError as error:
            log.warning("%s", error)
            return
        for place in found:
            if place.sensor not in self._sensors:
                # What is in use, or is not ours, keeps nobody from the others.
                try:
                    Kept.end(place)
                except (MapekError, OSError) as error:
                    log.warning("%s", error)


def keeper(around: Surroundings) -> Keeper:
    """The one of this loop."""
    found = around.shared(Keeper)
    found.begin(around)
    around.shared(Hooks).stays_of = found.slots
    return found
