"""Which identity a source address stands for: SPIFFE ID <-> number, prefix or MAC -> number, each entry with an expiry.

One registry per loop (`Surroundings.shared(Identities)`), which a file, a touchpoint that sees SVIDs, or a program that
embeds the loop fill. It is attribution and not authentication: put in only what an authenticated source vouches for.
Where several entries claim one address, the latest holds it, and the one before gets it back when that goes. Numbers
below 2^31 are given by whoever puts an entry in; the registry counts upward from there and uses none twice in a run.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Final, Literal, Protocol

from mapek.config.options import plain
from mapek.errors import ConfigError, DegradedError
from mapek.sensors import spiffe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mapek.clock import Clock, Timer

FIRST_OWN: Final = 1 << 31
"""The first number that the registry itself gives."""
KNOWN: Final = 65_536
"""SPIFFE IDs that are remembered in a run, whether they have addresses or not."""
MAX_RATE: Final = 1_000_000
MAX_BURST: Final = 1_000_000

Address = IPv4Network | IPv6Network | bytes
"""A source prefix, or the six bytes of a MAC."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of an identity's packets; with "limit", `rate` packets a second and at most `burst` at once."""

    kind: Literal["allow", "deny", "limit"]
    rate: int = 0
    burst: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("allow", "deny", "limit"):
            raise ConfigError("set", "verdict", f"{plain(self.kind)!r} is none", "say allow, deny or limit")
        if self.kind != "limit" and (self.rate or self.burst):
            raise ConfigError("set", f"verdict {self.kind}", "it has a rate or burst", "that is for limit")
        if self.kind == "limit" and not (1 <= self.rate <= MAX_RATE and 1 <= self.burst <= MAX_BURST):
            why = f"rate {self.rate} or burst {self.burst} is out of range"
            raise ConfigError("set", "verdict limit", why, f"both are 1 to {MAX_RATE} packets")


ALLOW: Final = Verdict("allow")
DENY: Final = Verdict("deny")


@dataclass(frozen=True, slots=True)
class Entry:
    """Addresses that stand for an identity.

    Args:
        spiffe_id: whose they are.
        prefixes: source prefixes, without host bits.
        macs: unicast MAC addresses, six bytes each.
        expires_ns: CLOCK_MONOTONIC, when the entry ends; None: when it is removed.
        number: below 2^31, the same in every run; 0: the registry counts one.
        verdict: what to begin with; None: leave it as it is.

    Raises ConfigError for a SPIFFE ID, number or MAC that cannot be.
    """

    spiffe_id: str
    prefixes: tuple[IPv4Network | IPv6Network, ...] = ()
    macs: tuple[bytes, ...] = ()
    expires_ns: int | None = None
    number: int = 0
    verdict: Verdict | None = None

    def __post_init__(self) -> None:
        spiffe.parse(self.spiffe_id)
        if not 0 <= self.number < FIRST_OWN:
            raise ConfigError(
                "register", self.spiffe_id, f"number {self.number}", f"give 1 to {FIRST_OWN - 1}"
            )
        for mac in self.macs:
            if len(mac) != 6 or mac[0] & 1 or mac == bytes(6):
                raise ConfigError(
                    "register", self.spiffe_id, f"{mac.hex(':')} is no source", "give unicast MACs"
                )

    def addresses(self) -> tuple[Address, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys((*self.prefixes, *self.macs)))


class Listener(Protocol):
    """Who carries out what the registry knows."""

    def assign(self, addresses: Mapping[Address, int | None]) -> None:
        """These addresses stand for that identity from now on, or (None) for nobody; do the former first."""

    def intend(self, number: int, verdict: Verdict) -> None:
        """An entry with this verdict came in, or another one than before."""


_Key = tuple[str, str]


