"""mesh_filter: who sends, counted by identity, and who may not: dropped, limited or only counted.

An identity is what `Identities` says of a source address: attribution, which a spoofed address defeats. One set of maps
serves all interfaces, so one write quarantines an identity on all of them; counts are summed over them. It fails open:
what it cannot attribute or count passes. Its verdicts end when it is closed, unless they are kept (`persist`). In a
chain that link_watch pinned, they outlive a killed process until the next agent takes that chain over, or
`mapek release`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import numpy as np

from mapek.bpf import ObjectSpec, object_path
from mapek.bpf.keep import Kept
from mapek.bpf.worker import in_thread
from mapek.config.options import located, plain, take, take_strings
from mapek.contracts import Options, Status, Surroundings, Touchpoint, Variant
from mapek.errors import ConfigError, DegradedError
from mapek.model import Applied, Entity, Frame, Metric, Schema, Step
from mapek.sensors.detachments import COUNTED
from mapek.sensors.hooks import Hooks
from mapek.sensors.identities import ALLOW, DENY, Identities, Verdict
from mapek.sensors.identity_watch import IdentityFile
from mapek.sensors.ingress import (
    MODES,
    Ingress,
    IngressProgram,
    choose_mode,
    join_ingress,
    variant_of,
    variants_of,
)
from mapek.sensors.interfaces import Interfaces
from mapek.sensors.keeper import Keeper, keeper
from mapek.sensors.mesh_filter_store import LONGEST_NAME, UNKNOWN, Store
from mapek.sensors.mesh_filter_tables import SHARED, TALLIES, Tables, pack
from mapek.sensors.mesh_filter_undo import Undo
from mapek.sensors.probe_port import ProbePort

if TYPE_CHECKING:
    from mapek.knowledge.topology import Topology

SLOT: Final = "mesh_filter"

SCHEMA: Final = Schema(
    "mesh_filter",
    "identity",
    counters=(
        Metric("receive", "packets", "Packets of the identity that came, also those dropped."),
        Metric("receive", "bytes", "Bytes of their frames."),
        Metric("drops", "", "Packets dropped because of its verdict."),
        Metric("would_drop", "", "Packets that were passed only because of observe."),
    ),
)


def step(action: str, identity: str, **fields: int) -> Step:
    """The step that does `action` ("quarantine", "release", "limit") to an identity, and whose undo restores it."""
    undo = Step(SLOT, "restore", {"identity": identity, "action": action, **fields})
    return Step(SLOT, action, {"identity": identity, **fields}, undo)


class MeshFilter(Touchpoint):
    """Touchpoint `mesh_filter`, sensor and effector.

    Actions, each with the field `identity` (a SPIFFE ID, "unknown", or a number): "quarantine"; "release"; "limit"
    with `rate` and `burst` in packets (a second); "restore": as it was before the one of these that `action` names
    (with its rate and burst), if that still holds. And "observe" with `on`. Each is one map write. What restores the
    state before is in `step`.

    Options:
        interfaces: names; by default those of all paths.
        mode: "auto", "native", "generic" or "tc".
        identities: a TOML file of identities; "": only the API.
        observe: begin by only counting what would be dropped.
        unknown: "allow" or "deny" what no identity is known of.
        prefer: "prefix" or "mac", where both are known.
        rows: identities with a row of their own in a frame.
        max_identities, max_addresses: how many the kernel's maps hold; addresses of each kind (IPv4, IPv6, MAC).
        spare_probes: let link_watch's probes pass whatever the verdict is.
        persist: let counts, verdicts and programs outlive the agent.
        reattach: put back what somebody takes off an interface behind our back, at most five times in ten minutes.

    Needs kernel 5.10, CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON.
    """

    name: ClassVar[str] = "mesh_filter"
    counted: ClassVar[Mapping[str, str]] = {
        **COUNTED,
        "control": "Frames of batman-adv's own.",
        "undecoded": "Frames whose sender could not be told.",
        "spared": "Frames of denied identities that are never dropped.",
        "map_full": "Frames that found no row to be counted in, and passed.",
        "addresses_refused": "Addresses of identities that found no room, each time.",
        "expired": "Entries of identities that ended by themselves.",
    }
    # It says where the chain that they share is pinned and which port its probes have, and takes over the chain of
    # the agent before.
    opens_after: ClassVar[tuple[str, ...]] = ("link_watch",)
    kind: ClassVar[Literal["sensor", "effector"]] = "effector"
    variants: ClassVar[tuple[Variant, ...]] = variants_of("lpm_trie")

    def __init__(self, options: Options) -> None:
        self._names = take_strings(options, "interfaces")
        self._mode = take(options, "mode", str, "auto", choices=MODES)
        self.wanted_variant = variant_of(self._mode)
        self._how, self._lesser = self._mode, tuple[str, ...]()
        self._path = located(options, "identities", take(options, "identities", str, ""))
        self._observe = take(options, "observe", bool, False)
        unknown = take(options, "unknown", str, "allow", choices=("allow", "deny"))
        self._prefer = take(options, "prefer", str, "prefix", choices=("prefix", "mac"))
        rows = take(options, "rows", int, 64, minimum=1, maximum=1024)
        self._sizes = (
            take(options, "max_identities", int, 1024, minimum=1, maximum=65_535),
            take(options, "max_addresses", int, 16_384, minimum=1, maximum=1_000_000),
        )
        self._spare_probes = take(options, "spare_probes", bool, True)
        self._port = 0
        reattach = take(options, "reattach", bool, True)
        self._persist = take(options, "persist", bool, False)
        self._settings = {"unknown": unknown, "observe": str(self._observe)}
        self._around: Surroundings | None = None
        self._keeper: Keeper | None = None
        self._kept: Kept | None = None
        self._program: IngressProgram | None = None
        self._file: IdentityFile | None = None
        self._interfaces = Interfaces("filter on", self._attach, sensor=self.name, reattach=reattach)
        self._store = Store(rows, DENY if unknown == "deny" else ALLOW)
        self._undo = Undo()

    @property
    def registry(self) -> Identities:
        """The identities of this loop. Raises DegradedError while it is not open."""
        return self._open_around().shared(Identities)

    def shortfalls(self, topology: Topology) -> tuple[str, ...]:
        return self._interfaces.shortfalls(topology, self._names)

    async def open(self, surroundings: Surroundings) -> None:
        """Make the maps, fill them, attach; raises the first error if no interface is there."""
        self._around = surroundings
        self._how, self._lesser = await choose_mode(self.name, self.variants, self._mode)
        self._port = surroundings.shared(ProbePort).ask(self.name) if self._spare_probes else 0
        spec = await in_thread(lambda: ObjectSpec.read(object_path("mesh_filter")))
        self._program = IngressProgram(spec, SLOT, "mesh_filter", "mesh_filter_tc", bare=True)
        registry = surroundings.shared(Identities)
        self._keeper = keeper(surroundings)
        beside = {"names": ("hash", 4, LONGEST_NAME, self._sizes[0] + 1)}
        keep = self._keeper.keep(self.name, SHARED, on=self._persist, settings=self._settings, beside=beside)
        kept = self._kept = await self._keeper.take(keep, spec)
        await self._store.open(spec, self._sizes, registry, surroundings.spawn, kept)
        registry.join(self._store, surroundings.clock)
        await self._store.fill(registry)
        if kept.unchanged:
            self._observe = self._tables().observing()
        self._tables().observe(self._observe)
        if self._path is not None:
            self._file = IdentityFile(self._path, registry)
            await self._file.open(surroundings.clock, surroundings.spawn)
        # Before the first packet is judged.
        await self._store.settle()
        if kept.adopted:
            await self._store.reconcile(registry)
        await self._interfaces.open(surroundings, self._names)

    async def _attach(self, link: Entity, former: Ingress | None) -> Ingress:
        assert self._program is not None
        return await join_ingress(
            self._open_around().shared(Hooks),
            link,
            self._program,
            self._how,
            rodata={"probe_port": self._port, "mac_first": self._prefer == "mac"},
            reuse=self._tables().shared(),
            kept=self._kept,
        )

    async def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._around is not None:
            self._around.shared(Identities).leave(self._store)
        try:
            await self._interfaces.close()
        finally:
            self._store.close()
            kept, self._kept = self._kept, None
            if kept is not None and not kept.idle:
                await in_thread(kept.leave)
            self._around = self._program = None

    async def reload(self) -> None:
        """Read the file of identities again, as it is done by itself when the file changes."""
        if self._file is not None:
            await self._file.reload()

    def schema(self) -> Schema:
        return SCHEMA

    def read(self) -> Frame | None:
        """Rows: "unknown", the busiest identities by SPIFFE ID, and "other" for the rest."""
        if self._store.tables is None or self._around is None:
            return None
        if self._keeper is not None:
            self._keeper.serve()
        registry = self.registry
        registry.wake()
        own, counters = self._store.rows()
        names = ["unknown", *(registry.spiffe_id(number) or f"number {number}" for number in own), "other"]
        entities = tuple(Entity("identity", name) for name in names)
        n = len(entities)
        now_ns = self._around.clock.now_ns()
        return Frame(now_ns, SCHEMA, entities, counters, np.zeros((n, 0)), np.ones(n, np.bool_))

    async def act(self, step: Step) -> Applied:
        return self.act_now(step)

    def act_now(self, step: Step) -> Applied:
        """One map write, or none where the kernel already has it so.

        Raises ConfigError for an action or fields that it does not know, DegradedError while it is closed, for an
        identity that was never registered, or that found no room.
        """
        around, tables = self._open_around(), self._tables()
        if step.action == "observe":
            on = take(step.fields, "on", bool, required=True)
            changed = tables.observing() != on
            if changed:
                tables.observe(on)
            self._observe = on
            return Applied(around.clock.now_ns(), changed, f"observe {'on' if on else 'off'}")
        number, name = self._whose(step)
        before = tables.verdict(number)
        if restoring := step.action == "restore":
            action = take(
                step.fields, "action", str, required=True, choices=("quarantine", "release", "limit")
            )
            meant = _meant(action, step)
            wanted = self._undo.back(number, meant, before)
        else:
            wanted = meant = _meant(step.action, step)
        changed = False
        if wanted is not None and wanted != before:
            changed = self._store.judge(number, wanted)
            if not changed:
                why = "the maps are full, so it is not filtered"
                raise DegradedError(step.action, name, why, "raise max_identities")
        if restoring:
            self._undo.forget(number, meant)
        elif changed:
            self._undo.done(number, before, meant)
        return Applied(
            around.clock.now_ns(), changed, f"{step.action} {name}" if changed else f"{name} was so"
        )

    def _whose(self, step: Step) -> tuple[int, str]:
        identity = step.fields.get("identity")
        registry = self.registry
        if isinstance(identity, int) and not isinstance(identity, bool):
            identity = "unknown" if identity == UNKNOWN else registry.spiffe_id(identity) or identity
        if identity == "unknown":
            return UNKNOWN, "unknown"
        if isinstance(identity, str) and (number := registry.number(identity)) is not None:
            return number, identity
        why = f"identity {plain(repr(identity))} was never registered"
        raise DegradedError(plain(step.action), self.name, why, "register it first")

    def _open_around(self) -> Surroundings:
        if self._around is None:
            raise DegradedError("use", self.name, "it is not open", "open it first")
        return self._around

    def _tables(self) -> Tables:
        if self._store.tables is None:
            raise DegradedError("use", self.name, "it is not open", "open it first")
        return self._store.tables

    def status(self) -> Status:
        attached, store = self._interfaces.places(), self._store
        degraded = [*self._lesser, *self._interfaces.troubles()]
        if self._kept is not None and self._kept.trouble:
            degraded.append(self._kept.trouble)
        adopted = self._kept is not None and self._kept.adopted
        if adopted and store.tables is not None and (room := store.tables.room()) != self._sizes:
            why = f"the kept maps have room for {room[0]} identities and {room[1]} addresses of a kind"
            degraded.append(f"{why}; mapek release makes room for as many as configured")
        if self._file is not None and self._file.trouble:
            degraded.append(f"the identities are those of the last good file: {self._file.trouble}")
        if store.refused:
            why = f"{len(store.refused)} addresses found no room and count as unknown"
            degraded.append(f"{why}; raise max_identities or max_addresses")
        degraded += [
            f"{one.entity.name} by tc: {one.why}" for one in self._interfaces.attached.values() if one.why
        ]
        counts = {**self._interfaces.counts(), **dict(zip(TALLIES, store.tallied.tolist(), strict=True))}
        counts["addresses_refused"] = store.addresses_refused
        if self._around is not None:
            counts["expired"] = self.registry.expired
        return Status(bool(attached), attached, tuple(degraded), counts)


def _meant(action: str, step: Step) -> bytes:
    """The policy that an action sets, by the fields of the step."""
    if action == "quarantine":
        return pack(DENY)
    if action == "release":
        return pack(ALLOW)
    if action == "limit":
        rate = take(step.fields, "rate", int, required=True)
        return pack(Verdict("limit", rate, take(step.fields, "burst", int, max(1, rate // 10))))
    do = "known are quarantine, release, limit, restore, observe"
    raise ConfigError("act on", SLOT, f"{plain(action)!r} is no action of it", do)
