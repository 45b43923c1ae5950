"""Which identity a source address stands for: SPIFFE ID <-> number, prefix or MAC -> number, each entry with an expiry.

One registry per loop (`Surroundings.shared(Identities)`), which a file, a touchpoint that sees SVIDs, or a program that
embeds the loop fill. It is attribution and not authentication: put in only what an authenticated source vouches for.
Where several entries claim one address, the latest holds it, and the one before gets it back when that goes. Numbers
below 2^31 are given by whoever puts an entry in; the registry counts upward from there and uses none twice in a run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeVar

from mapek.config.options import plain
from mapek.errors import ConfigError
from mapek.sensors import spiffe
from mapek.sensors.identity_claims import Address, Claims, Key
from mapek.sensors.identity_ends import Ends
from mapek.sensors.identity_numbers import FIRST_OWN, Numbers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mapek.clock import Clock, Timer

AT_ONCE: Final = 32
"""Entries of a set between two breaths of the event loop: 0.5 ms."""
MAX_RATE: Final = 1_000_000
MAX_BURST: Final = 1_000_000


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

    def retire(self, numbers: Collection[int]) -> None:
        """No entry stands for these any more, until one is put in again; told before `assign`."""


T = TypeVar("T")


@dataclass(slots=True)
class Identities:
    """The registry. `expired` counts entries that ended by themselves."""

    expired: int = 0
    _entries: dict[Key, Entry] = field(default_factory=dict)
    _numbers: Numbers = field(default_factory=Numbers)
    _holders: dict[int, int] = field(default_factory=dict)
    _ends: Ends = field(default_factory=Ends)
    _timer: Timer | None = None
    _clock: Clock | None = None
    _listeners: list[Listener] = field(default_factory=list)
    _ended: set[int] = field(default_factory=set)
    _replacing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _claims: Claims = field(init=False)

    def __post_init__(self) -> None:
        self._claims = Claims(self._carry_out)

    def put(self, entry: Entry, source: str = "api") -> int:
        """Register `entry` in place of what `source` said of this SPIFFE ID before; returns its number.

        Raises ConfigError when the number is another's or was another one before in this run, DegradedError when
        too many were seen.
        """
        number = self._numbers.give(entry.spiffe_id, entry.number)
        key = (source, entry.spiffe_id)
        with self._claims.changes():
            before = self._entries.pop(key, None)
            for address in before.addresses() if before is not None else ():
                self._claims.give_up(address, key)
            self._entries[key] = entry
            if before is None:
                self._holders[number] = self._holders.get(number, 0) + 1
            for address in entry.addresses():
                self._claims.claim(address, key, number)
            if entry.verdict is not None and (before is None or before.verdict != entry.verdict):
                # Before its addresses are told, so that no packet of a denied one passes in between.
                for listener in tuple(self._listeners):
                    listener.intend(number, entry.verdict)
        self._ends.set(key, entry.expires_ns)
        self._arm()
        return number

    def remove(self, spiffe_id: str, source: str = "api") -> bool:
        """Forget what `source` said of this SPIFFE ID; its number stays taken. False if that was nothing."""
        key = (source, spiffe_id)
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        number = self._numbers.give(spiffe_id, 0)
        with self._claims.changes():
            self._holders[number] -= 1
            if not self._holders[number]:
                self._ended.add(number)
            for address in entry.addresses():
                self._claims.give_up(address, key)
        self._ends.set(key, None)
        return True

    async def replace(self, entries: Iterable[Entry], source: str) -> None:
        """Let `entries` be all that `source` says; all of them or, with ConfigError, none.

        All are checked before the first is put in, and all new ones are in before an old one goes; with breaths of the
        event loop between. An address that nobody has at the end is told as the last. Cancelled, it leaves some of
        both.
        """
        wanted, kept = list(entries), set[str]()
        async with self._replacing:
            try:
                for some in _slices(wanted):
                    for entry in some:
                        self._numbers.promise(entry.spiffe_id, entry.number)
                        kept.add(entry.spiffe_id)
                    await asyncio.sleep(0)
                self._claims.put_off()
                for some in _slices(wanted):
                    for entry in some:
                        if self._entries.get((source, entry.spiffe_id)) != entry:
                            self.put(entry, source)
                    await asyncio.sleep(0)
                for keys in _slices(list(self._entries)):
                    for by, name in keys:
                        if by == source and name not in kept:
                            self.remove(name, source)
                    await asyncio.sleep(0)
                while self._claims.catch_up(AT_ONCE):  # noqa: ASYNC110 - a breath, nothing is waited for
                    await asyncio.sleep(0)
            finally:
                self._numbers.end()
                self._claims.catch_up()

    def number(self, spiffe_id: str) -> int | None:
        """The number of a SPIFFE ID that was registered in this run."""
        return self._numbers.number(spiffe_id)

    def spiffe_id(self, number: int) -> str | None:
        """The SPIFFE ID of a number that was given in this run."""
        return self._numbers.spiffe_id(number)

    def remember(self, spiffe_id: str, number: int) -> bool:
        """In a run before, this was its number; False when it cannot be again. An entry that says another is right."""
        return self._numbers.remember(spiffe_id, number)

    def active(self, number: int) -> bool:
        """Has it an entry now?"""
        return self._holders.get(number, 0) > 0

    def entries(self) -> tuple[Entry, ...]:
        """What is registered, the oldest first."""
        return tuple(self._entries.values())

    def addresses(self) -> dict[Address, int]:
        """Which address stands for which number."""
        return self._claims.holders()

    def whose(self, address: Address) -> int | None:
        """The number that this very address stands for, None for nobody's."""
        return self._claims.holder(address)

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

    def _carry_out(self, told: Mapping[Address, int | None]) -> None:
        ended = [one for one in self._ended if not self._holders[one]]
        self._ended.clear()
        for listener in tuple(self._listeners):
            if ended:
                listener.retire(ended)
            if told:
                listener.assign(told)

    def wake(self) -> None:
        """Did the machine sleep? Then entries may have ended meanwhile: to be called now and then."""
        if self._ends.wake():
            self._arm()

    def _arm(self, earliest_ns: int = 0) -> None:
        timer, due_ns = self._timer, self._ends.next_ns()
        if timer is not None and timer.callback is not None and due_ns is not None and timer.due_ns <= due_ns:
            # It looks again then; a timer for each renewal would stay with the clock until it is due.
            return
        if timer is not None:
            timer.cancel()
            self._timer = None
        if self._clock is not None and due_ns is not None:
            self._timer = self._clock.call_at(max(due_ns, earliest_ns), self._expire)

    def _expire(self) -> None:
        assert self._clock is not None
        self._ends.wake()
        now_ns = self._clock.now_ns()
        with self._claims.changes():
            for _ in range(AT_ONCE):
                if (key := self._ends.pop(now_ns)) is None:
                    break
                source, spiffe_id = key
                self.remove(spiffe_id, source)
                self.expired += 1
        # The rest of many that are due together comes after a breath.
        self._arm(now_ns + 1)


def _slices(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """`AT_ONCE` of them each: what is done between two breaths of the event loop."""
    return (items[at : at + AT_ONCE] for at in range(0, len(items), AT_ONCE))
