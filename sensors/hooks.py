"""Who is on which interface's XDP hook: the sensors of one loop share one dispatcher per interface.

A member is loaded against the interface's chain, so each interface has its own copy of a program; the maps
that must be common are passed on with `reuse`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mapek.bpf import Dispatcher, ObjectSpec, load_async
from mapek.bpf.maps import Map
from mapek.bpf.objects import LoadedObject
from mapek.bpf.standing import Slot
from mapek.bpf.xdp import Mode, interface_name
from mapek.errors import FeatureError


@dataclass(slots=True)
class _Hook:
    dispatcher: Dispatcher
    members: set[str] = field(default_factory=set)


class Hooks:
    """The dispatchers of one loop, by ifindex; opened by the first member, released after the last."""

    def __init__(self) -> None:
        self.pin_of: Callable[[int], Path | None] = lambda _: None
        """Where the chain of an interface is pinned; set by the one whose program outlives the process."""
        self._hooks: dict[int, _Hook] = {}
        self._locks: dict[int, asyncio.Lock] = {}

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
    ) -> LoadedObject:
        """Load `program` of `spec` into `slot` of the interface's chain; the caller closes the result after `leave`.

        Raises what `Dispatcher` and `load` raise, and FeatureError for mode "native" where the chain that others
        run in is generic.
        """
        async with self._lock(ifindex):
            hook = self._hooks.get(ifindex)
            if hook is not None and not hook.dispatcher.alive:
                # the interface went away under it, and a new one has the same index
                del self._hooks[ifindex]
                await hook.dispatcher.release(keep=False)
                hook = None
            if hook is not None:
                await hook.dispatcher.restore()
            if hook is None:
                hook = _Hook(await Dispatcher.attach(ifindex, mode, self.pin_of(ifindex)))
                self._hooks[ifindex] = hook
            elif mode == "native" and hook.dispatcher.mode != "native":
                # Else who comes first would decide how the others are attached.
                why = f"its programs run in {hook.dispatcher.mode} mode"
                raise FeatureError(
                    "attach native xdp to", interface_name(ifindex), why, "use tc, or mode auto"
                )
            options = hook.dispatcher.options(slot)
            try:
                loaded = await load_async(
                    spec,
                    programs={program},
                    rodata={**(rodata or {}), **options.rodata},
                    reuse={**(reuse or {}), **options.reuse},
                    max_entries=max_entries,
                )
                try:
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

    def _lock(self, ifindex: int) -> asyncio.Lock:
        return self._locks.setdefault(ifindex, asyncio.Lock())

    def mode(self, ifindex: int) -> str:
        """ "native" or "generic"; "gone" when the interface is no more, "" when nobody joined."""
        hook = self._hooks.get(ifindex)
        if hook is None:
            return ""
        return hook.dispatcher.mode if hook.dispatcher.alive else "gone"

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
            stays = keep and hook.dispatcher.pin_dir is not None and hook.dispatcher.alive
            if not stays and hook.dispatcher.alive:
                await hook.dispatcher.remove(slot)
            if hook.members == {slot}:
                await hook.dispatcher.release(keep=stays)
                del self._hooks[ifindex]
            # Forgotten last, so that leaving can be done again when it was cancelled.
            hook.members.discard(slot)
