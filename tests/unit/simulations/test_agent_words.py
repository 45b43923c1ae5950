"""What the lab writes for agents, and what it takes from them: anything may come."""

from __future__ import annotations

import json
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapek.simulations.agent import AgentEvent, Scalar, configuration, key_name, parse_event
from mapek.simulations.lab import Lab, Node
from mapek.simulations.netns import Namespace
from mapek.simulations.topology import line, pair
from mapek.simulations.trial import stages_of


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"type": "ready", "time_ns": 5}\n', AgentEvent("a", "ready", 5, {})),
        (
            b'{"type": "switch", "time_ns": 7, "peer": "b", "from": "l0", "to": "l1", "reason": null}',
            AgentEvent("a", "switch", 7, {"peer": "b", "from": "l0", "to": "l1", "reason": None}),
        ),
        (b'{"type": "x", "time_ns": 7, "deep": [1], "n": 2.5}', AgentEvent("a", "x", 7, {"n": 2.5})),
        (b"", None),
        (b"Traceback (most recent call last):", None),
        (b"\xff\xfe", None),
        (b"[1, 2]", None),
        (b'{"type": 3, "time_ns": 5}', None),
        (b'{"type": "ready", "time_ns": "5"}', None),
        (b'{"type": "ready"}', None),
        (b"[" * 100_000, None),
    ],
)
def test_parse_event(line, expected):
    assert parse_event("a", line) == expected


@given(
    st.binary(max_size=200)
    | st.recursive(st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_parse_event_never_raises(line):
    parse_event("a", line)


def test_number():
    event = AgentEvent("a", "incident", 1, {"onset_ns": 5, "up": True, "policy": "x"})
    assert [event.number(name) for name in ("onset_ns", "up", "policy", "gone")] == [5, None, None, None]


def test_configuration_of_a_pair():
    lab = Lab(pair(2))
    a, b = lab.topology.nodes
    read = tomllib.loads(configuration(lab, Node(a, Namespace("a")), "fast"))
    assert read["node"] == {
        "name": "a",
        "addresses": ["10.255.0.1", "fd6d:6170::1"],
        "state_dir": "/run/mapek",
    }
    assert read["loop"] == {"profile": "fast"}
    assert read["service"] == {"listen": ""}
    (peer,) = read["peer"]
    assert (peer["name"], peer["prefixes"]) == ("b", ["10.255.0.2/32", "fd6d:6170::2/128"])
    assert peer["key_file"].endswith("/a-b.key")
    assert [path["interface"] for path in peer["path"]] == ["l0", "l1"]
    assert [path["preference"] for path in peer["path"]] == [0, 1]
    back = tomllib.loads(configuration(lab, Node(b, Namespace("b")), "default"))
    (other,) = back["peer"]
    assert other["key_file"] == peer["key_file"]
    for mine, theirs in zip(peer["path"], other["path"], strict=True):
        assert (mine["address"], mine["local"]) == (theirs["local"], theirs["address"])


def test_configuration_in_a_line_names_each_neighbour():
    lab = Lab(line(3))
    read = tomllib.loads(configuration(lab, Node(lab.topology.nodes[1], Namespace("b")), "fast"))
    assert [(peer["name"], [p["interface"] for p in peer["path"]]) for peer in read["peer"]] == [
        ("a", ["l0"]),
        ("c", ["l1"]),
    ]
    assert key_name("b", "a") == key_name("a", "b") == "a-b.key"


def test_stages():
    times: dict[str, Scalar] = {
        "onset_ns": 1_000_000,
        "detected_ns": 3_000_000,
        "planned_ns": 3_100_000,
        "acted_ns": 3_300_000,
    }
    whole = times | {"recovered_ns": 3_700_000, "state": "recovered"}
    events = [
        AgentEvent("a", "incident", 1, whole | {"state": "acted"}),
        AgentEvent("a", "incident", 2, times | {"state": "recovered"}),
        AgentEvent("b", "incident", 3, whole),
        AgentEvent("b", "suspicion", 4, {}),
    ]
    (stage,) = stages_of(events)
    assert stage.node == "b"
    assert (stage.detect, stage.plan, stage.act, stage.verify) == pytest.approx((2.0, 0.1, 0.2, 0.4))
