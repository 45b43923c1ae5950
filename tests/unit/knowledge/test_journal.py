"""The journal keeps what it was told across crashes and boots, and refuses what it cannot keep."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mapek.errors import PermanentError
from mapek.knowledge.encoding import decode
from mapek.knowledge.journal import OpenPlan, boot_id, open_journal
from mapek.model import Entity, Incident, Plan, Step

PATH = Entity("path", "b/wlan0")
PLAN = Plan("p", PATH, (Step("netlink", "move", {"to": "b/wlan1"}),), None, 5)
FILE = "journal.sqlite"


def rows(state_dir, columns="kind, plan_id, time_ns"):
    with sqlite3.connect(state_dir / FILE) as database:
        found = database.execute(f"SELECT {columns} FROM entries ORDER BY id").fetchall()
    database.close()
    return found


async def crash(journal):
    """What SIGKILL leaves: everything written so far, no word of stopping."""
    await journal.flush()
    await journal._writer.close()
    journal._open = False


async def test_a_run_is_kept_in_order_and_leaves_a_clean_stop(tmp_path):
    journal = await open_journal(tmp_path, "boot", time_ns=1)
    assert journal.found.clean
    journal.intent("1", PLAN, 2)
    journal.incident(Incident(1, PATH, "path_dead", "planned", 1, 2), 3)
    journal.result("1", True, time_ns=4)
    await journal.flush()
    assert rows(tmp_path) == [("start", "", 1), ("intent", "1", 2), ("incident", "", 3), ("result", "1", 4)]
    await journal.close(5)
    assert rows(tmp_path)[-1] == ("stop", "", 5)
    ((body,),) = [row for row in rows(tmp_path, "body") if b"steps" in row[0]]
    assert decode(Plan, body) == PLAN
    again = await open_journal(tmp_path, "boot")
    assert (again.found.clean, again.found.open, again.found.voided) == (True, (), 0)
    await again.close()


async def test_what_its_thread_does_first(tmp_path):
    state, seen = tmp_path / "state", []
    journal = await open_journal(
        state, "boot", begin=lambda: seen.append((threading.get_ident(), state.exists()))
    )
    await journal.close()
    ((thread, began),) = seen
    assert thread != threading.get_ident()
    assert not began

    def fail():
        raise PermanentError("give up", "privileges", "it is refused")

    with pytest.raises(PermanentError, match="it is refused"):
        await open_journal(tmp_path / "other", "boot", begin=fail)


async def test_an_intent_of_this_boot_stays_open_until_it_is_reconciled(tmp_path):
    first = await open_journal(tmp_path, "boot")
    first.intent("1", PLAN, 7)
    first.intent("2", PLAN)
    first.result("2", False, "refused")
    await crash(first)
    for _ in range(2):  # a second crash before anybody looked must not lose it
        second = await open_journal(tmp_path, "boot")
        assert not second.found.clean
        assert second.found.open == (OpenPlan(1, "1", PLAN, 7),)
        second.intent("1", PLAN)  # ids begin anew in each run
        second.result("1", True)
        await crash(second)
    third = await open_journal(tmp_path, "boot")
    third.reconciled(third.found.open[0], True, "the route was there")
    await third.close()
    fourth = await open_journal(tmp_path, "boot")
    assert (fourth.found.clean, fourth.found.open) == (True, ())
    await fourth.close()


async def test_an_intent_of_another_boot_is_void_once_and_for_all(tmp_path):
    first = await open_journal(tmp_path, "boot")
    first.intent("1", PLAN)
    await crash(first)
    second = await open_journal(tmp_path, "another")
    assert (second.found.clean, second.found.open, second.found.voided) == (False, (), 1)
    await second.close()
    for boot in ("another", "boot"):
        later = await open_journal(tmp_path, boot)
        assert (later.found.clean, later.found.open, later.found.voided) == (True, (), 0)
        await later.close()


async def test_a_killed_process_left_what_it_flushed(tmp_path):
    code = f"""if True:
        import asyncio, os, pathlib, signal
        from mapek.knowledge.journal import open_journal
        from mapek.model import Entity, Plan
        async def main():
            journal = await open_journal(pathlib.Path({str(tmp_path)!r}), "boot")
            journal.intent("1", Plan("p", Entity("peer", "b"), (), None, 0))
            await journal.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        asyncio.run(main())"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    journal = await open_journal(tmp_path, "boot")
    assert not journal.found.clean
    assert [one.plan_id for one in journal.found.open] == ["1"]
    await journal.close()


