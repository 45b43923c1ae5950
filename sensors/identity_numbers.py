"""SPIFFE ID <-> number for one run: a number is one identity's for good, so that what was counted by it stays its own.

A set that is taken whole has its numbers promised first: whoever comes in between cannot take one, and so the set
cannot fail half-way. What is known is bounded, because the names come from files and other nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from mapek.errors import ConfigError, DegradedError

FIRST_OWN: Final = 1 << 31
"""The first number that the registry itself gives."""
_LAST: Final = (1 << 32) - 1
KNOWN: Final = 65_536
"""SPIFFE IDs that are remembered in a run, whether they have addresses or not."""


@dataclass(slots=True)
class Numbers:
    """Both ways. Given numbers are below `FIRST_OWN`; 0 asks for one from there on."""

    _numbers: dict[str, int] = field(default_factory=dict)
    _names: dict[int, str] = field(default_factory=dict)
    _next: int = FIRST_OWN
    _set: set[str] = field(default_factory=set)
    _promised: dict[str, int] = field(default_factory=dict)
    _promised_to: dict[int, str] = field(default_factory=dict)
    _remembered: set[str] = field(default_factory=set)
    """Whose number is from a run before, until it is given: who says another one is right."""

    def number(self, spiffe_id: str) -> int | None:
        """The number of a SPIFFE ID that was given one."""
        return self._numbers.get(spiffe_id)

    def spiffe_id(self, number: int) -> str | None:
        """Whose a number is."""
        return self._names.get(number)

    def give(self, spiffe_id: str, number: int) -> int:
        """The number of `spiffe_id`, by `number` or counted.

        Raises ConfigError when the number is another's or was another one before, DegradedError when too many are
        known.
        """
        self._give_way(spiffe_id, number)
        known = self._numbers.get(spiffe_id) or self._promised.get(spiffe_id)
        if known and number not in (0, known):
            why = f"it has number {known} in this run, not {number}"
            raise ConfigError("register", spiffe_id, why, "restart to change it")
        if spiffe_id in self._numbers:
            self._remembered.discard(spiffe_id)
            return self._numbers[spiffe_id]
        number = number or known or 0
        if (other := self._owner(number)) not in (None, spiffe_id):
            why = f"number {number} is that of {other}"
            raise ConfigError("register", spiffe_id, why, "give another; none is used twice in a run")
        if not self._room(spiffe_id):
            why = f"{KNOWN} SPIFFE IDs were seen in this run"
            raise DegradedError("register", spiffe_id, why, "restart, or register fewer")
        if not number:
            number, self._next = self._next, self._next + 1
        self._numbers[spiffe_id], self._names[number] = number, spiffe_id
        self._promised.pop(spiffe_id, None)
        return number

    def promise(self, spiffe_id: str, number: int) -> None:
        """Let `give` do this for one of a set, until `end`. Raises ConfigError when it could not."""
        if spiffe_id in self._set:
            raise ConfigError("register", spiffe_id, "it is there twice", "join the two entries")
        self._give_way(spiffe_id, number)
        known, other = self._numbers.get(spiffe_id), self._owner(number)
        if number and ((known or number) != number or other not in (None, spiffe_id)):
            why = f"number {number} is taken by {other or f'itself, as {known},'} in this run"
            raise ConfigError("register", spiffe_id, why, "give another, or restart")
        if known is None and not self._room(spiffe_id):
            raise ConfigError("register", spiffe_id, f"no more than {KNOWN} fit a run", "restart")
        self._set.add(spiffe_id)
        if known is None:
            self._promised[spiffe_id] = number
        if number:
            self._promised_to[number] = spiffe_id

    def remember(self, spiffe_id: str, number: int) -> bool:
        """It had this number in a run before; False when that cannot be any more."""
        if spiffe_id in self._numbers or number in self._names:
            return self._numbers.get(spiffe_id) == number
        if not 0 < number < _LAST or not self._room(spiffe_id):
            return False
        self._numbers[spiffe_id], self._names[number] = number, spiffe_id
        self._remembered.add(spiffe_id)
        self._next = max(self._next, number + 1)
        return True

    def _give_way(self, spiffe_id: str, number: int) -> None:
        """Forget what was only remembered and is said otherwise now."""
        if not number:
            return
        for one in {spiffe_id, self._names.get(number, spiffe_id)} & self._remembered:
            if (one, number) != (spiffe_id, self._numbers[one]):
                self._remembered.discard(one)
                del self._names[self._numbers.pop(one)]

    def end(self) -> None:
        """The set is there, or given up."""
        self._set.clear()
        self._promised.clear()
        self._promised_to.clear()

    def _owner(self, number: int) -> str | None:
        return self._names.get(number) or self._promised_to.get(number)

    def _room(self, spiffe_id: str) -> bool:
        return len(self._numbers) + len(self._promised) - (spiffe_id in self._promised) < KNOWN
