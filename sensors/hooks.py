"""Who is on which interface's XDP hook: the sensors of one loop share one dispatcher per interface.

A member is loaded against the interface's chain, so each interface has its own copy of a program; the maps
that must be common are passed on with `reuse`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

from mapek.bpf import Dispatcher, ObjectSpec, load_async, pins
from mapek.bpf.keep import Kept
from mapek.bpf.maps import Map
from mapek.bpf.objects import LoadedObject
from mapek.bpf.standing import Slot
from mapek.bpf.worker import in_thread
from mapek.bpf.xdp import Mode, interface_name
from mapek.errors import AttachError, FeatureError, MapekError


@dataclass(slots=True)
class _Hook:
    dispatcher: Dispatcher
    members: set[str] = field(default_factory=set)
    stays: bool = False
    """Somebody who left wants the chain to run on."""


class Hooks:
    """The dispatchers of one loop, by ifindex; opened by the first member, released after the last."""

    def __init__(self) -> None:
        self.pin_of: Callable[[int], Path | None] = lambda _: None
        """Where the chain of an interface is pinned; set by the one whose program outlives the process."""
        self.stays_of: Callable[[str], Collection[str]] = lambda _: ()
        """The slots of an interface whose programs run on when a chain is taken over; set by who keeps them."""
        self._hooks: dict[int, _Hook] = {}
        self._locks: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        """Kept by whoever holds one or waits for it: a machine that makes and drops interfaces counts ever higher."""

    async def join(
        self,
        ifindex: int,
        slot: str,
        spec: ObjectSpec,
        program: str,
        *,
        mode: Mode = "auto",
        rodata: Mapping[str, int | bytes] | None = None,
        reuse: Mapping[str, Map | int] | None = None,
        max_entries: Mapping[str, int] | None = None,
        kept: Kept | None = None,
    ) -> LoadedObject:
        """Load `program` of `spec` into `slot` of the interface's chain; the caller closes the result after `leave`.

        With `kept` the chain is pinned, and the maps that are kept of this interface go on.

        Raises what `Dispatcher` and `load` raise, AttachError where the interface is gone, and FeatureError for mode
        "native" where the chain that others run in is generic.
        """
        async with self._lock(ifindex):
            hook = self._hooks.get(ifindex)
            if hook is not None and not await _alive(hook):
                # the interface went away under it, and a new one has the same index
                del self._hooks[ifindex]
                await hook.dispatcher.release(keep=False)
                hook = None
            if hook is not None:
                await hook.dispatcher.restore()
            if hook is None:
                interface = _name(ifindex)
                pin = self._pin(ifindex, interface)
                hook = _Hook(await Dispatcher.attach(ifindex, mode, pin, self.stays_of(interface)))
                self._hooks[ifindex] = hook
            elif mode == "native" and hook.dispatcher.mode != "native":
                # Else who comes first would decide how the others are attached.
                why = f"its programs run in {hook.dispatcher.mode} mode"
                raise FeatureError(
                    "attach native xdp to", interface_name(ifindex), why, "use tc, or mode auto"
                )
            options = hook.dispatcher.options(slot)
            try:
                if kept is not None and kept.holds:
                    await self._pin_too(hook, ifindex, kept)
                going_on = kept.reuse() if kept is not None else {}
                loaded = await load_async(
                    spec,
                    programs={program},
                    rodata={**(rodata or {}), **options.rodata},
                    reuse={**(reuse or {}), **going_on, **options.reuse},
                    max_entries=max_entries,
                )
                try:
                    if kept is not None and kept.is_of_interface and kept.holds:
                        await in_thread(lambda: kept.settle(loaded))
                    await hook.dispatcher.set(slot, loaded.programs[program])
                except BaseException:
                    loaded.close()
                    raise
            except BaseException:
                # whoever is cancelled while the slot is set does not know if it was
                if not hook.members:
                    del self._hooks[ifindex]
                    await hook.dispatcher.release(keep=hook.dispatcher.taken_over)
                elif not hook.dispatcher.taken_over:
                    await hook.dispatcher.remove(slot)
                raise
            hook.members.add(slot)
            return loaded

    def _pin(self, ifindex: int, interface: str) -> Path | None:
        wanted = self.pin_of(ifindex)
        if wanted is None:
            found = pins.chain_dir(interface)
            # One that was left there would only be in the way.
            left = not pins.trouble() and found.is_dir() and found.stat().st_uid == os.geteuid()
            wanted = found if left else None
        return wanted

    async def _pin_too(self, hook: _Hook, ifindex: int, kept: Kept) -> None:
        try:
            await hook.dispatcher.pin(pins.chain_dir(socket.if_indextoname(ifindex)))
        except (MapekError, OSError) as error:
            kept.give_up(error.why if isinstance(error, MapekError) else error.strerror or str(error))

    def _lock(self, ifindex: int) -> asyncio.Lock:
        return self._locks.setdefault(ifindex, asyncio.Lock())

    def mode(self, ifindex: int) -> str:
        """ "native" or "generic", as it was attached; "" when nobody joined."""
        hook = self._hooks.get(ifindex)
        return "" if hook is None else hook.dispatcher.mode

    def slot(self, ifindex: int, slot: str, program_id: int) -> Slot | None:
        """The member as what stands or was taken off; None when nobody joined."""
        hook = self._hooks.get(ifindex)
        return None if hook is None else Slot(hook.dispatcher, slot, program_id)

    def taken_over(self, ifindex: int) -> bool:
        """Did the chain run before us, kept by its pin?"""
        hook = self._hooks.get(ifindex)
        return hook is not None and hook.dispatcher.taken_over

    async def leave(self, ifindex: int, slot: str, *, keep: bool = False) -> None:
        """Take the member off. With `keep` it stays in the (pinned) chain and outlives this process."""
        async with self._lock(ifindex):
            hook = self._hooks.get(ifindex)
            if hook is None or slot not in hook.members:
                return
            alive = await _alive(hook)
            stays = keep and hook.dispatcher.pin_dir is not None and alive
            if not stays and alive:
                await hook.dispatcher.remove(slot)
            hook.stays = hook.stays or stays
            if hook.members == {slot}:
                await hook.dispatcher.release(keep=hook.stays and alive)
                del self._hooks[ifindex]
            # Forgotten last, so that leaving can be done again when it was cancelled.
            hook.members.discard(slot)


def _name(ifindex: int) -> str:
    try:
        return socket.if_indextoname(ifindex)
    except OSError as error:
        on, do = f"ifindex {ifindex}", "it is attached to when it is there"
        raise AttachError("attach xdp to", on, "there is no such interface", do) from error


async def _alive(hook: _Hook) -> bool:
    """Is the hook ours still? The answer waits for rtnl, which others may hold for long."""
    return await in_thread(lambda: hook.dispatcher.alive)
