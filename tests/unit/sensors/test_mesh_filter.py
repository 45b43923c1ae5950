"""mesh_filter without a kernel: its structs against the object, its rows, its steps, and the reference decoder."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapek.bpf import ObjectSpec, object_path
from mapek.errors import ConfigError
from mapek.model import Step
from mapek.sensors.identities import ALLOW, DENY, Verdict
from mapek.sensors.mesh_filter import MeshFilter, step
from mapek.sensors.mesh_filter_rows import Rows
from mapek.sensors.mesh_filter_tables import COUNT, COUNTS, NUMBER, POLICY, SHARED, TALLIES, pack
from mapek.sensors.mesh_filter_undo import DEEPEST, Undo
from tests.support.decode_mesh import decode


def test_the_structs_are_the_object_s():
    spec = ObjectSpec.read(object_path("mesh_filter"))
    assert set(SHARED) < set(spec.maps)
    assert spec.maps["policies"].value_size == POLICY.size
    assert spec.maps["counts"].value_size == COUNT.size == 8 * len(COUNTS)
    assert spec.maps["tallies"].max_entries == len(TALLIES)
    assert {spec.maps[name].value_size for name in ("prefixes4", "prefixes6", "macs", "settings")} == {
        NUMBER.size
    }
    assert (spec.maps["prefixes4"].key_size, spec.maps["prefixes6"].key_size) == (8, 20)
    layout = {type_.name: [m.name for m in type_.members] for type_ in spec.btf.types if type_.members}
    assert layout["policy"] == ["lock", "verdict", "interval_ns", "burst_ns", "credit_ns", "stamp_ns"]
    assert layout["count"] == list(COUNTS)


def test_policies():
    assert POLICY.unpack(pack(DENY)) == (0, 1, 0, 0, 0, 0)
    assert POLICY.unpack(pack(Verdict("limit", 1000, 50))) == (0, 2, 10**6, 5 * 10**7, 5 * 10**7, 0)


def test_a_step_carries_its_undo():
    assert step("limit", "spiffe://a/b", rate=5) == Step(
        "mesh_filter",
        "limit",
        {"identity": "spiffe://a/b", "rate": 5},
        Step("mesh_filter", "restore", {"identity": "spiffe://a/b", "action": "limit", "rate": 5}),
    )


ACTIONS = {
    "Q": pack(DENY),
    "R": pack(ALLOW),
    "L": pack(Verdict("limit", 5, 1)),
    "M": pack(Verdict("limit", 6, 1)),
}


@pytest.mark.parametrize(
    ("order", "verdicts"),
    [
        ("Q-Q", "QR"),
        ("QL-L-Q", "QLQR"),
        ("QL-Q-L", "QLLR"),
        ("QLM-L-M-Q", "QLMMQR"),
        ("QLM-Q-L-M", "QLMMMR"),
        ("QR-R-Q", "QRQR"),
        ("QR-Q-R", "QRRR"),
        ("LM-L-M", "LMMR"),
        ("QQ-Q-Q", "QQRR"),
        ("QLQ-Q-L", "QLQLR"),
        ("QLQ-L-Q", "QLQQR"),
        ("-Q", "R"),
        ("Q!-Q", "QMM"),  # somebody else set it meanwhile
        ("Q!L-Q-L", "QMLLM"),
        ("Q!L-L-Q", "QMLMM"),
    ],
)
def test_each_takes_back_its_own(order, verdicts):
    """Letters act, "-" takes back the next one, "!" is a verdict M that somebody else sets; what is so after each."""
    undo, now, shown, steps = Undo(), ACTIONS["R"], "", iter(order)
    names = {policy: name for name, policy in ACTIONS.items()}
    for letter in steps:
        if letter == "!":
            now = ACTIONS["M"]
        elif letter == "-":
            meant = ACTIONS[next(steps)]
            if (wanted := undo.back(1, meant, now)) is not None:
                now = wanted
            undo.forget(1, meant)
        elif now != ACTIONS[letter]:
            undo.done(1, now, ACTIONS[letter])
            now = ACTIONS[letter]
        shown += names[now]
    assert shown == verdicts


def test_what_is_remembered_for_undoing_is_bounded():
    undo, before = Undo(), pack(ALLOW)
    for rate in range(1, 1000):
        after = pack(Verdict("limit", rate, 1))
        undo.done(1, before, after)
        before = after
    assert undo.back(1, before, before) == pack(Verdict("limit", 998, 1))
    assert len(undo._changes[1]) == DEEPEST


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"mode": "offload"}, "mode"),
        ({"interfaces": "l0"}, "interfaces"),
        ({"unknown": "limit"}, "unknown"),
        ({"prefer": "ip"}, "prefer"),
        ({"rows": 0}, "rows"),
        ({"max_identities": 0}, "max_identities"),
        ({"max_addresses": 10**7}, "max_addresses"),
        ({"spare_probes": 862}, "spare_probes"),
        ({"observe": 1}, "observe"),
        ({"identities": 5}, "identities"),
    ],
)
def test_wrong_options(options, word):
    with pytest.raises(ConfigError, match=word):
        MeshFilter(options)


def numbered(*rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(numbers, counts) as the kernel gives them: identity i + 1 has rows[i] packets."""
    sums = np.zeros((len(rows), 4), np.uint64)
    sums[:, 0] = rows
    return np.arange(1, len(rows) + 1, dtype=np.uint32), sums


