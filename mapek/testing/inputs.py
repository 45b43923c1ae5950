"""Inputs for the suites: plain ones, odd ones, and ones that a plugin has never heard of."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import numpy as np

from mapek.knowledge import Path, Peer, Topology
from mapek.model import Entity, Event, Frame, Incident, Input, Metric, Schema, Symptom

SECOND = 1_000_000_000

SCHEMA = Schema(
    "conformance",
    "path",
    counters=(Metric("received", "packets"),),
    gauges=(Metric("load"),),
    histograms=(Metric("delay", "seconds", bounds=(0.001, 0.01)),),
)


def some_topology() -> Topology:
    """Node "a" with peers "b" (two paths, IPv4) and "c" (one path, IPv6 link-local)."""
    b = Peer(
        "b",
        (ip_address("10.1.0.2"),),
        (ip_network("10.1.0.2/32"),),
        (
            Path("b", "l0", ip_address("10.0.0.2"), ip_address("10.0.0.1"), 0),
            Path("b", "l1", ip_address("10.0.1.2"), ip_address("10.0.1.1"), 1),
        ),
        b"0123456789abcdef",
    )
    c = Peer(
        "c",
        (ip_address("fd00::3"),),
        (ip_network("fd00::3/128"),),
        (Path("c", "l0", ip_address("fe80::3")),),
        b"fedcba9876543210",
    )
    return Topology("a", [ip_address("10.1.0.1"), ip_address("fd00::1")], [b, c])


def some_inputs(topology: Topology, seed: int = 0) -> list[Input]:
    """A minute of frames with gaps, resets and changing rows, events of many kinds, some of nobody known."""
    rng = np.random.default_rng(seed)
    paths = [path.entity for path in topology.paths()]
    stranger = Entity("path", "nobody/x9")
    inputs: list[Input] = []
    for second in range(1, 61):
        now = second * SECOND
        rows = tuple(rng.permutation(np.arange(len(paths)))[: rng.integers(0, len(paths) + 1)].tolist())
        entities = (*(paths[row] for row in rows), stranger)
        n = len(entities)
        counters = np.full((n, 1), second * 1000 % 17_000, np.uint64)
        gauges = rng.normal(size=(n, 1))
        gauges[rng.random((n, 1)) < 0.1] = np.nan
        valid = rng.random(n) < 0.9
        histogram = rng.integers(0, 9, (n, 3)).astype(np.uint64)
        inputs.append(sealed(Frame(now, SCHEMA, entities, counters, gauges, valid, (histogram,))))
        inputs.append(Event(now, Entity("node", topology.node), "tick"))
        inputs += _events(now + 1, [*paths, stranger], topology)
    return inputs


def _events(now: int, paths: list[Entity], topology: Topology) -> Iterator[Event]:
    turn = now // SECOND
    entity = paths[turn % len(paths)]
    yield Event(now, entity, "conformance.unheard_of", {"x": (1, 2.5, "y", True), "nothing": ""})
    yield Event(now, entity, "inquiry.answer", {"id": "somebody:1", "kind": "conformance", "ok": False})
    yield Event(now, Entity("link", f"l{turn % 3}", 7), "link.down" if turn % 2 else "link.up")
    yield Event(now, Entity("peer", "nobody"), "nexthop.gone", {"nexthop": 5})


def sealed(frame: Frame) -> Frame:
    """`frame`, whose arrays raise when somebody writes to them."""
    for array in (frame.counters, frame.gauges, frame.valid, *frame.histograms):
        array.flags.writeable = False
    return frame


def some_symptoms(topology: Topology) -> list[Symptom]:
    """Of known kinds and unknown ones, of known entities and unknown ones, with and without evidence."""
    entities = [path.entity for path in topology.paths()]
    entities += [peer.entity for peer in topology.peers.values()]
    entities += [Entity("path", "nobody/x9"), Entity("peer", "nobody"), Entity("node", topology.node)]
    found = []
    for at, entity in enumerate(entities):
        for kind in ("path_dead", "path_gray", "peer_gone", "conformance_ill"):
            now = (at + 2) * SECOND
            alive = tuple(path.entity.name for path in topology.paths() if path.entity != entity)
            for evidence in ({"alive": alive}, {}):
                found.append(Symptom(entity, kind, 1.0, now, now - SECOND, evidence=evidence))
            found.append(Symptom(entity, kind, 0.0, now + SECOND, now + SECOND, cleared=True))
    return found


def some_incidents(policy: str, entity: Entity) -> list[Incident]:
    """One that recovers and one that does not, state by state."""
    begun = Incident(1, entity, "path_dead", "detected", 1, 2)
    times = {"planned_ns": 3, "acted_ns": 4, "policy": policy}
    return [
        begun,
        Incident(1, entity, "path_dead", "acted", 1, 2, **times),  # type: ignore[arg-type]
        Incident(1, entity, "path_dead", "recovered", 1, 2, recovered_ns=5, **times),  # type: ignore[arg-type]
        Incident(2, entity, "conformance_ill", "unrecovered", 1, 2, **times),  # type: ignore[arg-type]
    ]
