"""Conformance suites: what every analyzer, policy and touchpoint keeps to. Run them on your own.

    from mapek.testing import check_analyzer

    def test_mine_conforms():
        check_analyzer(lambda: Mine({"limit": 3}))

Each raises an AssertionError that says what was broken. They need no pytest, but asserts: no `python -O`.
"""

from mapek.testing.analyzers import check_analyzer
from mapek.testing.inputs import some_inputs, some_topology
from mapek.testing.links import LinkMaker, VethLinks
from mapek.testing.policies import check_policy
from mapek.testing.sensors import (
    Crowd,
    check_detached,
    check_full,
    check_interface,
    check_sensor,
    check_unprivileged,
    check_without,
)
from mapek.testing.touchpoints import check_touchpoint

__all__ = [
    "check_analyzer",
    "check_policy",
    "check_touchpoint",
    "check_sensor",
    "check_interface",
    "check_detached",
    "check_unprivileged",
    "check_without",
    "check_full",
    "Crowd",
    "LinkMaker",
    "VethLinks",
    "some_inputs",
    "some_topology",
]
