"""Lets a process go of each capability as soon as none of its touchpoints may need it any more.

What a touchpoint needs it says itself (`Touchpoint.capabilities`), before it is open and afterwards; one that has
not opened yet, and is tried again for ever, keeps what it needs. `mapek run` does this; a program that embeds a loop
is asked nothing and loses nothing unless it calls `Privileges` too, in the thread of its event loop.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from mapek.bpf import capabilities
from mapek.errors import PrivilegeError

if TYPE_CHECKING:
    from pathlib import Path

    from mapek.clock import Timer
    from mapek.contracts import Touchpoint
    from mapek.errors import MapekError
    from mapek.loop import Loop

log = logging.getLogger("mapek")

LOOK_NS = 1_000_000_000


class Privileges:
    """The capabilities of this process.

    Attributes:
        needed_by: who needs which of those that are held, by touchpoint; "" for the process itself.
        dropped: what was held at first and is not any more.
    """

    def __init__(self) -> None:
        self._first = capabilities.permitted()
        self.needed_by: dict[str, frozenset[str]] = {}
        self._timer: Timer | None = None

    @property
    def held(self) -> frozenset[str]:
        """What the calling thread has in effect."""
        return capabilities.effective()

    @property
    def dropped(self) -> frozenset[str]:
        return self._first - capabilities.permitted()

    def before(self, touchpoints: Iterable[Touchpoint], also: Collection[str] = ()) -> None:
        """Keep what these need to be opened, and `also`; let go of the rest. Raises PrivilegeError."""
        self._keep({one.name: one.capabilities(False) for one in touchpoints}, also)

    def after(self, loop: Loop, also: Collection[str] = ()) -> None:
        """Keep what the loop still needs, and `also`; look again each second until all its touchpoints are open.

        Raises PrivilegeError now; later it is logged, as is a thread that holds more a second afterwards.
        """
        watched = loop.monitor.watched

        def keep() -> None:
            self._keep({name: one.touchpoint.capabilities(one.open) for name, one in watched.items()}, also)

        def look() -> None:
            self._timer = None
            everything = all(one.open for one in watched.values())
            loop.supervision.call("privileges", None, keep)
            for thread, more in self.strays().items():
                if thread not in said:
                    said.add(thread)
                    log.warning("the thread %s still holds %s", thread, ", ".join(sorted(more)))
            if not everything:
                self._timer = loop.clock.call_at(loop.clock.now_ns() + LOOK_NS, look)

        said = set[str]()
        keep()
        self._timer = loop.clock.call_at(loop.clock.now_ns() + LOOK_NS, look)

    def unsaid(self, touchpoint: Touchpoint, error: MapekError) -> PrivilegeError | None:
        """Why `touchpoint` failed to open with `error`, if that is because it never named what it needs."""
        gone = " and ".join(one for one in sorted(self.dropped) if one in error.why)
        if not isinstance(error, PrivilegeError) or not gone or touchpoint.capabilities(False):
            return None
        why = f"it names no capability, so that {gone} went before it was opened"
        return PrivilegeError("open", touchpoint.name, why, "let its `capabilities` return what it needs")

    def stop(self) -> None:
        """Look no more; twice is fine."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def strays(self) -> dict[str, frozenset[str]]:
        """Threads that hold more than this one, which may have begun before it let go, and what they hold."""
        mine = capabilities.permitted()
        return {thread: more for thread, held in capabilities.of_threads().items() if (more := held - mine)}

    def _keep(self, needs: Mapping[str, frozenset[str]], also: Collection[str]) -> None:
        wanted = frozenset(also).union(*needs.values())
        held = capabilities.permitted()
        if {"CAP_BPF", "CAP_PERFMON"} & wanted - held and "CAP_SYS_ADMIN" in held:
            wanted |= {"CAP_SYS_ADMIN"}  # before 5.8 it stood for both
        if held - wanted:
            capabilities.hold_only(wanted)
        held = capabilities.permitted()
        found = {name: one & held for name, one in {**needs, "": frozenset(also)}.items()}
        self.needed_by = {name: one for name, one in found.items() if one}


def for_files(*places: Path | None) -> frozenset[str]:
    """What root needs to write below these folders: CAP_DAC_OVERRIDE where one is another user's, else nothing.

    Places that are not there yet are judged by the nearest above. Who is not root needs folders of his own.
    """
    for place in filter(None, places if os.geteuid() == 0 else ()):
        there = next((one for one in (place, *place.parents) if one.exists()), None)
        if there is not None and there.stat().st_uid != 0:
            return frozenset(("CAP_DAC_OVERRIDE",))
    return frozenset()