@dataclass(slots=True)
class Identities:
    """The registry. `expired` counts entries that ended by themselves."""

    expired: int = 0
    _entries: dict[_Key, Entry] = field(default_factory=dict)
    _claims: dict[Address, dict[_Key, int]] = field(default_factory=dict)
    _numbers: dict[str, int] = field(default_factory=dict)
    _names: dict[int, str] = field(default_factory=dict)
    _holders: dict[int, int] = field(default_factory=dict)
    _next: int = FIRST_OWN
    _due: list[tuple[int, _Key]] = field(default_factory=list)
    _timer: Timer | None = None
    _clock: Clock | None = None
    _listeners: list[Listener] = field(default_factory=list)
    _touched: dict[Address, int | None] | None = None

    def put(self, entry: Entry, source: str = "api") -> int:
        """Register `entry` in place of what `source` said of this SPIFFE ID before; returns its number.

        Raises ConfigError when the number is another's or was another one before in this run.
        """
        number = self._number(entry)
        key = (source, entry.spiffe_id)
        with self._changes():
            before = self._entries.pop(key, None)
            for address in before.addresses() if before is not None else ():
                self._unclaim(address, key)
            self._entries[key] = entry
            if before is None:
                self._holders[number] = self._holders.get(number, 0) + 1
            for address in entry.addresses():
                self._touch(address)
                self._claims.setdefault(address, {})[key] = number
            if entry.verdict is not None and (before is None or before.verdict != entry.verdict):
                # Before its addresses are told, so that no packet of a denied one passes in between.
                for listener in tuple(self._listeners):
                    listener.intend(number, entry.verdict)
        if entry.expires_ns is not None:
            heapq.heappush(self._due, (entry.expires_ns, key))
            self._arm()
        return number

    def remove(self, spiffe_id: str, source: str = "api") -> bool:
        """Forget what `source` said of this SPIFFE ID; its number stays taken. False if that was nothing."""
        key = (source, spiffe_id)
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self._holders[self._numbers[spiffe_id]] -= 1
        with self._changes():
            for address in entry.addresses():
                self._unclaim(address, key)
        return True

    def replace(self, entries: Iterable[Entry], source: str) -> None:
        """Let `entries` be all that `source` says; all of them or, with ConfigError, none."""
        wanted = list(entries)
        self._check_together(wanted)
        with self._changes():
            for entry in wanted:
                if self._entries.get((source, entry.spiffe_id)) != entry:
                    self.put(entry, source)
            kept = {entry.spiffe_id for entry in wanted}
            for key in [key for key in self._entries if key[0] == source and key[1] not in kept]:
                self.remove(key[1], source)

    def number(self, spiffe_id: str) -> int | None:
        """The number of a SPIFFE ID that was registered in this run."""
        return self._numbers.get(spiffe_id)

    def spiffe_id(self, number: int) -> str | None:
        """The SPIFFE ID of a number that was given in this run."""
        return self._names.get(number)

    def active(self, number: int) -> bool:
        """Has it an entry now?"""
        return self._holders.get(number, 0) > 0

    def entries(self) -> tuple[Entry, ...]:
        """What is registered, the oldest first."""
        return tuple(self._entries.values())

    def addresses(self) -> dict[Address, int]:
        """Which address stands for which number."""
        return {address: next(reversed(claims.values())) for address, claims in self._claims.items()}

    def join(self, listener: Listener, clock: Clock) -> None:
        """Tell `listener` of changes from now on, and let entries expire by `clock`."""
        self._clock = clock
        self._listeners.append(listener)
        self._arm()

    def leave(self, listener: Listener) -> None:
        """No more calls; twice is fine. Without a listener nothing expires until the next one joins."""
        if listener in self._listeners:
            self._listeners.remove(listener)
        if not self._listeners:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._clock = None

    def _number(self, entry: Entry) -> int:
        known = self._numbers.get(entry.spiffe_id)
        if known is not None and entry.number in (0, known):
            return known
        if known is not None:
            why = f"it has number {known} in this run, not {entry.number}"
            raise ConfigError("register", entry.spiffe_id, why, "restart to change it")
        if (other := self._names.get(entry.number)) is not None:
            why = f"number {entry.number} is that of {other}"
            raise ConfigError("register", entry.spiffe_id, why, "give another; none is used twice in a run")
        if len(self._numbers) >= KNOWN:
            why = f"{KNOWN} SPIFFE IDs were seen in this run"
            raise DegradedError("register", entry.spiffe_id, why, "restart, or register fewer")
        number = entry.number or self._next
        self._next += not entry.number
        self._numbers[entry.spiffe_id], self._names[number] = number, entry.spiffe_id
        return number

    def _check_together(self, entries: list[Entry]) -> None:
        ids, numbers = set[str](), dict[int, str]()
        if len(self._numbers) + sum(one.spiffe_id not in self._numbers for one in entries) > KNOWN:
            raise ConfigError(
                "register", f"{len(entries)} entries", f"no more than {KNOWN} fit a run", "restart"
            )
        for entry in entries:
            if entry.spiffe_id in ids:
                raise ConfigError("register", entry.spiffe_id, "it is there twice", "join the two entries")
            ids.add(entry.spiffe_id)
            known = self._numbers.get(entry.spiffe_id)
            other = self._names.get(entry.number) or numbers.get(entry.number)
            if entry.number and (
                (known or entry.number) != entry.number or other not in (None, entry.spiffe_id)
            ):
                why = f"number {entry.number} is taken by {other or f'itself, as {known},'} in this run"
                raise ConfigError("register", entry.spiffe_id, why, "give another, or restart")
            if entry.number:
                numbers[entry.number] = entry.spiffe_id

    def _unclaim(self, address: Address, key: _Key) -> None:
        self._touch(address)
        claims = self._claims[address]
        claims.pop(key, None)
        if not claims:
            del self._claims[address]

    def _touch(self, address: Address) -> None:
        assert self._touched is not None
        self._touched.setdefault(address, self._holder(address))

    def _holder(self, address: Address) -> int | None:
        claims = self._claims.get(address)
        return next(reversed(claims.values())) if claims else None

    @contextmanager
    def _changes(self) -> Iterator[None]:
        """What happened inside is told at once when the outermost ends: what is new before what is gone."""
        outermost = self._touched is None
        if self._touched is None:
            self._touched = {}
        try:
            yield
        finally:
            if outermost:
                before, self._touched = self._touched, None
                now = {one: self._holder(one) for one in before}
                changed = {one: number for one, number in now.items() if number != before[one]}
                told = dict(sorted(changed.items(), key=lambda item: item[1] is None))
                for listener in tuple(self._listeners) if told else ():
                    listener.assign(told)

    def _arm(self) -> None:
        if self._clock is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._clock.call_at(self._due[0][0], self._expire) if self._due else None

    def _expire(self) -> None:
        assert self._clock is not None
        now_ns = self._clock.now_ns()
        with self._changes():
            while self._due and self._due[0][0] <= now_ns:
                due_ns, (source, spiffe_id) = heapq.heappop(self._due)
                entry = self._entries.get((source, spiffe_id))
                # A later entry of the same name has another time.
                if entry is not None and entry.expires_ns == due_ns:
                    self.remove(spiffe_id, source)
                    self.expired += 1
        self._arm()
