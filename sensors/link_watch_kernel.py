"""What link_watch has in the kernel: one set of maps, and on each interface a reflector and a stamper.

The reflector goes into the interface's XDP chain where the driver has XDP, otherwise to tc ingress; which
of the two it became is told in the status, never silently changed.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path as FilePath
from typing import Final

from mapek.bpf import (
    LoadedObject,
    ObjectSpec,
    Program,
    RingBuffer,
    attach_tc_async,
    load_async,
    object_path,
    pins,
)
from mapek.bpf.maps import ArrayMap, Map
from mapek.bpf.standing import Standing
from mapek.bpf.tc import TcLink
from mapek.bpf.worker import in_thread
from mapek.bpf.xdp import Mode
from mapek.clock import wall_ns
from mapek.contracts import Surroundings, Variant
from mapek.errors import AttachError, DegradedError, FeatureError
from mapek.knowledge.topology import Address, Path, Peer
from mapek.model import Entity
from mapek.sensors.hardware import ETHERNET_HEADER, link_header
from mapek.sensors.hooks import Hooks
from mapek.sensors.ingress import NEEDS, tc_may_do
from mapek.sensors.keeper import keeper
from mapek.sensors.link_watch_layout import ANSWERS, PLAIN, STATEFUL, WATCH, Alarm, alarm, packed, peer_key
from mapek.sensors.link_watch_paths import PathTable
from mapek.sensors.links import ifindex_of
from mapek.sensors.named import no_such
from mapek.sensors.prober import Target
from mapek.sensors.stamp import session_key
from mapek.sensors.variants import Choice, choose

SLOT: Final = "link_watch"
NO_INTERFACE: Final = "check the name, or set wait = true to wait for it"
_SHARED: Final = ("configs", "paths", "peers", "events", "watchdogs")
_NEEDS: Final = (*NEEDS, "ringbuf", "mmapable_array")
VARIANTS: Final = (
    Variant("bpf_timer", (*_NEEDS, "bpf_timer"), "the kernel notices silence by itself"),
    Variant("user", _NEEDS, "silence is looked for from user space"),
)


@dataclass(slots=True)
class Attachment:
    """One interface."""

    interface: str
    ifindex: int
    targets: dict[int, Target]
    hooks: Hooks
    reflector: LoadedObject | None
    ingress: TcLink | None
    egress: TcLink | None
    keys: tuple[bytes, ...]
    why: str = ""
    """What stood in XDP's way, if tc was not asked for."""

    def handles(self) -> list[Standing]:
        """What is attached."""
        found: list[Standing] = [link for link in (self.ingress, self.egress) if link is not None]
        if self.reflector is not None:
            program = self.reflector.programs["link_watch"].id
            if (slot := self.hooks.slot(self.ifindex, SLOT, program)) is not None:
                found.append(slot)
        return found


