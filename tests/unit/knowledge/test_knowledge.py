"""Rates survive wraps and resets; the history is a contiguous view of the last N; bad frames are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapek.errors import PluginError
from mapek.knowledge import Knowledge, Topology
from mapek.model import Entity, Frame, Metric, Schema

SCHEMA = Schema("s", "link", counters=(Metric("packets_total"),), gauges=(Metric("load"),))
A, B, C = (Entity("link", name) for name in "abc")
SECOND = 1_000_000_000


def frame(time_ns, counters, gauges=None, entities=None, valid=None, schema=SCHEMA):
    entities = (A, B, C)[: len(counters)] if entities is None else entities
    n = len(entities)
    return Frame(
        time_ns,
        schema,
        entities,
        np.array(counters, np.uint64).reshape(n, 1),
        np.array([0.0] * n if gauges is None else gauges, np.float64).reshape(n, 1),
        np.array([True] * n if valid is None else valid),
    )


def knowledge(depth=8):
    return Knowledge(Topology("here"), depth=depth)


def rates_of(frames):
    k = knowledge()
    out = []
    for one in frames:
        k.take(one)
        out.append(k.rates["s"][:, 0].tolist())
    return out


@given(
    start=st.integers(0, 2**64 - 1),
    steps=st.lists(st.integers(0, 2**20), min_size=2, max_size=20),
    bits=st.sampled_from([32, 64]),
)
def test_a_steady_counter_has_its_true_rate_whatever_its_width(start, steps, bits):
    # Steps within a factor of eight of each other: what a wrap may imply.
    steps = [2**20 + step for step in steps]
    value, frames = start % 2**bits, []
    for second, step in enumerate([0, *steps]):
        value = (value + step) % 2**bits
        frames.append(frame(second * SECOND, [value]))
    found = [rate for (rate,) in rates_of(frames)]
    assert np.isnan(found[0])
    for at, (rate, step) in enumerate(zip(found[1:], steps, strict=True)):
        first_wraps = at == 0 and np.isnan(rate)  # no rate is known yet, so a wrap cannot be believed
        assert first_wraps or rate == step


@given(before=st.integers(1, 2**64 - 1), data=st.data())
def test_a_reset_is_never_a_spike(before, data):
    after = data.draw(st.integers(0, before - 1))
    found = rates_of([frame(0, [max(0, before - 10)]), frame(SECOND, [before]), frame(2 * SECOND, [after])])
    rate = found[2][0]
    assert np.isnan(rate) or 0 <= rate <= 80


def test_after_a_reset_the_next_reading_has_a_rate_again():
    assert rates_of([frame(s * SECOND, [v]) for s, v in enumerate([1000, 2000, 5, 105])])[3] == [100.0]


def test_an_unreadable_row_is_unknown_and_the_next_rate_spans_the_gap():
    found = rates_of(
        [
            frame(0, [0, 0]),
            frame(SECOND, [999, 10], valid=[False, True]),
            frame(2 * SECOND, [100, 20]),
        ]
    )
    assert np.isnan(found[1][0])
    assert found[1][1] == 10
    assert found[2] == [50.0, 10.0]


def test_rates_follow_an_entity_to_another_row():
    found = rates_of([frame(0, [10, 20]), frame(SECOND, [25, 17], entities=(B, A))])
    assert found[1] == [5.0, 7.0]


def test_the_same_time_twice_gives_no_rate():
    assert np.isnan(rates_of([frame(5, [1]), frame(5, [2])])[1][0])


def test_time_zero_is_a_time():
    assert rates_of([frame(0, [1]), frame(SECOND, [2])])[1] == [1.0]


@given(depth=st.integers(1, 9), count=st.integers(0, 30), last=st.none() | st.integers(0, 12))
def test_the_window_is_the_last_values_oldest_first(depth, count, last):
    k = knowledge(depth)
    for n in range(count):
        k.take(frame(n * SECOND, [3 * n, 0], gauges=[n, -n]))
    times, values = k.history.series("s", B, "load")
    kept = list(range(count))[-depth:]
    assert times.tolist() == [n * SECOND for n in kept]
    assert values.tolist() == [-n for n in kept]
    if ring := k.history.ring("s"):
        times, values = ring.window(last)
        expected = kept if last is None else kept[len(kept) - min(last, len(kept)) :]
        assert times.tolist() == [n * SECOND for n in expected]
        assert values[:, ring.slot(A), ring.column("load")].tolist() == expected
        assert all(rate in (3.0,) or np.isnan(rate) for rate in values[:, ring.slot(A), 0])


def test_an_absent_entity_has_nan_and_keeps_its_place():
    k = knowledge()
    k.take(frame(0, [1, 1], gauges=[1, 2]))
    k.take(frame(1, [1], gauges=[3], entities=(B,)))
    k.take(frame(2, [1, 1, 1], gauges=[4, 5, 6]))
    assert k.history.series("s", A, "load")[1].tolist() == pytest.approx([1, np.nan, 4], nan_ok=True)
    assert k.history.series("s", B, "load")[1].tolist() == [2, 3, 5]
    assert k.history.series("s", C, "load")[1].tolist() == pytest.approx([np.nan, np.nan, 6], nan_ok=True)


def test_the_history_does_not_grow_and_refuses_what_it_cannot_hold():
    k = knowledge(depth=512)
    crowd = tuple(Entity("link", str(n)) for n in range(5000))
    k.take(frame(0, list(range(5000)), entities=crowd))
    ring = k.history.ring("s")
    held = ring.window()[1].base.nbytes
    assert held <= 4 << 20
    assert ring.refused == 5000 - len(ring.entities()) > 0
    newcomers = tuple(Entity("link", f"n{n}") for n in range(10))
    k.take(frame(SECOND, list(range(10)), gauges=list(range(10)), entities=newcomers))
    assert ring.refused == 0
    assert k.history.series("s", newcomers[7], "load")[1].tolist() == pytest.approx([np.nan, 7], nan_ok=True)
    assert ring.window()[1].base.nbytes == held


def test_other_columns_begin_a_new_history():
    k = knowledge()
    k.take(frame(0, [1]))
    other = Schema("s", "link", counters=(Metric("bytes_total"),), gauges=(Metric("load"),))
    k.take(frame(1, [1], schema=other))
    assert len(k.history.ring("s")) == 1
    assert k.history.series("s", A, "packets_total")[1].size == 0


def test_other_columns_have_no_earlier_reading():
    """As many of them as before, but what stood there under another name is no reading of these."""
    k = knowledge()
    k.take(frame(0, [1]))
    other = Schema("s", "link", counters=(Metric("bytes_total"),), gauges=(Metric("load"),))
    k.take(frame(SECOND, [500], schema=other))
    assert np.isnan(k.rates["s"]).all()
    k.take(frame(2 * SECOND, [507], schema=other))
    assert k.rates["s"].tolist() == [[7.0]]


def bad(**changes):
    good = frame(0, [1])
    return Frame(**{name: getattr(good, name) for name in Frame.__dataclass_fields__} | changes)


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (bad(counters=np.zeros((2, 1), np.uint64)), r"counters are uint64\(2, 1\), not uint64\(1, 1\)"),
        (bad(counters=np.zeros((1, 1), np.int64)), "counters are int64"),
        (bad(gauges=np.zeros((1, 3))), "gauges"),
        (bad(valid=np.ones(4, bool)), "valid"),
        (bad(histograms=(np.zeros((1, 2), np.uint64),)), "1 histograms, 0 promised"),
    ],
)
def test_a_frame_that_breaks_its_schema_is_refused_by_name(frame, why):
    with pytest.raises(PluginError, match=f"take a frame of s: {why}"):
        knowledge().take(frame)


def test_importing_knowledge_does_not_import_sqlite():
    import os
    import subprocess
    import sys

    code = "import sys, mapek.knowledge; sys.exit('sqlite3' in sys.modules)"
    # measured by coverage, the child would import sqlite3 for that
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    subprocess.run([sys.executable, "-c", code], check=True, env=plain)
