"""Joins what arrives on an interface: in its XDP chain, or by tc where XDP cannot be had.

tc comes after the driver has made an skb, which costs some 100 ns a packet more, and it sees merged frames where
the driver merges; but every interface has it, and foreign programs do not stand in its way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mapek.bpf import LoadedObject, ObjectSpec, load_async
from mapek.bpf.keep import Kept
from mapek.bpf.maps import Map
from mapek.bpf.program import Program
from mapek.bpf.standing import Standing
from mapek.bpf.tc import Direction, TcLink, Way, attach_tc, attach_tc_kept
from mapek.bpf.worker import in_thread, in_thread_with
from mapek.bpf.xdp import Mode
from mapek.contracts import Variant
from mapek.errors import AttachError, FeatureError, MapekError
from mapek.model import Entity
from mapek.sensors.hardware import link_header
from mapek.sensors.hooks import Hooks
from mapek.sensors.variants import choose

MODES = ("auto", "native", "generic", "tc")
"""As options have it: "auto" is XDP by the driver, else tc."""
NEEDS = ("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON")


def variants_of(*needs: str) -> tuple[Variant, ...]:
    """The variants of a sensor that can go both ways and has further `needs` of the kernel."""
    return (
        Variant("xdp", (*NEEDS, *needs, "xdp_link"), "before the stack spends anything on a frame"),
        Variant("tc", (*NEEDS, *needs), "on every interface"),
    )


def variant_of(mode: str) -> str:
    """Which of the variants a mode asks for."""
    return mode if mode in ("auto", "tc") else "xdp"


def tc_may_do(error: MapekError) -> bool:
    """Whether tc may stand in where XDP could not be attached: not beside another agent, who has the interface."""
    return not isinstance(error.__cause__, BlockingIOError)


async def choose_mode(sensor: str, variants: Sequence[Variant], mode: str) -> tuple[str, tuple[str, ...]]:
    """The mode to attach with, as far as this kernel goes, and a line for what is not as good as it might be.

    Raises PrivilegeError or FeatureError where it cannot work at all.
    """
    choice = await in_thread(lambda: choose(sensor, variants, variant_of(mode)))
    return ("tc" if choice.variant.name == "tc" else mode), choice.degraded()


@dataclass(frozen=True, slots=True)
class IngressProgram:
    """The programs of one object for one place: `xdp` for `slot` of the chain, `tc` for a tc hook ("": none).

    `bare`: they have the constant `link_header`, and read packets without an Ethernet header too.
    """

    spec: ObjectSpec
    slot: str
    xdp: str
    tc: str = ""
    bare: bool = False


@dataclass(slots=True)
class Ingress:
    """One interface joined: an `Attachment` of `mapek.sensors.interfaces`.

    `where` says how: "xdp native", "xdp generic", "tc tcx" or "tc clsact"; `why` what stood in XDP's way, if tc was
    not asked for.
    """

    entity: Entity
    loaded: LoadedObject
    where: str
    why: str = ""
    _hooks: Hooks | None = None
    _slot: str = ""
    _program: str = ""
    _links: list[TcLink] = field(default_factory=list)
    _kept: Kept | None = None

    @property
    def lesser(self) -> tuple[str, ...]:
        """Why it does not outlive us although it should, for `Status.degraded`."""
        trouble = self._kept.trouble if self._kept is not None and self._kept.is_of_interface else ""
        return (trouble,) if trouble else ()

    def handles(self) -> list[Standing]:
        """What is attached."""
        if self._hooks is None:
            return list(self._links)
        slot = self._hooks.slot(self.entity.generation, self._slot, self.loaded.programs[self._program].id)
        return [] if slot is None else [slot]

    async def leave(self) -> None:
        """Take the program off, unless it is kept; its maps stay open."""
        stays = self._kept is not None and self._kept.stays
        # Forgotten after it is done, so that it can be done again when it was cancelled.
        if self._hooks is not None:
            await self._hooks.leave(self.entity.generation, self._slot, keep=stays)
            self._hooks = None
        await detach_all(self._links, keep=stays)
        await _leave(self._kept)

    def close(self) -> None:
        """Close programs and maps."""
        self.loaded.close()


@dataclass(slots=True)
class Joined:
    """What a sensor has on one interface, for sensors that keep more of it than the ingress: a base of theirs."""

    ingress: Ingress

    @property
    def entity(self) -> Entity:
        """The link."""
        return self.ingress.entity

    @property
    def where(self) -> str:
        """How it is joined."""
        return self.ingress.where

    def handles(self) -> list[Standing]:
        """What is attached."""
        return self.ingress.handles()

    async def leave(self) -> None:
        """Take the program off; its maps stay open."""
        await self.ingress.leave()

    def close(self) -> None:
        """Close programs and maps."""
        self.ingress.close()


async def _leave(kept: Kept | None) -> None:
    """Whoever keeps it of all interfaces leaves it by himself."""
    if kept is not None and kept.is_of_interface and not kept.idle:
        await in_thread(kept.leave)


async def attach_tc_to(
    program: Program, ifindex: int, direction: Direction, way: Way, kept: Kept | None, name: str
) -> TcLink:
    """`mapek.bpf.attach_tc` in a thread, or with `kept` in the place of what an agent before us kept there as `name`;
    a cancelled attach is undone, unless there was one before."""

    def attach(mine: Program) -> TcLink:
        if kept is None:
            return attach_tc(mine, ifindex, direction, way)
        return attach_tc_kept(mine, ifindex, direction, way, kept, name)

    def undo(link: TcLink) -> None:
        if kept is not None and kept.stays:
            link.close()
        else:
            link.detach()

    return await in_thread_with(program, attach, undo)


async def detach_all(links: list[TcLink], *, keep: bool = False) -> None:
    """Detach the last one first, and forget each only then: who comes again finds what is not undone. With `keep`
    those that outlive us stay."""
    while links:
        last = links[-1]
        if keep:
            await in_thread(last.close)
        else:
            await last.detach_async()
        if last in links:
            links.remove(last)


async def join_ingress(
    hooks: Hooks,
    link: Entity,
    program: IngressProgram,
    mode: str = "auto",
    *,
    rodata: Mapping[str, int | bytes] | None = None,
    reuse: Mapping[str, Map | int] | None = None,
    max_entries: Mapping[str, int] | None = None,
    kept: Kept | None = None,
) -> Ingress:
    """Load the program for `link` (generation: ifindex) and let it run on what arrives there.

    Args:
        mode: one of `MODES`; "auto" takes tc where the driver has no XDP or refuses it, or another program holds its
            hook. A program without tc goes by generic XDP then.
        rodata, reuse, max_entries: as for `mapek.bpf.load`.
        kept: what is kept of this interface, which is left with it, or of all of the sensor's.

    Raises:
        AttachError, FeatureError, PrivilegeError, VerifierError: as `mapek.bpf.load` and the attachments.
    """
    try:
        return await _join(hooks, link, program, mode, rodata or {}, reuse or {}, max_entries or {}, kept)
    except BaseException:
        await _leave(kept)
        raise


async def _join(
    hooks: Hooks,
    link: Entity,
    program: IngressProgram,
    mode: str,
    rodata: Mapping[str, int | bytes],
    reuse: Mapping[str, Map | int],
    max_entries: Mapping[str, int],
    kept: Kept | None,
) -> Ingress:
    header = await link_header(link, f"attach {program.slot} to")
    if program.bare:
        rodata = {**rodata, "link_header": header}
    elif not header:
        do = "leave it out: this sensor reads Ethernet frames only"
        raise AttachError(f"attach {program.slot} to", link.name, "its packets have no Ethernet header", do)
    why = ""
    place = "ingress" if kept is None or kept.is_of_interface else link.name
    if mode != "tc":
        wanted: Mode = "generic" if mode == "generic" else "native"
        if mode == "auto" and not program.tc:
            wanted = "auto"
        try:
            loaded = await hooks.join(
                link.generation,
                program.slot,
                program.spec,
                program.xdp,
                mode=wanted,
                rodata=rodata,
                reuse=reuse,
                max_entries=max_entries,
                kept=kept,
            )
        except (AttachError, FeatureError) as error:
            if mode != "auto" or not program.tc or not tc_may_do(error):
                raise
            why = str(error)
        else:
            if kept is not None and kept.holds:
                await in_thread(lambda: kept.drop(place))
            where = f"xdp {hooks.mode(link.generation)}"
            return Ingress(
                link, loaded, where, _hooks=hooks, _slot=program.slot, _program=program.xdp, _kept=kept
            )
    going_on = kept.reuse() if kept is not None else {}
    loaded = await load_async(
        program.spec,
        programs={program.tc},
        rodata=rodata,
        reuse={**reuse, **going_on},
        max_entries=max_entries,
    )
    try:
        if kept is not None and kept.is_of_interface and kept.holds:
            await in_thread(lambda: kept.settle(loaded))
        attached = await attach_tc_to(
            loaded.programs[program.tc], link.generation, "ingress", "auto", kept, place
        )
    except BaseException:
        loaded.close()
        raise
    return Ingress(link, loaded, f"tc {attached.way}", why, _links=[attached], _kept=kept)
