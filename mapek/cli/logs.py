"""What the loop warns of, a line each on stderr; while it starts, held back until it is known what failed.

A sensor that cannot open is logged by the loop and said by the command: once is enough.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection

from mapek.bpf.visible import visible


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # A traceback has lines of its own.
        return "\n".join(map(visible, super().format(record).split("\n")))


class Log(logging.StreamHandler):  # type: ignore[type-arg]
    """A handler for the root logger of our own process."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(_Plain("mapek: %(message)s"))
        self._held: list[logging.LogRecord] | None = []

    def emit(self, record: logging.LogRecord) -> None:
        """Write it, or hold it back."""
        if self._held is None:
            super().emit(record)
        else:
            self._held.append(record)

    def say_held(self, said: Collection[str] = ()) -> None:
        """Write what was held back, less what ends in one of `said`; hold nothing back any more."""
        held, self._held = self._held or [], None
        for record in held:
            if not any(record.getMessage().endswith(one) for one in said):
                super().emit(record)
