"""Every value of the model comes back from its encoding, which is the only one; foreign JSON is refused."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapek.knowledge.encoding import decode, encode
from mapek.model import Applied, Entity, Event, Incident, Inquiry, Plan, Step, Suspicion, Symptom

times = st.integers(-(2**63), 2**63 - 1)
texts = st.text(st.characters())
entities = st.builds(
    Entity, st.sampled_from(["node", "peer", "link", "path", "service", "identity"]), texts, times
)
scalars = st.integers() | st.floats() | texts | st.booleans()
fields = st.dictionaries(texts, scalars | st.lists(scalars, max_size=4).map(tuple), max_size=4)
steps = st.recursive(
    st.builds(Step, texts, texts, fields),
    lambda undo: st.builds(Step, texts, texts, fields, undo),
    max_leaves=4,
)
inquiries = st.builds(Inquiry, texts, entities, texts, times, fields)
values = st.one_of(
    st.builds(Event, times, entities, texts, fields),
    inquiries,
    st.builds(Suspicion, times, entities, texts, st.booleans()),
    st.builds(Symptom, entities, texts, st.floats(), times, times, times, fields, st.booleans()),
    st.builds(
        Plan, texts, entities, st.lists(steps, max_size=3).map(tuple), st.none() | inquiries, times,
        st.lists(entities, max_size=3).map(tuple), texts, st.booleans(),
    ),
    st.builds(
        Incident, st.integers(), entities, texts,
        st.sampled_from(["detected", "planned", "acted", "recovered", "unrecovered"]),
        times, times, times, times, times, texts, texts,
    ),
    st.builds(Applied, times, st.booleans(), texts),
)  # fmt: skip


@given(values)
def test_round_trip(value):
    data = encode(value)
    again = decode(type(value), data)
    assert type(again) is type(value)
    assert encode(again) == data  # which tells 1 from 1.0 from true, and knows nan


@given(st.binary(max_size=200))
def test_noise_is_refused(data):
    with pytest.raises(ValueError, match=r"."):
        decode(Plan, data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)


@given(values, st.data())
def test_a_field_of_another_type_is_refused_or_means_what_it_says(value, data):
    plain = json.loads(encode(value))
    name = data.draw(st.sampled_from(sorted(plain)))
    plain[name] = data.draw(json_values)
    try:
        found = decode(type(value), json.dumps(plain).encode())
    except ValueError:
        return
    assert json.loads(encode(found)) == plain


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"[" * 100_000, "deep"),
        (b'{"a":NaN}', "NaN"),
        (b"{}", r"not Applied\(acked_ns, changed, detail\)"),
        (b'{"acked_ns":true,"changed":true,"detail":""}', "True is not a whole number"),
        (b'{"acked_ns":1,"changed":1,"detail":""}', "1 is not true or false"),
        (b'{"acked_ns":' + b"9" * 5000 + b',"changed":true,"detail":""}', "digits"),
        (b"\xff", "decode"),
    ],
)
def test_what_is_wrong_is_said(data, why):
    with pytest.raises(ValueError, match=why):
        decode(Applied, data)


def test_an_undo_of_an_undo_ends_somewhere():
    step = Step("t", "a")
    for _ in range(50):
        step = Step("t", "a", undo=step)
    with pytest.raises(ValueError, match="deeply"):
        decode(Plan, encode(Plan("p", Entity("node", "n"), (step,), None, 0)))


def test_numpy_scalars_mean_the_same():
    event = Event(
        np.int64(5), Entity("node", "n"), "k", {"a": np.float32(0.5), "b": (np.uint8(3),), "c": np.True_}
    )
    assert (
        encode(event)
        == b'{"entity":["node","n",0],"fields":{"a":0.5,"b":[3],"c":true},"kind":"k","time_ns":5}'
    )


def test_what_json_lacks_is_spelled_out():
    symptom = Symptom(Entity("node", "n"), "k", math.inf, 1, 1, evidence={"x": -math.inf, "y": math.nan})
    assert b'"evidence":{"x":{"float":"-inf"},"y":{"float":"nan"}}' in encode(symptom)


def test_a_foreign_value_is_refused():
    with pytest.raises(TypeError, match="set is not a value"):
        encode(Event(1, Entity("node", "n"), "k", {"x": {1}}))