async def test_two_agents_cannot_share_a_state_directory(tmp_path):
    journal = await open_journal(tmp_path, "boot")
    with pytest.raises(PermanentError, match=rf"lock state .*pid {os.getpid()} uses it; stop"):
        await open_journal(tmp_path, "boot")
    await journal.close()
    await (await open_journal(tmp_path, "boot")).close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"nonsense" * 1000,
        lambda data: data[:5000],
        lambda data: data[:4096] + bytes(len(data) - 4096),
    ],
    ids=["foreign", "truncated", "blanked"],
)
async def test_a_damaged_journal_is_moved_aside_and_begun_anew(tmp_path, damage):
    journal = await open_journal(tmp_path, "boot")
    for n in range(200):
        journal.intent(str(n), PLAN)
    await journal.close()
    file = tmp_path / FILE
    file.write_bytes(damage(file.read_bytes()))
    journal = await open_journal(tmp_path, "boot")
    (note,) = journal.found.notes
    assert "is damaged" in note
    assert "\n" not in note
    assert (tmp_path / "journal.damaged").exists()
    journal.result("1", True)
    await journal.close()
    assert [row[0] for row in rows(tmp_path)] == ["start", "result", "stop"]


async def test_an_entry_that_is_no_plan_is_void_and_said(tmp_path):
    journal = await open_journal(tmp_path, "boot")
    journal.intent("1", PLAN)
    await crash(journal)
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("UPDATE entries SET body = ? WHERE kind = 'intent'", (b'{"steps":[]}',))
    database.close()
    journal = await open_journal(tmp_path, "boot")
    assert journal.found.open == ()
    assert "is not a plan that this mapek knows" in journal.found.notes[0]
    await journal.close()
    journal = await open_journal(tmp_path, "boot")
    assert journal.found.notes == ()
    await journal.close()


async def test_a_newer_journal_is_left_alone(tmp_path):
    await (await open_journal(tmp_path, "boot")).close()
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(PermanentError, match="it has version 99"):
        await open_journal(tmp_path, "boot")
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize("where", ["/sys/kernel", "/proc/mapek", "/dev/null", "/dev/null/mapek"])
async def test_where_nothing_can_be_written_one_line_says_so(where):
    with pytest.raises(PermanentError, match=f"open journal {where}.*set another state_dir") as caught:
        await open_journal(Path(where), "boot")
    assert "\n" not in str(caught.value)


async def test_old_rows_go_and_open_intents_stay(tmp_path):
    journal = await open_journal(tmp_path, "boot", rows=100)
    journal.intent("open", PLAN)
    for n in range(1000):
        journal.intent(str(n), PLAN)
        journal.result(str(n), True)
        if n % 50 == 0:
            await journal.flush()
    await crash(journal)
    assert len(rows(tmp_path)) <= 230
    journal = await open_journal(tmp_path, "boot")
    assert [one.plan_id for one in journal.found.open] == ["open"]
    await journal.close()


async def test_a_full_file_loses_its_oldest_half_rather_than_the_newest_entry(tmp_path):
    journal = await open_journal(tmp_path, "boot", rows=10**9, megabytes=1)
    for n in range(3000):
        journal.result(str(n), True, "x" * 1000)
        if n % 500 == 0:
            await journal.flush()
    await journal.close()
    assert journal.dropped == 0
    assert (tmp_path / FILE).stat().st_size <= 1 << 20
    assert rows(tmp_path)[-2][1] == "2999"


async def test_a_refusing_disk_is_said_once_and_healing_goes_on(tmp_path, caplog):
    journal = await open_journal(tmp_path, "boot")
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("DROP TABLE entries")
    database.close()
    for n in range(3):
        journal.result(str(n), True)
        await journal.flush()
    assert journal.dropped == 3
    assert "no such table" in journal.trouble
    assert len(caplog.records) == 1
    await journal.close()


async def test_an_odd_value_costs_only_itself(tmp_path):
    journal = await open_journal(tmp_path, "boot")
    journal.intent("odd", Plan("p", PATH, (Step("t", "a", {"x": object()}),), None, 0))
    journal.result("good", True)
    await journal.close()
    assert journal.dropped == 0
    assert [row[0] for row in rows(tmp_path, "plan_id")] == ["", "odd", "good", ""]


async def test_a_writer_that_falls_behind_drops_and_counts(tmp_path):
    journal = await open_journal(tmp_path, "boot")
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("BEGIN IMMEDIATE")  # holds the writer up for its second of patience
        for n in range(10_000):
            journal.result(str(n), True)
        await asyncio.sleep(0)  # entries are handed over when the callback is done
    database.close()
    assert 0 < journal.dropped < 10_000
    await journal.close()


async def test_close_comes_twice_and_cancelled(tmp_path):
    journal = await open_journal(tmp_path, "boot")
    await journal.close()
    await journal.close()
    journal.result("late", True)
    await journal.flush()
    opening = asyncio.ensure_future(open_journal(tmp_path, "boot"))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await (await open_journal(tmp_path, "boot")).close()


async def test_without_a_state_directory_it_is_a_list_in_memory():
    journal = await open_journal(None, "boot")
    for n in range(1000):
        journal.result(str(n), True)
    await journal.flush()
    assert journal.recent[-1].plan_id == "999"
    assert len(journal.recent) == 256
    await journal.close()


def test_the_boot_id_is_the_kernels():
    assert boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
