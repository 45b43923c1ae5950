"""The life of an incident: its states, what ends it, and what is kept."""

import pytest

from mapek.incident import KEPT, Incidents
from mapek.model import Entity, Symptom

B = Entity("peer", "b")


@pytest.fixture
def told():
    return []


@pytest.fixture
def incidents(told):
    return Incidents(told.append)


def ill(kind="sick", entity=B, onset=5, detected=8):
    return Symptom(entity, kind, 1.0, detected, onset)


def test_every_stage_keeps_its_stamp(incidents, told):
    number = incidents.begin(ill()).id
    incidents.advance(number, "planned", 9, "p", "why")
    incidents.advance(number, "acted", 10)
    incidents.advance(number, "recovered", 12)
    (last,) = incidents.ended
    assert (last.onset_ns, last.detected_ns, last.planned_ns, last.acted_ns, last.recovered_ns) == (
        5,
        8,
        9,
        10,
        12,
    )
    assert (last.policy, last.reason, last.state) == ("p", "why", "recovered")
    assert [one.state for one in told] == ["detected", "planned", "acted", "recovered"]
    assert incidents.open == ()
    assert incidents.get(number) is None


@pytest.mark.parametrize("end", ["recovered", "unrecovered"])
def test_an_end_is_an_end(incidents, told, end):
    number = incidents.begin(ill()).id
    incidents.advance(number, end, 9)
    for state in ("planned", "acted", "recovered", "unrecovered"):
        incidents.advance(number, state, 10)
    incidents.clear(B, "sick", 11)
    assert [one.state for one in told] == ["detected", end]
    assert incidents.begin(ill()).id == number + 1


def test_clearing_concerns_its_own_kind_and_what_nobody_acts_upon(incidents):
    first, second = incidents.begin(ill()), incidents.begin(ill("worse"))
    third = incidents.begin(ill("worst"))
    incidents.advance(third.id, "planned", 9, "p")
    incidents.clear(B, "sick", 10)
    incidents.clear(B, "worst", 10)
    incidents.clear(Entity("peer", "c"), "worse", 10)
    assert [one.id for one in incidents.open] == [second.id, third.id]
    assert [(one.id, one.policy, one.recovered_ns) for one in incidents.ended] == [(first.id, "none", 10)]


def test_memory_is_bounded(incidents):
    for _ in range(KEPT + 5):
        incidents.advance(incidents.begin(ill()).id, "recovered", 9)
    assert len(incidents.ended) == KEPT
    assert incidents.ended[-1].id == KEPT + 5
