"""What a process lets go of, and when: in processes of their own, with a real loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from mapek.bpf import capabilities
from mapek.clock import RealClock
from mapek.contracts import Touchpoint, Variant
from mapek.errors import AttachError
from mapek.knowledge import Knowledge, Topology
from mapek.loop import Loop
from mapek.service import privileges as module
from mapek.service.privileges import Privileges, for_files
from mapek.testing.child import become_nobody, in_child

pytestmark = pytest.mark.needs("root")
WAYS = (
    Variant("best", ("CAP_NET_RAW", "CAP_CHOWN", "btf"), keeps=("CAP_NET_RAW",)),
    Variant("other", ("CAP_KILL",)),
)


class One(Touchpoint):
    name = "one"
    period_ns = 0
    variants = WAYS

    def __init__(self, wanted: str = "auto", absent: bool = False) -> None:
        self.wanted_variant, self.absent = wanted, absent

    async def open(self, surroundings: object) -> None:
        if self.absent:
            raise AttachError("attach to", "l0", "it is not there")


class Two(One):
    name = "two"
    variants = ()


@pytest.mark.parametrize(
    ("wanted", "opened", "needs"),
    [
        ("auto", False, {"CAP_NET_RAW", "CAP_CHOWN", "CAP_KILL"}),
        ("auto", True, {"CAP_NET_RAW", "CAP_KILL"}),
        ("best", False, {"CAP_NET_RAW", "CAP_CHOWN"}),
        ("best", True, {"CAP_NET_RAW"}),
        ("other", True, {"CAP_KILL"}),
    ],
)
def test_what_a_touchpoint_names(wanted, opened, needs):
    assert One(wanted).capabilities(opened) == needs


def test_each_goes_as_soon_as_nobody_needs_it(monkeypatch):
    monkeypatch.setattr(module, "LOOK_NS", 20_000_000)

    async def life() -> None:
        clock, rights = RealClock(), Privileges()
        one, two = One("best"), Two()
        one.absent = True
        rights.before([one, two], ["CAP_SYS_NICE"])
        assert rights.held == {"CAP_NET_RAW", "CAP_CHOWN", "CAP_SYS_NICE"}
        assert rights.needed_by == {"one": {"CAP_NET_RAW", "CAP_CHOWN"}, "": {"CAP_SYS_NICE"}}
        async with Loop(Knowledge(Topology("a", (), ())), clock, [one, two]) as loop:
            rights.after(loop)
            # It is being tried again, and needs all of it for that.
            assert rights.held == {"CAP_NET_RAW", "CAP_CHOWN"}
            one.absent = False
            async with asyncio.timeout(10):
                while rights.held != {"CAP_NET_RAW"}:  # noqa: ASYNC110 - no event tells of it
                    await asyncio.sleep(0.01)
            assert loop.monitor.watched["one"].open
            assert "CAP_CHOWN" in rights.dropped
            assert rights.needed_by == {"one": {"CAP_NET_RAW"}}
            assert rights.strays() == {}
            rights.stop()
        clock.close()

    in_child(lambda: asyncio.run(life()), "privileges")


def test_a_thread_that_began_before_is_named(monkeypatch):
    monkeypatch.setattr(module, "LOOK_NS", 20_000_000)

    async def life() -> None:
        said: list[str] = []
        monkeypatch.setattr(module.log, "warning", lambda text, *words: said.append(text % words))
        go = threading.Event()
        early = threading.Thread(target=lambda: go.wait(20), name="early")
        clock, rights = RealClock(), Privileges()
        rights.before([One("best")])
        early.start()
        async with Loop(Knowledge(Topology("a", (), ())), clock, [One("best")]) as loop:
            rights.after(loop)
            async with asyncio.timeout(10):
                while not said:  # noqa: ASYNC110 - no event tells of it
                    await asyncio.sleep(0.01)
            assert said == [f"the thread {early.native_id} early still holds CAP_CHOWN"]
            assert list(rights.strays().values()) == [{"CAP_CHOWN"}]
            rights.stop()
        clock.close()
        go.set()
        early.join()

    in_child(lambda: asyncio.run(life()), "a stray thread")


def test_cap_sys_admin_stands_for_both_where_they_are_not_there():
    def work() -> None:
        class Old(One):
            variants = (Variant("only", ("CAP_BPF", "CAP_PERFMON")),)

        capabilities.hold_only(("CAP_SYS_ADMIN", "CAP_CHOWN"))
        rights = Privileges()
        rights.before([Old()])
        assert rights.held == {"CAP_SYS_ADMIN"}

    in_child(work, "CAP_SYS_ADMIN")


def test_root_among_the_files_of_another(tmp_path):
    import os

    assert for_files(None, tmp_path / "new" / "state") == set()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    assert for_files(tmp_path, theirs / "state") == {"CAP_DAC_OVERRIDE"}

    def work() -> None:
        become_nobody()
        assert for_files(theirs / "state", tmp_path) == set()

    in_child(work, "for_files as nobody")