class Kernel:
    """Maps, programs and attachments of one link_watch."""

    def __init__(
        self,
        *,
        mode: str,
        pin: str,
        reply_rate: int,
        timer: str,
        port: int,
        stateful: bool,
        alarm: Callable[[Alarm], None],
    ) -> None:
        self._mode, self._pin, self._reply_rate, self._timer = mode, pin, reply_rate, timer
        self._plain = PLAIN | STATEFUL if stateful else PLAIN
        self._rodata = {"stamp_port": port}
        self._alarm = alarm
        self.timers = True
        self.degraded: list[str] = []
        self.routed: dict[int, str] = {}
        """Peer by index of the routed paths, which lie behind the watched ones."""
        self._spec: ObjectSpec | None = None
        self._base: LoadedObject | None = None
        self._further: dict[tuple[str, int], LoadedObject] = {}
        self._tc_lock = asyncio.Lock()
        self._ring: RingBuffer | None = None
        self._table: PathTable | None = None
        self._paths: list[Path] = []
        self._addresses: dict[int, tuple[Peer, Address]] = {}

    async def open(
        self, paths: list[Path], routed: list[tuple[Peer, Address]], interval_ns: int
    ) -> PathTable:
        """Load the programs and make the maps; nothing is attached yet."""
        self.degraded = []
        self._paths = paths
        spec, choice = await in_thread(lambda: _prepare(self._timer))
        self._spec = spec
        self.timers = choice.variant.name == "bpf_timer"
        self.degraded.extend(choice.degraded())
        if self._timer == "user":
            self.degraded.append("silence is detected from user space: asked for")
        count = len(paths) + len(routed)
        self._base = await load_async(
            spec,
            programs={"stamp" if self.timers else "stamp_untimed"},
            rodata=self._rodata,
            max_entries={
                name: max(count, 1) * (2 if name == "peers" else 1) for name in _SHARED if name != "events"
            },
        )
        maps = self._base.maps
        configs, states = maps["configs"], maps["paths"]
        assert isinstance(configs, ArrayMap)
        assert isinstance(states, ArrayMap)
        self._table = PathTable(configs, states, count, interval_ns)
        self._addresses = {len(paths) + i: owner for i, owner in enumerate(routed)}
        self.routed = {index: peer.name for index, (peer, _) in self._addresses.items()}
        self._ring = RingBuffer(maps["events"], lambda record: self._alarm(alarm(record)))
        self._ring.start()
        return self._table

    def _set_up(
        self, index: int, owner: Peer, ifindex: int, local: Address, peer: Address, flags: int
    ) -> bytes:
        """Make a path known to the programs; returns its key in the `peers` map."""
        assert self._table is not None
        assert self._base is not None
        values: Mapping[str, object] = {
            "local": list(packed(local)),
            "peer": list(packed(peer)),
            "ifindex": ifindex,
            "own_key": session_key(owner.key, local, peer),
            "peer_key": session_key(owner.key, peer, local),
            "reply_rate": self._reply_rate,
            "reply_burst": max(self._reply_rate // 100, 64),
        }
        self._table.restart(index, wall_ns())
        self._table.configure(index, values, flags | (self._plain if owner.unauthenticated else 0))
        key = peer_key(ifindex, peer, local)
        self._base.maps["peers"].update(key, index.to_bytes(4, _ORDER))
        return key

    async def attach(self, interface: str, around: Surroundings) -> Attachment:
        """Attach to `interface` and set its paths up.

        Raises:
            AttachError: it is missing, has no usable address, or carries a foreign XDP program and only XDP will do.
            DegradedError: a privilege or feature is missing.
        """
        topology = around.knowledge.topology
        mine = [(i, path) for i, path in enumerate(self._paths) if path.interface == interface]

        def ask() -> tuple[int, dict[int, Target]]:
            try:
                ifindex = socket.if_nametoindex(interface)
            except OSError as error:
                raise no_such("watch", interface, NO_INTERFACE) from error
            return ifindex, {
                i: Target(
                    i,
                    ifindex,
                    path.local or source(path),
                    path.address,
                    topology.peers[path.peer].unauthenticated,
                )
                for i, path in mine
            }

        # For a name that is away the kernel may run modprobe, and waits for it.
        ifindex, targets = await in_thread(ask)
        hooks = around.shared(Hooks)
        hooks.pin_of = self.pin_dir
        keeper(around)
        one = Attachment(interface, ifindex, targets, hooks, None, None, None, ())
        try:
            await self._attach_programs(one)
        except BaseException:
            await self.detach(one)
            raise
        one.keys = tuple(
            self._set_up(i, topology.peers[path.peer], ifindex, targets[i].local, path.address, WATCH)
            for i, path in mine
        )
        return one

    async def ifindex(self, interface: str) -> int:
        """The number that the interface has now, 0 where it is not there."""
        return await ifindex_of(interface)

    async def _attach_programs(self, one: Attachment) -> None:
        assert self._spec is not None
        assert self._base is not None
        reuse: dict[str, Map | int] = {name: self._base.maps[name] for name in _SHARED}
        header = await link_header(Entity("link", one.interface, one.ifindex), "watch")
        modes: tuple[Mode, ...] = {"auto": ("native",), "native": ("native",), "generic": ("generic",)}.get(
            self._mode, ()
        )  # type: ignore[assignment]
        for mode in modes:
            try:
                one.reflector = await one.hooks.join(
                    one.ifindex,
                    SLOT,
                    self._spec,
                    "link_watch",
                    mode=mode,
                    rodata={**self._rodata, "link_header": header},
                    reuse=reuse,
                )
            except (AttachError, FeatureError) as error:
                if self._mode != "auto" or not tc_may_do(error):
                    raise
                one.why = str(error)
        if one.reflector is None:
            program = await self._program("link_watch_tc", header, reuse)
            one.ingress = await attach_tc_async(program, one.ifindex, "ingress")
        stamp = await self._program("stamp" if self.timers else "stamp_untimed", header, reuse)
        one.egress = await attach_tc_async(stamp, one.ifindex, "egress")

    async def _program(self, name: str, header: int, reuse: Mapping[str, Map | int]) -> Program:
        """A tc program; what few need is loaded for the first interface that does: the verifier takes 10 ms for it."""
        assert self._spec is not None
        assert self._base is not None
        if name in self._base.programs and header == ETHERNET_HEADER:
            return self._base.programs[name]
        async with self._tc_lock:
            if (name, header) not in self._further:
                rodata = {**self._rodata, "link_header": header}
                self._further[name, header] = await load_async(
                    self._spec, programs={name}, rodata=rodata, reuse=reuse
                )
        return self._further[name, header].programs[name]

    def pin_dir(self, ifindex: int) -> FilePath | None:
        """Where the chain of an interface is pinned: by network namespace, since names repeat in them."""
        if self._pin == "no":
            return None
        interface = socket.if_indextoname(ifindex)
        if word := self.unpinned(interface):
            if word not in self.degraded:
                self.degraded.append(word)
            return None
        return pins.chain_dir(interface)

    def unpinned(self, interface: str) -> str:
        """Why the reflector cannot be pinned here, "" when it can or shall not be. Raises DegradedError where it
        must be."""
        if self._pin == "no" or not (why := pins.trouble()):
            return ""
        if self._pin == "yes":
            do = "mount -t bpf bpf /sys/fs/bpf, or set pin = no"
            raise DegradedError("pin the reflector of", interface, why, do)
        return f"the reflector does not outlive this agent: {why}"

    def mode(self, one: Attachment) -> str:
        """How an interface is attached, for people."""
        reflector = f"xdp {one.hooks.mode(one.ifindex)}" if one.reflector else f"tc {_way(one.ingress)}"
        return f"{reflector}, egress {_way(one.egress)}"

    def routed_targets(self, local_addresses: Iterable[Address]) -> dict[int, Target]:
        """Paths to the peers' own addresses, whatever way the route takes; set up on the way."""
        local = {len(address.packed): address for address in reversed(tuple(local_addresses))}
        targets = {}
        for index, (peer, address) in self._addresses.items():
            mine = local.get(len(address.packed))
            if mine is None:
                self.degraded.append(
                    f"no proof of routes to {peer.name} {address}: the node has no such address"
                )
                continue
            self._set_up(index, peer, 0, mine, address, ANSWERS)
            targets[index] = Target(index, 0, mine, address, peer.unauthenticated)
        return targets

    async def detach(self, one: Attachment, *, keep: bool = False) -> None:
        """Take everything off one interface, or with `keep` all but a pinned reflector."""
        for link in (one.egress, one.ingress):
            if link is not None:
                await link.detach_async()
        one.egress = one.ingress = None
        if one.reflector is not None:
            await one.hooks.leave(one.ifindex, SLOT, keep=keep)
            one.reflector.close()
            one.reflector = None
        if not keep and self._base is not None:
            for key in one.keys:
                self._base.maps["peers"].delete(key)

    async def close(self, attached: Mapping[str, Attachment], *, keep: bool) -> None:
        """Detach from all interfaces; with `keep` pinned reflectors stay, and so do those that were there before."""
        for one in attached.values():
            await self.detach(one, keep=keep or one.hooks.taken_over(one.ifindex))
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        for loaded in (self._base, *self._further.values()):
            if loaded is not None:
                loaded.close()
        self._further.clear()
        self._base = self._table = None


def _prepare(timer: str) -> tuple[ObjectSpec, Choice]:
    """A thread's work: parsing and probing take milliseconds."""
    return ObjectSpec.read(object_path("link_watch")), choose("link_watch", VARIANTS, timer)


_ORDER: Final = "little" if socket.htons(1) != 1 else "big"


def _way(link: TcLink | None) -> str:
    return getattr(link, "way", "none")


def source(path: Path) -> Address:
    """Our address on a path's link, as the kernel would choose it.

    Raises AttachError when there is none (yet).
    """
    family = socket.AF_INET if path.address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, path.interface.encode())
            if family == socket.AF_INET:
                probe.connect((str(path.address), 862))
            else:
                scope = (
                    socket.if_nametoindex(path.interface)
                    if IPv6Address(int(path.address)).is_link_local
                    else 0
                )
                probe.connect((str(path.address), 862, 0, scope))
            return ip_address(probe.getsockname()[0].split("%")[0])
        except OSError as error:
            do = "bring it up and give it an address, or set `local`"
            why = f"no address to reach {path.address} from ({os.strerror(error.errno or 0)})"
            raise AttachError("watch", path.interface, why, do) from error
