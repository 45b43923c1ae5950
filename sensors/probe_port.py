"""The UDP port that this loop's probes go to: said once, by link_watch, and asked for by whoever must know it.

A filter that spared another port would cut off the very probes that say whether the peer lives, so it takes the port
from here and has no option of its own that could disagree.
"""

from __future__ import annotations

from mapek.errors import ConfigError
from mapek.sensors.link_watch_layout import PORT


class ProbePort:
    """The port, one for each loop (`Surroundings.shared(ProbePort)`); that of RFC 8762 until somebody says another."""

    def __init__(self) -> None:
        self._port, self._asker = PORT, ""

    def say(self, port: int) -> None:
        """It is `port`. Raises ConfigError where somebody has gone by another already."""
        if self._asker and port != self._port:
            why = f"is {port}, and {self._asker} was opened before and spares {self._port}"
            raise ConfigError("open", "link_watch: port", why, f"name link_watch before {self._asker}")
        self._port = port

    def ask(self, asker: str) -> int:
        """The port, which from now on cannot become another one."""
        self._asker = asker
        return self._port
