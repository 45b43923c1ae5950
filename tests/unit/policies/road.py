"""A link_failover and what it reads, in virtual time: seconds are ticks, plans end as the test says."""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np

from mapek.knowledge import Knowledge, Path, Peer, Topology
from mapek.model import Entity, Event, Frame, Metric, Plan, Schema, Symptom
from mapek.policies.link_failover import LinkFailover

SECOND = 1_000_000_000
START = 1_000_000 * SECOND
NODE = Entity("node", "a")
SCHEMA = Schema("link_watch", "path", gauges=(Metric("silent"), Metric("answer_age"), Metric("window_loss")))


def topology(peers: str, links: int) -> Topology:
    def paths(name: str) -> tuple[Path, ...]:
        return tuple(Path(name, f"l{k}", ip_address(f"10.0.{k}.2"), preference=k) for k in range(links))

    key = b"0123456789abcdef"
    return Topology("a", (), [Peer(name, (ip_address("10.1.0.2"),), (), paths(name), key) for name in peers])


class Road:
    """Args: peers: a letter each; links: paths of each; options: of the policy."""

    def __init__(self, peers: str = "b", links: int = 2, **options: object) -> None:
        self.policy = LinkFailover(options)
        self.knowledge = Knowledge(topology(peers, links))
        self.policy.start(self.knowledge)
        self.now_ns = START
        names = [path.entity.name for path in self.knowledge.topology.paths()]
        self.silent = dict.fromkeys(names, 0.0)
        self.age = dict.fromkeys(names, 0.01)
        self.loss = dict.fromkeys(names, 0.0)
        self.invalid: set[str] = set()
        self.frames = True
        self.plans: list[tuple[float, Plan]] = []
        self.refuse: set[str] = set()
        """Paths on which plans fail; "*" for those that never end."""

    @property
    def seconds(self) -> float:
        return (self.now_ns - START) / SECOND

    def active(self, peer: str = "b") -> str:
        return str(self.knowledge.facts.get(f"active_path/{peer}", "")).removeprefix(f"{peer}/")

    def moves(self) -> list[str]:
        """ "action path", a "!" before what is urgent, in order; the list is emptied."""
        said = [
            f"{'!' if plan.urgent else ''}{plan.steps[0].action} {plan.steps[0].fields['path']}"
            for _, plan in self.plans
        ]
        self.plans.clear()
        return [one.replace(" b/", " ") for one in said]

    def _do(self, plan: Plan | None) -> Plan | None:
        if plan is None:
            return None
        self.plans.append((self.seconds, plan))
        path = str(plan.steps[0].fields["path"])
        if "*" in self.refuse:
            return plan
        if path in self.refuse:
            self.say("plan.failed", plan.entity, policy=plan.policy, why="as told")
            return plan
        self.say("path.active", Entity("path", path), peer=plan.entity.name, before="")
        self.say("plan.acted", plan.entity, policy=plan.policy, changed=True)
        return plan

    def say(self, kind: str, entity: Entity, /, **fields: object) -> Plan | None:
        self.knowledge.now_ns = self.now_ns
        event = Event(self.now_ns, entity, kind, fields)  # type: ignore[arg-type]
        return self._do(self.policy.on_event(event, self.knowledge))

    def frame(self) -> None:
        entities = tuple(path.entity for path in self.knowledge.topology.paths())
        gauges = np.array([[self.silent[e.name], self.age[e.name], self.loss[e.name]] for e in entities])
        valid = np.array([e.name not in self.invalid for e in entities])
        none = np.zeros((len(entities), 0), np.uint64)
        self.knowledge.latest["link_watch"] = Frame(self.now_ns, SCHEMA, entities, none, gauges, valid)

    def run(self, seconds: int) -> Road:
        """A frame and a tick each second."""
        for _ in range(seconds):
            self.now_ns += SECOND
            if self.frames:
                self.frame()
            self.say("tick", NODE)
        return self

    def ill(self, link: str, *alive: str, kind: str = "path_dead", peer: str = "b") -> Plan | None:
        """A verdict, with what answered; the gauges follow."""
        name = f"{peer}/{link}"
        if kind == "path_dead":
            self.silent[name], self.age[name] = 1.0, 60.0
        evidence = {"alive": tuple(f"{peer}/{one}" for one in alive)}
        self.knowledge.now_ns = self.now_ns
        symptom = Symptom(Entity("path", name), kind, 1.0, self.now_ns, self.now_ns, evidence=evidence)
        return self._do(self.policy.plan(symptom, self.knowledge))

    def unproved(self, plan: Plan) -> Plan | None:
        """The proof of a plan did not come."""
        return self._do(self.policy.unproved(plan, self.knowledge))

    def well(self, link: str, kind: str = "path_dead", peer: str = "b") -> None:
        name = f"{peer}/{link}"
        self.silent[name], self.age[name] = 0.0, 0.01
        self.knowledge.now_ns = self.now_ns
        symptom = Symptom(Entity("path", name), kind, 0.0, self.now_ns, self.now_ns, cleared=True)
        self.policy.cleared(symptom, self.knowledge)
