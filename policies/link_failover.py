"""link_failover: keep each peer's traffic on the best path that answers.

A dead or lossy path in use is left at once, for a path with positive evidence and for no other. Going back to
the preferred path is voluntary and waits for a hold-down that doubles with each return that did not last,
until one has. What the kernel or somebody else changed is laid anew, and what failed is tried again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from mapek.config.options import error, take
from mapek.contracts import Options, Policy
from mapek.model import Entity, Event, Inquiry, Plan, Step, Symptom

if TYPE_CHECKING:
    from mapek.knowledge import Knowledge, Peer

ILL: Final = ("path_dead", "path_gray")
WORSE_BY_AT_MOST: Final = 0.005
"""Share of probes that a path may lose more than the one in use and still be returned to."""

REPAIR: Final = ("nexthop.gone", "nexthop.new", "nexthop.differs", "route.gone", "netlink.overrun")

LINK_BACK: Final = ("link.up", "link.new")
"""The kernel flushed the routes over this link when it went down."""

STALE_NS: Final = 3_000_000_000
"""A frame older than this is no evidence: whoever took it has stopped."""

FIRST_RETRY_NS: Final = 1_000_000_000
LAST_RETRY_NS: Final = 16_000_000_000

OVERDUE_NS: Final = 5_000_000_000
"""A plan of which nothing was heard for so long, past its settling time, is forgotten."""


@dataclass(slots=True)
class _Held:
    """What is known of one peer."""

    ill: dict[str, str]
    """Kind of illness by path name."""
    well_since_ns: dict[str, int]
    hold_down_ns: int
    returned_ns: int = 0
    """When traffic came back to the preferred path; 0 once it is known whether that lasted."""
    returning: str = ""
    came_from: str = ""
    """Where a return that cannot be proved goes back to."""
    moving: str = ""
    """Where the last plan leads, as long as it is under way."""
    under_way: int = 0
    given_up_ns: int = 0
    """When the plans under way are overdue."""
    damaged: str = ""
    """Why the routes need to be laid anew."""
    failures: int = 0
    retry_ns: int = 0

    def settle(self, now_ns: int) -> None:
        """Forget plans that never ended."""
        if self.under_way and now_ns >= self.given_up_ns:
            self.under_way, self.moving, self.returning = 0, "", ""


class LinkFailover(Policy):
    """Policy `link_failover`.

    Options:
        hold_down_s: how long a preferred path must be well before traffic returns to it.
        hold_down_max_s: where the doubling ends, and how long a return must last to count as good.
        settle_ms: how long the proof of a repaired route may take.
        touchpoint: the effector that holds the routes.
    """

    name: ClassVar[str] = "link_failover"

    def __init__(self, options: Options) -> None:
        self._hold_ns = int(take(options, "hold_down_s", float, 5.0, minimum=0.1, maximum=3600.0) * 1e9)
        hold_max_s = take(options, "hold_down_max_s", float, 60.0, minimum=0.1, maximum=86_400.0)
        self._hold_max_ns = int(hold_max_s * 1e9)
        self._settle_ns = int(take(options, "settle_ms", float, 500.0, minimum=1.0, maximum=60_000.0) * 1e6)
        self._touchpoint = take(options, "touchpoint", str, "netlink")
        if self._hold_max_ns < self._hold_ns:
            why = "is less than hold_down_s"
            raise error(options, "hold_down_max_s", why, f"it must be at least {self._hold_ns / 1e9:g}")
        self._held: dict[str, _Held] = {}
        self._turn = 0

    def start(self, knowledge: Knowledge) -> None:
        """No path of any peer is known to be ill."""
        self._held = {name: _Held({}, {}, self._hold_ns) for name in knowledge.topology.peers}

    def _active(self, peer: str, knowledge: Knowledge) -> str:
        return str(knowledge.facts.get(f"active_path/{peer}", ""))

    def plan(self, symptom: Symptom, knowledge: Knowledge) -> Plan | None:
        """Leave an ill path that is in use, for the most preferred one of those that answered."""
        peer = knowledge.topology.peer_of(symptom.entity)
        if peer is None or symptom.kind not in ILL:
            return None
        held, path = self._held[peer.name], symptom.entity.name
        held.ill[path] = symptom.kind
        held.well_since_ns.pop(path, None)
        held.settle(knowledge.now_ns)
        active = held.moving or self._active(peer.name, knowledge)
        if active and path != active:
            return None
        alive = symptom.evidence.get("alive")
        best = self._best(peer, alive if isinstance(alive, tuple) else (), avoid=path)
        if best is None:
            return None
        if held.returned_ns:
            held.hold_down_ns, held.returned_ns = min(2 * held.hold_down_ns, self._hold_max_ns), 0
        return self._move(peer, best, f"{symptom.kind} on {path}", knowledge.now_ns, urgent=True)

    def cleared(self, symptom: Symptom, knowledge: Knowledge) -> None:
        """The path may be used again; the hold-down begins with the first second it is seen well."""
        peer = knowledge.topology.peer_of(symptom.entity)
        if peer is not None and self._held[peer.name].ill.get(symptom.entity.name) == symptom.kind:
            del self._held[peer.name].ill[symptom.entity.name]

    def _best(self, peer: Peer, alive: tuple[object, ...], avoid: str) -> str | None:
        ill = self._held[peer.name].ill
        candidates = [p.entity.name for p in peer.paths if p.entity.name in alive and p.entity.name != avoid]
        sound = [name for name in candidates if name not in ill]
        # a lossy path is better than a dead one
        return next(iter(sound or candidates), None)

    def _move(
        self,
        peer: Peer,
        path: str,
        reason: str,
        now_ns: int,
        *,
        urgent: bool = False,
        action: str = "use_path",
    ) -> Plan:
        held = self._held[peer.name]
        held.moving, held.returning = path, ""
        held.under_way += 1
        held.given_up_ns = now_ns + self._settle_ns + OVERDUE_NS
        target = next(one for one in peer.paths if one.entity.name == path)
        return Plan(
            self.name,
            peer.entity,
            (Step(self._touchpoint, action, {"peer": peer.name, "path": path}),),
            Inquiry("", peer.entity, "probe_route", self._settle_ns),
            self._settle_ns,
            (peer.entity, target.entity),
            f"{reason}: to {path}",
            urgent,
        )

    def on_event(self, event: Event, knowledge: Knowledge) -> Plan | None:
        """Note where traffic goes; repair what was changed; return when the hold-down is over."""
        if event.kind == "tick":
            return self._by_time(knowledge)
        if event.kind in LINK_BACK:
            return self._link_back(event, knowledge)
        peer = knowledge.topology.peer_of(event.entity)
        if event.kind in REPAIR:
            # what concerns no peer may concern every one
            for each in [peer] if peer is not None else knowledge.topology.peers.values():
                self._held[each.name].damaged = event.kind
            return self._repair(peer, knowledge) if peer is not None else None
        if peer is None:
            return None
        held = self._held[peer.name]
        if event.kind == "path.active":
            self._arrived(held, event.entity.name, knowledge.now_ns)
            knowledge.facts[f"active_path/{peer.name}"] = event.entity.name
        elif event.kind in ("plan.acted", "plan.failed") and event.fields.get("policy") == self.name:
            held.under_way = max(held.under_way - 1, 0)
            if not held.under_way:
                held.moving = ""
            if event.kind == "plan.acted":
                held.failures, held.retry_ns = 0, 0
            else:
                held.damaged = held.damaged or "the last plan failed"
                held.retry_ns = knowledge.now_ns + min(FIRST_RETRY_NS << held.failures, LAST_RETRY_NS)
                held.failures = min(held.failures + 1, 16)
        return None

    def unproved(self, plan: Plan, knowledge: Knowledge) -> Plan | None:
        """A return that nothing answers is taken back; an emergency stays, since what it left was worse."""
        held, target = self._held[plan.entity.name], plan.steps[0].fields["path"]
        back, held.came_from = held.came_from, ""
        peer = knowledge.topology.peers[plan.entity.name]
        if plan.urgent or not back or target != self._active(peer.name, knowledge) or back in held.ill:
            return None
        held.hold_down_ns = min(2 * held.hold_down_ns, self._hold_max_ns)
        held.well_since_ns.pop(str(target), None)
        held.returned_ns = 0
        return self._move(peer, back, f"the return to {target} was not proved", knowledge.now_ns)

    def _link_back(self, event: Event, knowledge: Knowledge) -> Plan | None:
        plan: Plan | None = None
        for path in knowledge.topology.paths():
            if path.interface == event.entity.name and path.entity.name == self._active(path.peer, knowledge):
                held = self._held[path.peer]
                held.damaged, held.retry_ns = event.kind, 0
                # the other peers of this link have their turn with the next ticks
                plan = plan or self._repair(knowledge.topology.peers[path.peer], knowledge)
        return plan

    def _arrived(self, held: _Held, path: str, now_ns: int) -> None:
        """The routes of a peer were laid over `path`."""
        if path == held.moving:
            held.moving = ""
            if path == held.returning:
                held.returned_ns, held.returning = now_ns, ""
        held.damaged = ""

    def _repair(self, peer: Peer, knowledge: Knowledge) -> Plan | None:
        """Lay the routes of the path in use anew."""
        held, active, now = self._held[peer.name], self._active(peer.name, knowledge), knowledge.now_ns
        held.settle(now)
        if not held.damaged or held.moving or not active or active in held.ill or now < held.retry_ns:
            return None
        return self._move(peer, active, held.damaged, now, action="hold")

    def _by_time(self, knowledge: Knowledge) -> Plan | None:
        """One plan a tick, and each peer has its turn: one that fails for ever must not starve the others."""
        peers = list(knowledge.topology.peers.values())
        well = {peer.name: self._note_well(peer, knowledge) for peer in peers}
        for step in range(len(peers)):
            peer = peers[(self._turn + step) % len(peers)]
            if plan := self._due(peer, well[peer.name], knowledge):
                self._turn = (self._turn + step + 1) % len(peers)
                return plan
        return None

    def _note_well(self, peer: Peer, knowledge: Knowledge) -> list[str]:
        held, well = self._held[peer.name], self._well_paths(peer, knowledge)
        for path in peer.paths:
            if path.entity.name in well:
                held.well_since_ns.setdefault(path.entity.name, knowledge.now_ns)
            else:
                held.well_since_ns.pop(path.entity.name, None)
        return well

    def _due(self, peer: Peer, well: list[str], knowledge: Knowledge) -> Plan | None:
        held, now = self._held[peer.name], knowledge.now_ns
        held.settle(now)
        if held.returned_ns and now - held.returned_ns >= self._hold_max_ns:
            held.returned_ns, held.hold_down_ns = 0, self._hold_ns
        active = self._active(peer.name, knowledge)
        if held.moving or now < held.retry_ns:
            return None
        if held.damaged and (plan := self._repair(peer, knowledge)):
            return plan
        if not well:
            return None
        best = well[0]
        if not active:
            return self._move(peer, best, "first evidence", now, action="hold")
        if active in held.ill:
            return self._move(peer, best, f"{active} is still ill", now)
        ranks = [path.entity.name for path in peer.paths]
        if active not in ranks or ranks.index(best) >= ranks.index(active):
            return None
        if now - held.well_since_ns[best] < held.hold_down_ns:
            return None
        plan = self._move(peer, best, "preferred and well again", now)
        held.returning, held.came_from = best, active
        return plan

    def _well_paths(self, peer: Peer, knowledge: Knowledge) -> list[str]:
        """Paths that answered within the last two frames, by preference, ill ones excluded."""
        frame = knowledge.latest.get("link_watch")
        if frame is None or knowledge.now_ns - frame.time_ns > STALE_NS:
            return []
        names = [metric.name for metric in frame.schema.gauges]
        age, silent, loss = (names.index(name) for name in ("answer_age", "silent", "window_loss"))
        rows = {entity: frame.gauges[row] for row, entity in enumerate(frame.entities) if frame.valid[row]}
        in_use = rows.get(Entity("path", self._active(peer.name, knowledge)))
        # with none in use yet, the best is good enough
        others = [float(gauges[loss]) for gauges in rows.values() if gauges[loss] >= 0]
        least = float(in_use[loss]) if in_use is not None and in_use[loss] >= 0 else min(others, default=0.0)
        most = WORSE_BY_AT_MOST + least
        found = []
        for path in peer.paths:
            gauges = rows.get(path.entity)
            if gauges is None or path.entity.name in self._held[peer.name].ill:
                continue
            if gauges[silent] == 0 and gauges[age] < 2.0 and not gauges[loss] > most:
                found.append(path.entity.name)
        return found