def test_the_busiest_get_rows_and_keep_them():
    rows = Rows(2)
    own, values = rows.take(*numbered(5, 0, 9, 7))
    assert own == [3, 4]
    assert values[:, 0].tolist() == [9, 7, 5]
    own, values = rows.take(*numbered(500, 3, 10, 7))
    assert own == [3, 4]
    assert values[:, 0].tolist() == [10, 7, 503]


def test_what_the_rest_had_stays_there():
    rows = Rows(2)
    assert rows.take(*numbered(0, 4))[1][:, 0].tolist() == [4, 0]
    rows = Rows(1)
    rows.take(*numbered(3, 4))
    rows.drop(2, numbered(3, 6)[1][1])
    own, values = rows.take(np.array([1], np.uint32), numbered(10)[1])
    assert own == [1]
    assert values[:, 0].tolist() == [7, 3]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 4), st.lists(st.lists(st.integers(0, 50), min_size=6, max_size=6), max_size=12), st.data()
)
def test_no_counter_goes_backwards_and_none_is_lost(limit, steps, data):
    """However the traffic goes and whoever is dropped: rows only grow, and with the dropped ones' they are all."""
    rows, totals, live = Rows(limit), np.zeros(6, np.uint64), set(range(6))
    seen: dict[int, int] = {}
    rest = dropped = 0
    for added in steps:
        totals += np.array([n if i in live else 0 for i, n in enumerate(added)], np.uint64)
        order = data.draw(st.permutations(sorted(live)))
        sums = np.zeros((len(order), 4), np.uint64)
        sums[:, 0] = totals[order]
        own, values = rows.take(np.array(order, np.uint32), sums)
        assert len(own) <= limit
        for number, value in zip(own, values[:-1, 0].tolist(), strict=True):
            assert value >= seen.get(number, 0)
            seen[number] = value
        assert set(seen) & live <= set(own), "who has a row keeps it"
        assert values[-1, 0] >= rest
        rest = int(values[-1, 0])
        assert values[:, 0].sum() + dropped == totals.sum()
        if live and data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(sorted(live)))
            live.discard(gone)
            last = np.zeros(4, np.uint64)
            last[0] = totals[gone]
            rows.drop(gone, last)
            dropped += seen.pop(gone, 0)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_the_reference_takes_any_bytes(frame: bytes):
    found = decode(frame)
    assert (found.form in ("control", "undecoded")) == (found.mac is None)
