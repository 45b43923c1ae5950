"""A loop's memory to look at, filled by hand: real frames, a real tally, real sockets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest

from mapek.contracts import Status
from mapek.model import Entity, Frame, Incident, Metric, Schema
from mapek.service import SensorView
from mapek.tally import Tally


@dataclass
class Sensor:
    status: Status = field(default_factory=lambda: Status(up=True))
    frame: Frame | None = None
    failure: str = ""


@dataclass
class View:
    sensors: Mapping[str, SensorView] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    trouble: str = ""


SCHEMA = Schema(
    "link_watch",
    "path",
    counters=(Metric("sent", "packets", "Probes sent."), Metric("received_bytes_total", "bytes")),
    gauges=(Metric("silence", "seconds", "Since the last answer."),),
    histograms=(Metric("round_trip", "seconds", "Round-trip time.", (0.001, 0.01)),),
)


@pytest.fixture
def frame() -> Frame:
    """Three paths, of which the last could not be read."""
    return Frame(
        1,
        SCHEMA,
        tuple(Entity("path", name) for name in ("b/l0", 'b/"l1"\n', "b/l2")),
        np.array([[2**63, 7], [3, 8], [4, 9]], np.uint64),
        np.array([[0.5], [1.5], [2.5]]),
        np.array([True, True, False]),
        (np.array([[5, 3, 1], [0, 0, 0], [9, 9, 9]], np.uint64),),
    )


@pytest.fixture
def view(frame: Frame) -> View:
    """A working loop with two sensors, an incident that is over and one that is not."""
    tally = Tally()
    tally.count("suspicions", {"kind": "silent"}, 3)
    tally.count("queue_drops", {"queue": "inputs"})
    tally.observe("tick_lateness_seconds", None, 0.00002)
    for state in ("detected", "planned", "acted", "recovered"):
        tally.incident(
            Incident(
                1,
                Entity("path", "b/l0"),
                "path_dead",
                state,
                10,
                1_000_010,
                1_100_010,
                1_300_010,
                2_300_010,
                "p",
            )
        )
    tally.incident(Incident(2, Entity("path", "b/l1"), "path_gray", "detected", 1, 2))
    sensors = {
        "link_watch": Sensor(
            Status(True, {"l0": "native", "l1": "generic"}, ("no bpf_timer",), {"ring_drops": 4}), frame
        ),
        "netlink": Sensor(),
    }
    return View(sensors, tally)
