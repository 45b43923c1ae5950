"""batman_adv while its dumps fail: it says so, counts it, and goes on. What batman-adv answers is made up here."""

from __future__ import annotations

import pytest

from mapek.errors import FeatureError, NetlinkError
from mapek.knowledge import Topology
from mapek.sensors import batman_adv_netlink
from mapek.sensors.batman_adv import BatmanAdv
from mapek.sensors.batman_adv_tables import Hardif, Mesh, Neighbour, Tables
from mapek.testing.around import Around, until

MESH = Mesh("bat0", "BATMAN_IV", "2022.3", "02:00:00:00:00:aa")
TABLES = [
    Tables(MESH, (Hardif("w0", "02:00:00:00:00:aa", True),), (), (Neighbour("02:00:00:00:00:01", "w0", 120),))
]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ValueError("not enough values to unpack\n(expected 1, got 0)"),
            "ValueError: not enough values to unpack (exp",
        ),
        (KeyError("attrs"), "KeyError: 'attrs'"),
        (FeatureError("read", "batman-adv", "it is not loaded", "modprobe batman-adv"), "it is not loaded"),
    ],
)
async def test_a_dump_that_fails_is_counted_and_not_the_last(error, said, monkeypatch: pytest.MonkeyPatch):
    answers = [TABLES, error, error, TABLES]

    def dump_tables() -> list[Tables]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(batman_adv_netlink, "dump_tables", dump_tables)
    around, sensor = Around(Topology("a")), BatmanAdv({})
    try:
        await sensor.open(around.surroundings())
        assert sensor.read() is not None  # and begins the next
        for failed in (1, 2):
            await until(lambda failed=failed: sensor.status().counts["failed_dumps"] == failed, 5, str)
            status = sensor.status()
            assert (status.up, status.attached) == (False, {})
            assert said in status.degraded[0]
            assert "\n" not in status.degraded[0]
            assert sensor.read() is None
        await until(lambda: sensor.status().up, 5, str)
        assert sensor.status().counts == {"dumps": 2, "failed_dumps": 2, "rows_left_out": 0}
        assert around.failures() == []
    finally:
        await sensor.close()
        await around.end()


async def test_a_first_dump_in_another_form_is_a_netlink_error(monkeypatch: pytest.MonkeyPatch):
    def dump_tables() -> list[Tables]:
        raise ValueError("too many values")

    monkeypatch.setattr(batman_adv_netlink, "dump_tables", dump_tables)
    around = Around(Topology("a"))
    try:
        with pytest.raises(NetlinkError, match="dump batadv: ValueError: too many values"):
            await BatmanAdv({}).open(around.surroundings())
    finally:
        await around.end()
