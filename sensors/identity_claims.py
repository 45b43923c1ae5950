"""Who claims which address: the latest holds it, and what changed is told once, what is new before what is gone.

While a set is replaced bit by bit, addresses that nobody holds are put off: they may come again later in the set, and
must not be nobody's in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from itertools import islice

Address = IPv4Network | IPv6Network | bytes
"""A source prefix, or the six bytes of a MAC."""
Key = tuple[str, str]
"""A claimant: where it is said, and of which SPIFFE ID."""


@dataclass(slots=True)
class Claims:
    """`tell` gets the addresses whose number changed, None for nobody's; also when there are none."""

    tell: Callable[[Mapping[Address, int | None]], None]
    _claims: dict[Address, dict[Key, int]] = field(default_factory=dict)
    _touched: dict[Address, int | None] | None = None
    """Whose they were when the outermost change began."""
    _put_off: dict[Address, int | None] | None = None

    def holders(self) -> dict[Address, int]:
        """Which address stands for which number."""
        return {address: next(reversed(claims.values())) for address, claims in self._claims.items()}

    def holder(self, address: Address) -> int | None:
        """The number that it stands for now."""
        claims = self._claims.get(address)
        return next(reversed(claims.values())) if claims else None

    def claim(self, address: Address, key: Key, number: int) -> None:
        """`key` holds it from now on; only within `changes`."""
        self._touch(address)
        self._claims.setdefault(address, {})[key] = number

    def give_up(self, address: Address, key: Key) -> None:
        """Whoever claimed it before `key` gets it back; only within `changes`."""
        self._touch(address)
        claims = self._claims[address]
        claims.pop(key, None)
        if not claims:
            del self._claims[address]

    @contextmanager
    def changes(self) -> Iterator[None]:
        """What happens inside is told at once when the outermost ends."""
        outermost = self._touched is None
        if self._touched is None:
            self._touched = {}
        try:
            yield
        finally:
            if outermost:
                before, self._touched = self._touched, None
                if self._put_off is not None:
                    before = {one: self._put_off.pop(one, number) for one, number in before.items()}
                    gone = {one: before.pop(one) for one in list(before) if one not in self._claims}
                    self._put_off |= gone
                self._tell(before)

    def put_off(self) -> None:
        """Tell of nobody's addresses no more, until `catch_up`."""
        self._put_off = {}

    def catch_up(self, most: int | None = None) -> bool:
        """Tell of at most so many that were put off; with None of all, and put none off any more. False if none."""
        behind = self._put_off or {}
        some = list(islice(behind, most))
        if some:
            self._tell({one: behind.pop(one) for one in some})
        if most is None:
            self._put_off = None
        return bool(some)

    def _touch(self, address: Address) -> None:
        assert self._touched is not None
        self._touched.setdefault(address, self.holder(address))

    def _tell(self, before: Mapping[Address, int | None]) -> None:
        now = {one: self.holder(one) for one in before}
        changed = {one: number for one, number in now.items() if number != before[one]}
        self.tell(dict(sorted(changed.items(), key=lambda item: item[1] is None)))
