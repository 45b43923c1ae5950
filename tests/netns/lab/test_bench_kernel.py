"""The bench of the kernel side on this kernel, with small counts: which rows there are, and of what they are."""

from __future__ import annotations

import pytest

from mapek.simulations.bench import packets, syscalls, together
from mapek.simulations.bench.plan import Budget

pytestmark = pytest.mark.netns


async def test_every_program_with_a_test_run_has_a_row(monkeypatch):
    monkeypatch.setattr(packets, "REPEAT", 100)
    monkeypatch.setattr(packets, "TURNS", 2)
    monkeypatch.setattr(packets, "PROBES", 2)
    rows = {row.what: row for row in await packets.measure(Budget())}
    for name in (
        "xdp_counter",
        "link_watch, foreign packet",
        "mesh_filter, no prefixes",
        "mesh_filter, 1000 IPv6 prefixes",
        "mesh_filter, the same inside batman-adv",
        "mesh_filter, the same by tc",
        "mesh_filter, denied",
        "mesh_filter, limited",
        "batadv, foreign packet",
        "batadv, ELP",
        "empty_tc",
        "tc_classifier, in",
        "tc_classifier, out",
    ):
        assert rows[name].measured > 0
        assert rows[name].note.endswith("n = 2")


@pytest.mark.needs("cc", "btf")
async def test_the_tracepoints_themselves_and_both_filters_have_rows(monkeypatch):
    monkeypatch.setattr(syscalls, "ROUNDS", 1)
    rows = {row.what: row for row in await syscalls.measure(Budget())}
    assert rows["two empty programs: read, over bare"].measured is not None
    assert rows["two empty programs: getppid, over bare"].measured is not None
    assert rows["tp_btf: read of the watched process, over bare"].target == 130
    assert rows["tp_btf: read of another process than the agent, over bare"].target == 70
    assert rows["tp_btf: read of another process than those of a set, over bare"].target is None


async def test_the_default_set_is_timed_on_one_interface(monkeypatch):
    monkeypatch.setattr(together, "DEFAULT_READS_S", 0.5)
    row, warm = await together.default_reads()
    assert row.what == "all default maps of one interface read"
    assert row.target == 0.3
    assert row.measured > 0
    assert row.note.endswith("link_watch netlink xdp_counter, interface l0")
    assert warm.measured < row.measured
