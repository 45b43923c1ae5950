"""The shared ring and what is judged from it: gaps, losses, path changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapek.simulations.child.ring import ARRIVED, SENT, RingWriter
from mapek.simulations.flow import Flow, longest_gap
from mapek.simulations.netns import Namespace
from mapek.simulations.shared_ring import ARRIVED_TYPE, SENT_TYPE, SharedRing
from mapek.simulations.topology import pair

MS = 1_000_000


@pytest.mark.parametrize(
    ("arrivals", "start", "end", "expected"),
    [
        ([], 0, 10, (0, 10, False)),
        ([5], 0, 10, (0, 5, True)),
        ([1, 2, 3], 0, 10, (3, 10, False)),
        ([1, 2, 8, 9], 0, 10, (2, 8, True)),
        ([1, 2, 8, 9], 2, 8, (2, 8, True)),
        ([1, 20], 0, 10, (1, 10, False)),
        ([-50, 4, 9], 3, 10, (4, 9, True)),
    ],
)
def test_longest_gap(arrivals, start, end, expected):
    offset = 100  # times are unsigned
    times = np.array([time + offset for time in arrivals], np.uint64)
    low, high, recovered = longest_gap(times, start + offset, end + offset)
    assert (low - offset, high - offset, recovered) == expected


@given(
    capacity=st.integers(1, 40),
    steps=st.lists(st.integers(0, 3), max_size=120),
    first=st.integers(-5, 130),
    size=st.integers(0, 130),
    since=st.integers(0, 200),
)
def test_ring_gives_what_is_still_there(capacity, steps, first, size, since):
    ring = SharedRing("test", SENT_TYPE, capacity)
    try:
        writer = RingWriter(ring.fd, SENT)
        times = list(np.cumsum(steps))
        for time in times:
            writer.append(int(time), 7, 0)
        assert ring.count == len(times)
        kept_from = max(0, len(times) - capacity)
        expected = times[max(first, kept_from, 0) : max(first + size, 0)]
        assert ring.records(first, first + size)["sent_ns"].tolist() == expected
        assert ring.since("sent_ns", since)["sent_ns"].tolist() == [
            t for t in times[kept_from:] if t >= since
        ]
    finally:
        ring.close()
        ring.close()


@pytest.fixture
def flow():
    """A flow that was never opened: its rings are written by the test instead of by processes."""
    a, b = pair().nodes
    flow = Flow((a, Namespace("a")), (b, Namespace("b")))
    yield flow
    flow.sent.close()
    flow.arrived.close()


def test_window(flow):
    sent, arrived = RingWriter(flow.sent.fd, SENT), RingWriter(flow.arrived.fd, ARRIVED)
    for number in range(100):
        time = (1000 + number) * MS
        sent.append(time, 2_500_000 if number == 70 else 10, 0)
        if not 30 <= number < 34 and number != 50:
            # Numbers 30-33 are lost, then the path changes.
            arrived.append(number, time, time + 20_000, 300 if number == 60 else 5, 2 if number < 34 else 3)
    window = flow.window(1000 * MS, 1100 * MS)
    assert window.outage_ms == pytest.approx(5.0)
    assert window.gap_ns == (1029 * MS + 20_000, 1034 * MS + 20_000)
    assert (window.recovered, window.sent, window.lost, window.changes) == (True, 100, 5, 1)
    assert window.lost_percent == pytest.approx(5.0)
    assert (window.sender_late_ms, window.reader_late_ms) == (2.5, 0.3)
    part = flow.window(1040 * MS, 1060 * MS)
    assert (part.sent, part.lost, part.changes) == (20, 1, 0)


def test_window_orders_by_number_and_ignores_duplicates(flow):
    sent, arrived = RingWriter(flow.sent.fd, SENT), RingWriter(flow.arrived.fd, ARRIVED)
    for number in range(6):
        sent.append((10 + number) * MS, 0, 0)
    for number, ifindex in ((0, 2), (1, 2), (3, 3), (2, 2), (2, 2), (4, 3), (5, 3)):
        arrived.append(number, (10 + number) * MS, 20 * MS + arrived.count, 0, ifindex)
    window = flow.window(10 * MS, 30 * MS)
    assert (window.sent, window.lost, window.changes) == (6, 0, 1)


def test_nothing_arrives(flow):
    RingWriter(flow.sent.fd, SENT).append(5 * MS, 0, 101)
    window = flow.window(0, 10 * MS)
    assert (window.outage_ms, window.recovered, window.sent, window.lost) == (10.0, False, 1, 1)
    assert len(flow.last_arrival()) == 0
    assert ARRIVED_TYPE.itemsize == ARRIVED.size
