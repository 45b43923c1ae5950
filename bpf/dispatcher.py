"""Several XDP programs on one interface: a small program owns the hook and tail-calls the others in a fixed
order.

A slot is an element of a program array, which the kernel replaces atomically, so that adding, removing or
replacing one program neither detaches nor delays the others (freplace would do the same and is not allowed
on every kernel). With a directory on a bpffs the link and the array are pinned: the chain then runs on when
the agent dies, and the next agent takes it over with BPF_LINK_UPDATE, without a gap. Both must be pinned,
because the kernel empties an array that no user holds. Whatever else was in the chain runs on too, with nobody
to steer it, until then: the next agent says which slots stay, by default the reflector's only, and empties the others.
A lock keeps an agent from taking over the chain of another one that lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from mapek.bpf import pins
from mapek.bpf.locks import Lock
from mapek.bpf.maps import Map, ProgArrayMap, open_map
from mapek.bpf.objects import LoadedObject, load
from mapek.bpf.program import Program
from mapek.bpf.spec import ObjectSpec, object_path
from mapek.bpf.worker import in_thread, in_thread_with
from mapek.bpf.xdp import Link, Mode, XdpLink, attach_xdp, interface_name, open_link
from mapek.errors import AttachError, DegradedError, MapekError, ObjectError

# The order in which programs run; the same as enum chain_slot in programs/chain.h.
SLOTS: Final = (
    "mesh_filter",
    "xdp_counter",
    "batadv",
    "user_a",
    "user_b",
    "user_c",
    "link_watch",
)
KEPT: Final = "link_watch"
"""The slot that is always kept when a chain is taken over: it answers by itself, and the peers must not miss it."""


@dataclass(frozen=True, slots=True)
class ChainOptions:
    """What `load` needs for a program of this chain: pass both on as keywords."""

    rodata: dict[str, int]
    reuse: dict[str, Map]


class Dispatcher:
    """Owner of one interface's XDP hook. Made by `attach`; await it or enter it to open.

    Leaving the context detaches everything and removes the pins, unless `release(keep=True)` was called.
    `mode` is what resulted ("native", "generic"), `taken_over` whether a pinned chain of ours was running
    already; of that the slot `KEPT` stays, and those that were asked for.
    """

    def __init__(self, ifindex: int, mode: Mode, pin_dir: Path | None, stays: Collection[str] = ()) -> None:
        self.ifindex, self.asked, self.pin_dir = ifindex, mode, pin_dir
        self._stays = {KEPT, *stays}
        self._held: Lock | None = None
        self.mode = ""
        self.taken_over = False
        self._link: Link | None = None
        self._chain: ProgArrayMap | None = None
        self._object: LoadedObject | None = None
        self._lock = asyncio.Lock()
        self._closing = threading.Lock()

    @classmethod
    def attach(
        cls,
        ifindex: int,
        mode: Mode = "auto",
        pin_dir: str | os.PathLike[str] | None = None,
        stays: Collection[str] = (),
    ) -> Dispatcher:
        """A dispatcher for `ifindex` in the opening task's network namespace; nothing happens until it is
        opened.

        Args:
            mode: as for `attach_xdp`.
            pin_dir: directory on a bpffs, one per interface; made if missing.
            stays: slots whose programs run on when a chain is taken over.

        Opening raises AttachError when another agent holds the hook (named, with its pid) or a foreign program
        (named, with its id), PinError when `pin_dir` is not ours, and as `load` and `attach_xdp` do.
        """
        return cls(ifindex, mode, None if pin_dir is None else Path(pin_dir), stays)

    async def open(self) -> Self:
        """Load and attach, or take over; done by `await` and `async with`."""
        # A chain that ran before us goes on running when the opening is given up.
        await in_thread(self._open, lambda _: self._close(keep=self.taken_over))
        return self

    def __await__(self) -> Generator[object, None, Self]:
        return self.open().__await__()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.release(keep=False)

    @property
    def chain(self) -> ProgArrayMap:
        """The shared program array. Raises AttachError when the dispatcher is not open."""
        if self._chain is None:
            raise AttachError(
                "use dispatcher of", interface_name(self.ifindex), "it is not open", "enter it first"
            )
        return self._chain

    @property
    def alive(self) -> bool:
        """Whether the hook is still ours: False once the interface is gone or somebody forced the link
        off. Waits for rtnl: a thread's work."""
        try:
            return self._link is not None and self._link.fd >= 0 and self._link.ifindex == self.ifindex
        except MapekError:
            return False

    def lost(self, slot: str, program_id: int) -> str:
        """How the program that was set in `slot` was taken off behind our back, in words; "" while it runs, and
        after `release`. A thread's work. Raises MapekError where the kernel does not say."""
        link, chain = self._link, self._chain
        if link is None or chain is None:
            return ""
        if how := link.lost():
            return how
        found = chain.program_id(_index(slot))
        if found == program_id or self._chain is not chain:
            return ""
        if found is None:
            return f"its slot {slot} of the chain was emptied"
        from mapek.bpf.xdp_netlink import describe_program

        return f"its slot {slot} of the chain was given {describe_program(found)}"

    async def restore(self) -> None:
        """Let our link run our dispatcher again, where it was given another program. Raises as `Link.update`."""
        link, loaded = self._link, self._object
        if link is not None and loaded is not None:
            program = loaded.programs["dispatcher"]
            async with self._lock:
                if await in_thread(lambda: link.program_id) != program.id:
                    await link.update_async(program)

    def options(self, slot: str) -> ChainOptions:
        """What to load a program with, so that it goes on to the slots after `slot`."""
        return ChainOptions({"slot": _index(slot)}, {"chain": self.chain})

    def slots(self) -> dict[str, int]:
        """Program id by slot name, occupied slots only, read from the kernel."""
        ids = ((name, self.chain.program_id(index)) for index, name in enumerate(SLOTS))
        return {name: ident for name, ident in ids if ident is not None}

    async def load(
        self, slot: str, spec: ObjectSpec, rodata: Mapping[str, int | bytes] | None = None,
        max_entries: Mapping[str, int] | None = None, reuse: Mapping[str, Map | int] | None = None,
    ) -> LoadedObject:  # fmt: skip
        """Load an object as a member of this chain (not yet running: `set` one of its programs)."""
        options = self.options(slot)
        return await in_thread(
            lambda: load(
                spec, rodata={**(rodata or {}), **options.rodata}, max_entries=max_entries,
                reuse={**(reuse or {}), **options.reuse},
            ),
            LoadedObject.close,
        )  # fmt: skip

    async def set(self, slot: str, program: Program) -> None:
        """Run `program` in a slot, in place of what is there, with no packet between the two.

        Raises ObjectError when the program was not loaded with `options(slot)`, for it would end the chain.
        """
        index = _index(slot)
        chain = self.chain
        if program.type != "xdp":
            why = f"it is of type {program.type}"
            raise ObjectError("chain", f"program {program.name}", why, "give an xdp program")
        if index < len(SLOTS) - 1 and chain.id not in program.map_ids():
            why = "it does not use this dispatcher's chain, so no program after it would run"
            raise ObjectError("chain", f"program {program.name}", why, "load it with Dispatcher.load")
        async with self._lock:
            await in_thread_with(program, lambda mine: chain.set(index, mine.fd))

    async def remove(self, slot: str) -> bool:
        """Empty a slot; False when it was. The others go on."""
        index, chain = _index(slot), self.chain
        async with self._lock:
            return await in_thread(lambda: chain.remove(index))

    async def release(self, keep: bool) -> None:
        """Let go: with `keep`, the pinned chain runs on without us; else it is detached and unpinned. Twice
        is fine."""
        if keep and self.pin_dir is None and self._link is not None:
            on = interface_name(self.ifindex)
            raise AttachError("keep dispatcher on", on, "it is not pinned", "attach with pin_dir on a bpffs")
        async with self._lock:
            await in_thread(lambda: self._close(keep))

    async def pin(self, pin_dir: Path) -> None:
        """Let the chain outlive us from now on; nothing to do where it does already. Raises as `Map.pin`, PinError."""
        async with self._lock:
            if self.pin_dir is None and self._link is not None:
                link = self._link
                await in_thread(lambda: self._pin(link, pin_dir))
                self.pin_dir = pin_dir

    def _open(self) -> None:
        try:
            # Where there is no place for locks, the kernel still lets nobody attach beside us.
            with contextlib.suppress(DegradedError):
                on = interface_name(self.ifindex)
                self._held = Lock.take(f"if{self.ifindex}", "attach the chain to", on)
            if self.pin_dir is not None and self._take_over(self.pin_dir):
                return
            loaded = self._object = load(ObjectSpec.read(object_path("dispatcher")))
            self._chain = _prog_array(loaded.maps["chain"])
            link = self._link = attach_xdp(loaded.programs["dispatcher"], self.ifindex, self.asked)
            self.mode = link.mode
            if self.pin_dir is not None:
                self._pin(link, self.pin_dir)
        except BaseException:
            # Closing an unpinned link detaches it; what was running before us is left alone.
            self._drop()
            raise

    def _pin(self, link: Link, pin_dir: Path) -> None:
        pins.ensure(pin_dir)
        # The array first: a pinned link without it would run an empty chain for ever.
        self.chain.pin(pin_dir / "chain")
        try:
            link.pin(pin_dir / "link")
        except BaseException:
            (pin_dir / "chain").unlink(missing_ok=True)
            raise

    def _take_over(self, pin_dir: Path) -> bool:
        pins.check(pin_dir)
        try:
            link = open_link(pin_dir / "link")
        except FileNotFoundError:
            (pin_dir / "chain").unlink(missing_ok=True)
            return False
        self._link = link
        if not isinstance(link, XdpLink) or link.ifindex not in (0, self.ifindex):
            held = f"it holds a link to {interface_name(link.ifindex)}"
            raise AttachError("take over", pin_dir, held, "use one directory per interface")
        from mapek.bpf.xdp_netlink import read_xdp

        state = read_xdp(self.ifindex) if link.ifindex else None
        if state is None or state.program_id != link.program_id or self.asked not in ("auto", state.mode):
            # The interface is gone and came back, or another mode is wanted: the old link is of no use.
            link.detach()
            (pin_dir / "chain").unlink(missing_ok=True)
            self._link = None
            return False
        spec = ObjectSpec.read(object_path("dispatcher"))
        old = _same_chain(pin_dir / "chain")
        try:
            loaded = self._object = load(spec, reuse={"chain": old} if old is not None else None)
        finally:
            if old is not None:
                old.close()
        self._chain = _prog_array(loaded.maps["chain"])
        if old is None:
            (pin_dir / "chain").unlink(missing_ok=True)
            self._chain.pin(pin_dir / "chain")
        link.update(loaded.programs["dispatcher"])
        for index, name in enumerate(SLOTS):
            # Its owner is dead: nobody could release what it drops, and who is configured again joins by itself.
            if name not in self._stays:
                self._chain.remove(index)
        self.mode, self.taken_over = state.mode, True
        return True

    def _close(self, keep: bool) -> None:
        # A release that was cancelled still runs in its thread when the next one comes.
        with self._closing:
            if self._link is not None and not keep:
                try:
                    self._link.detach()
                finally:
                    if self.pin_dir is not None:
                        (self.pin_dir / "chain").unlink(missing_ok=True)
                        # Others may keep their pins there.
                        with contextlib.suppress(OSError):
                            self.pin_dir.rmdir()
                            self.pin_dir.parent.rmdir()
            self._drop()

    def _drop(self) -> None:
        for thing in (self._link, self._object):
            if thing is not None:
                thing.close()
        self._link = self._object = self._chain = None
        if self._held is not None:
            self._held.release()
            self._held = None


def _index(slot: str) -> int:
    try:
        return SLOTS.index(slot)
    except ValueError:
        raise ObjectError(
            "find slot", slot, "there is none of that name", f"slots are {', '.join(SLOTS)}"
        ) from None


def _prog_array(found: Map) -> ProgArrayMap:
    if not isinstance(found, ProgArrayMap):
        raise ObjectError(
            "open chain", found.name, f"it is a map of type {found.type}", "rebuild with make bpf"
        )
    return found


def _same_chain(path: Path) -> ProgArrayMap | None:
    """The pinned chain, if it is there and of today's length."""
    try:
        found = open_map(path)
    except FileNotFoundError:
        return None
    if isinstance(found, ProgArrayMap) and found.max_entries == len(SLOTS):
        return found
    found.close()
    return None
