"""link_failover: keep each peer's traffic on the best path that answers.

A dead or lossy path in use is left at once, for a path with positive evidence and for no other. Going back to
the preferred path is voluntary and waits for a hold-down that doubles with each return that did not last. What
the kernel or somebody else changed is laid anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from mapek.config.options import take
from mapek.contracts import Options, Policy
from mapek.model import Event, Inquiry, Plan, Step, Symptom

if TYPE_CHECKING:
    from mapek.knowledge import Knowledge, Peer

ILL: Final = ("path_dead", "path_gray")
WORSE_BY_AT_MOST: Final = 0.005
"""Share of probes that a path may lose more than the one in use and still be returned to."""

REPAIR: Final = ("nexthop.gone", "nexthop.new", "nexthop.differs", "route.gone", "netlink.overrun")


@dataclass(slots=True)
class _Held:
    """What is known of one peer."""

    ill: dict[str, str]
    """Kind of illness by path name."""
    well_since_ns: dict[str, int]
    hold_down_ns: int
    returned_ns: int = 0
    moving: str = ""
    retry_ns: int = 0


class LinkFailover(Policy):
    """Policy `link_failover`.

    Options:
        hold_down_s: how long a preferred path must be well before traffic returns to it.
        hold_down_max_s: where the doubling ends.
        settle_ms: how long the proof of a repaired route may take.
        touchpoint: the effector that holds the routes.
    """

    name: ClassVar[str] = "link_failover"

    def __init__(self, options: Options) -> None:
        self._hold_ns = int(take(options, "hold_down_s", float, 5.0, minimum=0.1, maximum=3600.0) * 1e9)
        self._hold_max_ns = int(take(options, "hold_down_max_s", float, 60.0, minimum=0.1, maximum=86_400.0) * 1e9)
        self._settle_ns = int(take(options, "settle_ms", float, 500.0, minimum=1.0, maximum=60_000.0) * 1e6)
        self._touchpoint = take(options, "touchpoint", str, "netlink")
        self._held: dict[str, _Held] = {}

    def start(self, knowledge: Knowledge) -> None:
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
        active = held.moving or self._active(peer.name, knowledge)
        if active and path != active:
            return None
        alive = symptom.evidence.get("alive")
        best = self._best(peer, alive if isinstance(alive, tuple) else (), avoid=path)
        if best is None:
            return None
        if held.returned_ns and knowledge.now_ns - held.returned_ns < held.hold_down_ns:
            held.hold_down_ns = min(2 * held.hold_down_ns, self._hold_max_ns)
        return self._move(peer, best, f"{symptom.kind} on {path}", urgent=True)

    def cleared(self, symptom: Symptom, knowledge: Knowledge) -> None:
        """The path may be used again; the hold-down begins with the first second it is seen well."""
        peer = knowledge.topology.peer_of(symptom.entity)
        if peer is not None and symptom.kind in ILL:
            self._held[peer.name].ill.pop(symptom.entity.name, None)

    def _best(self, peer: Peer, alive: tuple[object, ...], avoid: str) -> str | None:
        ill = self._held[peer.name].ill
        candidates = [p.entity.name for p in peer.paths if p.entity.name in alive and p.entity.name != avoid]
        sound = [name for name in candidates if name not in ill]
        # a lossy path is better than a dead one
        return next(iter(sound or candidates), None)

    def _move(self, peer: Peer, path: str, reason: str, *, urgent: bool, action: str = "use_path") -> Plan:
        self._held[peer.name].moving = path
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
        peer = knowledge.topology.peer_of(event.entity)
        if event.kind == "path.active" and peer is not None:
            held = self._held[peer.name]
            held.moving = ""
            knowledge.facts[f"active_path/{peer.name}"] = event.entity.name
            return None
        if event.kind == "plan.failed" and peer is not None:
            self._held[peer.name].moving = ""
            self._held[peer.name].retry_ns = knowledge.now_ns + 1_000_000_000
            return None
        if event.kind in REPAIR and peer is not None:
            return self._repair(peer, event.kind, knowledge)
        if event.kind == "tick":
            for each in knowledge.topology.peers.values():
                if plan := self._by_time(each, knowledge):
                    return plan
        return None

    def _repair(self, peer: Peer, why: str, knowledge: Knowledge) -> Plan | None:
        held, active = self._held[peer.name], self._active(peer.name, knowledge)
        if held.moving or not active or active in held.ill:
            return None
        if knowledge.now_ns < held.retry_ns:
            return None
        return self._move(peer, active, why, urgent=False, action="hold")

    def _by_time(self, peer: Peer, knowledge: Knowledge) -> Plan | None:
        held, now = self._held[peer.name], knowledge.now_ns
        well = self._well_paths(peer, knowledge)
        for path in peer.paths:
            name = path.entity.name
            if name not in well:
                held.well_since_ns.pop(name, None)
                continue
            held.well_since_ns.setdefault(name, now)
        active = self._active(peer.name, knowledge)
        if held.moving or now < held.retry_ns or not well:
            return None
        if not active:
            return self._move(peer, well[0], "first evidence", urgent=False, action="hold")
        if active in held.ill:
            return self._move(peer, well[0], f"{active} is still ill", urgent=False)
        best = well[0]
        ranks = [path.entity.name for path in peer.paths]
        if ranks.index(best) >= ranks.index(active):
            return None
        if now - held.well_since_ns[best] < held.hold_down_ns:
            return None
        held.returned_ns = now
        return self._move(peer, best, "preferred and well again", urgent=False)

    def _well_paths(self, peer: Peer, knowledge: Knowledge) -> list[str]:
        """Paths that answered within the last two frames, by preference, ill ones excluded."""
        frame = knowledge.latest.get("link_watch")
        if frame is None:
            return []
        names = [metric.name for metric in frame.schema.gauges]
        age, silent, loss = (names.index(name) for name in ("answer_age", "silent", "window_loss"))
        held = self._held[peer.name]
        active = self._active(peer.name, knowledge)
        losses = {entity.name: frame.gauges[row, loss] for row, entity in enumerate(frame.entities)}
        most = WORSE_BY_AT_MOST + max(losses.get(active, 0.0), 0.0)
        found = []
        for row, entity in enumerate(frame.entities):
            owner = knowledge.topology.peer_of(entity)
            if owner is None or owner.name != peer.name or entity.name in held.ill:
                continue
            if frame.gauges[row, silent] == 0 and frame.gauges[row, age] < 2.0 and not losses[entity.name] > most:
                found.append(entity.name)
        return found
