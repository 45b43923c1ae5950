"""What restores an identity's verdict: each action takes back its own change and nobody else's, in whatever order.

The changes of an identity lie on each other. Taking back the topmost brings back what was below it, if the kernel still
has what it set. Taking back one further down writes nothing: the one above it goes back to where that began. The same
action with the same rate and burst, done again, is one change.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

DEEPEST: Final = 16
"""Changes that are remembered of an identity; the oldest are forgotten."""


@dataclass(slots=True)
class Undo:
    """Policies as the kernel has them, by number: what was set, the latest last, and what it found there."""

    _changes: dict[int, dict[bytes, bytes]] = field(default_factory=dict)

    def done(self, number: int, before: bytes, after: bytes) -> None:
        """`after` was set where `before` was."""
        self._take_out(number, after)
        changes = self._changes.setdefault(number, {})
        changes[after] = before
        if len(changes) > DEEPEST:
            del changes[next(iter(changes))]

    def back(self, number: int, after: bytes, now: bytes) -> bytes | None:
        """What to set so that `after` was never set, where the kernel has `now`; None: leave it.

        Ask `forget` when that is done.
        """
        changes = self._changes.get(number, {})
        if after not in changes or after != next(reversed(changes)) or now != after:
            return None
        return changes[after]

    def forget(self, number: int, after: bytes) -> None:
        """That change is taken back."""
        self._take_out(number, after)
        if not self._changes.get(number, True):
            del self._changes[number]

    def _take_out(self, number: int, after: bytes) -> None:
        changes = self._changes.get(number, {})
        found = changes.get(after)
        if found is None:
            return
        above = list(changes)[list(changes).index(after) + 1 :]
        del changes[after]
        # What somebody else set in between is not ours to take back.
        if above and changes[above[0]] == after:
            changes[above[0]] = found
