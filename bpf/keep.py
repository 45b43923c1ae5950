"""One object whose maps outlive us: loaded with what its place keeps, and pinned there for the next agent.

    kept = Kept.take(keep, spec)                       # lock, open, compare
    loaded = load(spec, reuse=kept.reuse())            # the same maps go on
    kept.settle(loaded)                                # pinned, before anything counts in them
    ...                                                # attach; links by `attach_kept`
    kept.leave()                                       # what was served stays, else it is removed

Whatever keeps a place from being used is said in `trouble`, and the sensor works without; only what would lose or mix
up counters is an error. All here blocks for milliseconds at most, but for what detaches: use a thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from mapek.bpf import pins
from mapek.bpf.holders import users
from mapek.bpf.layout import Layout, describe
from mapek.bpf.locks import Lock
from mapek.bpf.maps import Map, create_map
from mapek.bpf.objects import LoadedObject
from mapek.bpf.place import Contents, Place
from mapek.bpf.program import Program
from mapek.bpf.spec import ObjectSpec
from mapek.bpf.xdp import Link, open_link
from mapek.errors import AttachError, DegradedError, MapekError, PinError

L = TypeVar("L", bound=Link)

_SO_NETNS_COOKIE: Final = 71
_NO_PREALLOC: Final = 1


@dataclass(frozen=True, slots=True)
class Keep:
    """What to keep where.

    Args:
        place: where.
        maps: names of the maps whose entries go on.
        meaning: what the entries stand for, where an object's own types do not tell; if that changes, the entries
            cannot go on.
        settings: how its programs are loaded; another one makes them others, but the entries go on.
        beside: maps that no program uses, made as they are missing: (type, key bytes, value bytes, entries).
        on: False removes what was kept there, and keeps nothing.
        served: tells whether what is made anew is worth keeping by now.
    """

    place: Place
    maps: tuple[str, ...]
    meaning: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, tuple[str, int, int, int]] = field(default_factory=dict)
    on: bool = True
    served: Callable[[], bool] = lambda: True


class Kept:
    """A place in use by this process, or none where `trouble` says why not.

    `adopted` tells whether an agent before us kept it, `unchanged` whether its programs are just those that ours would
    be. What was made for a start that was refused goes with it.
    """

    def __init__(self, keep: Keep) -> None:
        self.adopted = self.unchanged = False
        self.trouble = ""
        self._keep = keep
        self._place: Place | None = None
        self._lock: Lock | None = None
        self._contents: Contents | None = None
        self._new = Layout({})
        self.beside: dict[str, Map] = {}
        """Of `Keep.beside`, from `settle` on; empty where nothing is kept."""

    @classmethod
    def take(cls, keep: Keep, spec: ObjectSpec, max_entries: Mapping[str, int] | None = None) -> Kept:
        """Lock the place and open what is there.

        Raises:
            AttachError: another agent uses it; named with its pid.
            PinError: it is not ours, not what it should be, or its entries cannot go on; says the difference.
        """
        kept = cls(keep)
        if not keep.on and not keep.place.exists():
            return kept
        if keep.on and (why := pins.trouble()):
            kept.give_up(why)
            return kept
        try:
            kept._lock = _lock(keep.place, "keep", keep.place.name)
        except DegradedError as error:
            kept.give_up(error.why)
            return kept
        try:
            if keep.on:
                kept._open(spec, max_entries or {})
            else:
                # What is another's stays where it is: nothing of ours is to be kept anyway.
                with contextlib.suppress(MapekError, OSError):
                    _remove(keep.place)
                kept._unlock()
        except BaseException:
            kept.close()
            raise
        return kept

    @classmethod
    def end(cls, place: Place, *, dry_run: bool = False) -> None:
        """Detach and remove what is kept at a place that no agent uses, or only see whether that could be.

        An agent may have its locks in a folder that we do not see: who holds what is kept there uses it, too.

        Raises AttachError, PinError, OSError.
        """
        lock = _lock(place, "end", place.path)
        try:
            _remove(place, dry_run)
        finally:
            lock.release()

    def _open(self, spec: ObjectSpec, max_entries: Mapping[str, int]) -> None:
        place = self._keep.place
        now = describe(
            spec, self._keep.maps, max_entries=max_entries, meaning=self._keep.meaning, namespace=namespace(),
            settings=self._keep.settings,
        )  # fmt: skip
        plain = {
            name: {"type": kind, "key bytes": str(key), "value bytes": str(value)}
            for name, (kind, key, value, _) in self._keep.beside.items()
        }
        now = replace(now, maps={**now.maps, **plain})
        found = place.open()
        if found is not None and found.layout.namespace != now.namespace:
            # A namespace that is no more had the same number.
            found.close()
            place.remove()
            found = None
        if found is not None and (difference := found.layout.difference(now)):
            found.close()
            raise PinError("adopt", place.path, difference, pins.END)
        self._place, self._contents, self._new = place, found, now
        self.adopted = found is not None
        self.unchanged = found is not None and found.layout.text() == now.text()

    def reuse(self) -> dict[str, Map]:
        """The maps that go on, for `load`; empty where there are none yet."""
        if self._contents is None:
            return {}
        return {name: one for name, one in self._contents.maps.items() if name in self._keep.maps}

    def settle(self, loaded: LoadedObject) -> None:
        """Pin the maps of `loaded`, as far as they are not; before any program counts in them."""
        place, before = self._place, self._contents
        self._contents = None
        if place is None:
            return
        maps = {name: loaded.maps[name] for name in self._keep.maps}
        try:
            for name, (kind, *sizes) in self._keep.beside.items():
                known = dict(before.maps).get(name) if before is not None else None
                self.beside[name] = known or create_map(kind, *sizes, flags=_NO_PREALLOC)
            maps |= self.beside
            if before is None:
                place.make(self._new, maps)
            elif before.layout.text() != self._new.text():
                place.renew(self._new, maps)
        except (MapekError, OSError) as error:
            self.give_up(error.why if isinstance(error, MapekError) else error.strerror or str(error))
            if before is None:
                self._place = None
        finally:
            for one in before.maps.values() if before is not None else ():
                if one not in self.beside.values():
                    one.close()

    def link(self, name: str, opened: Callable[[str], L], fits: Callable[[L], bool]) -> L | None:
        """The link kept under `name` if it still holds what it should; one that does not is removed.

        Args:
            opened: opens the pin as the kind of link that it should be; raises AttachError, FileNotFoundError.
        """
        if self._place is None:
            return None
        try:
            found = opened(os.fspath(self._place.link_path(name)))
        except FileNotFoundError:
            return None
        except MapekError as error:
            raise PinError("adopt", self._place.link_path(name), error.why, pins.END) from error
        if fits(found):
            return found
        found.detach()
        return None

    def hold(self, name: str, link: Link) -> None:
        """Let a link outlive us too. What keeps it from that is said in `trouble`."""
        if self._place is None:
            return
        try:
            self._place.keep(name, link)
        except (MapekError, OSError) as error:
            self.give_up(error.why if isinstance(error, MapekError) else error.strerror or str(error))

    def attach(self, name: str, attach: Callable[[], Link]) -> Link:
        """A link that cannot be updated, in the place of the one kept under `name`: both run for a moment."""
        old = self.link(name, open_link, lambda _: True)
        try:
            new = attach()
            self.hold(name, new)
        finally:
            if old is not None:
                old.close()
        return new

    def hold_program(self, name: str, program: Program) -> None:
        """Let a program be asked by the next agent."""
        if self._place is not None:
            try:
                self._place.keep_program(name, program)
            except (MapekError, OSError) as error:
                self.give_up(error.why if isinstance(error, MapekError) else error.strerror or str(error))

    def program(self, name: str) -> Program:
        """The program kept under `name`. Raises PinError."""
        if self._place is None:
            raise PinError("adopt", self._keep.place.path, "nothing is kept there")
        return self._place.program(name)

    def drop(self, name: str) -> None:
        """Detach the link kept under `name`, if any: what it ran for is done in another way now."""
        if self._place is not None and (link := self._place.link(name)) is not None:
            link.detach()

    def only(self, *names: str) -> None:
        """Detach every link that is kept under none of `names`."""
        if self._place is None:
            return
        for name, link in self._place.links().items():
            if name in names:
                link.close()
            else:
                link.detach()

    @property
    def is_of_interface(self) -> bool:
        """Is it kept of one interface, and so by who has that interface?"""
        return bool(self._keep.place.interface)

    @property
    def holds(self) -> bool:
        """Is anything kept there at all?"""
        return self._place is not None

    @property
    def idle(self) -> bool:
        """Is there nothing to leave?"""
        return self._place is None and self._lock is None

    @property
    def stays(self) -> bool:
        """Does what is kept here stay when we leave?"""
        return self._place is not None and (self.adopted or self._keep.served())

    def lost(self, why: str) -> None:
        """Keep nothing here after all; what we hold ourselves stays attached."""
        self.give_up(why)
        if self._place is not None:
            with contextlib.suppress(PinError, OSError):
                self._place.remove(detach=False)
        self.close()

    def leave(self) -> None:
        """Unlock; remove what is of no use to the next agent. Twice is fine; nothing of it may run any more then."""
        place = self._place
        if place is not None and not self.stays:
            with contextlib.suppress(PinError):
                place.remove()
        self.close()

    def close(self) -> None:
        """Unlock, and leave all as it is. Twice is fine."""
        contents, self._contents = self._contents, None
        if contents is not None:
            contents.close()
        for one in self.beside.values():
            one.close()
        self.beside.clear()
        self._place = None
        self._unlock()

    def _unlock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def give_up(self, why: str) -> None:
        """Say why it is not, or not all of it, kept."""
        self.trouble = f"what {self._keep.place.name} counts does not outlive this agent: {why}"


def _remove(place: Place, dry_run: bool = False) -> None:
    if who := users(place.held()):
        raise AttachError("end", place.path, f"in use by {who}", "stop it first")
    if not dry_run:
        place.remove()


def _lock(place: Place, tried: str, on: object) -> Lock:
    name = f"{place.agent.name}-{place.name}".replace("/", ":")
    return Lock.take(name, tried, on, place.agent.parent.name)


def namespace() -> str:
    """Tells the calling thread's network namespace from all others since boot; "" before kernel 5.14."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as any_socket:
        try:
            return any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8).hex()
        except OSError:
            return ""
