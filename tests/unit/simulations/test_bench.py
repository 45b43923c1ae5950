"""The bench's plan, its verdicts and its files; the measurements that need no root."""

from __future__ import annotations

import json

import pytest

from mapek.errors import ConfigError
from mapek.simulations.bench import plan
from mapek.simulations.bench.files import measured_file, summary
from mapek.simulations.bench.judge import campaign_rows
from mapek.simulations.bench.latencies import measure as measure_latencies
from mapek.simulations.bench.native import compile_c
from mapek.simulations.bench.plan import Budget
from mapek.simulations.bench.run import Done, run_bench
from mapek.simulations.bench.startup_child import Blocks, who
from mapek.simulations.bench.subjects import frame
from mapek.simulations.bench.targets import Row, number, rows_table
from mapek.simulations.bench.virtual_hour import run_virtual
from mapek.simulations.gauge import Gauge
from mapek.simulations.report import write_json
from tests.unit.simulations.results import campaign


@pytest.mark.parametrize(
    ("measured", "target", "verdict"),
    [(3.0, 3.0, "met"), (3.01, 3.0, "missed"), (9.0, None, ""), (None, 1.0, "not measured"), (0, 0, "met")],
)
def test_verdicts(measured, target, verdict):
    assert Row("x", measured, "ms", target).verdict == verdict


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "-"), (0.057, "0.057"), (3.0, "3"), (2.346, "2.35"), (1234.5, "1234")]
)
def test_numbers_as_people_read_them(value, shown):
    assert number(value) == shown


def test_table_has_target_and_measured_side_by_side():
    text = rows_table(
        "part", [Row("fast thing", 2.0, "ms", 3.0, "n = 7"), Row("other", None, "x", 1.0, "no cc")]
    )
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["part", "measured", "at", "most"]
    assert lines[1] == ["fast", "thing", "2", "ms", "3", "ms", "met", "n", "=", "7"]
    assert lines[2][-4:] == ["not", "measured", "no", "cc"]


def test_campaign_is_held_against_its_profile():
    rows = {row.what: row for row in campaign_rows(campaign(), "fast")}
    assert rows["drop_both: outage p50"].verdict == "met"
    assert rows["drop_both: outage p95"].verdict == "met"  # 3.9 of 4
    assert rows["loss_30_both: not healed"].measured == 1  # the one that could not be judged
    assert rows["loss_30_both: traffic lost p95"].verdict == "missed"
    assert rows["8 s without fault: failovers"].verdict == "met"
    assert rows["8 s without fault beside hogs: failovers"].verdict == "missed"
    assert rows["8 s without fault: CPU"].verdict == ""  # the fast profile's is only told
    default = {row.what: row for row in campaign_rows(campaign(), "default")}
    assert default["8 s without fault: CPU"].verdict == "met"
    assert {row.verdict for row in campaign_rows(campaign("BIRD"), None)} == {""}


def test_the_whole_bench_takes_less_than_an_hour():
    assert plan.planned_s() <= 55 * 60
    known = plan.sections()
    assert set(plan.MEASURES).isdisjoint(known)
    for profile in plan.PROFILES:
        assert min(series.trials for series in known[f"gray-{profile}"].series) >= 7
        assert {series.fault.hold_s for series in known[f"gray-{profile}"].series} == {10.0}
        assert [spell.seconds for spell in known[f"quiet-{profile}"].spells] == [120, 120, 60]
        assert known[f"hogs-{profile}"].series[0].trials == 30


@pytest.mark.parametrize("name", plan.MEASURES)
def test_every_measure_is_there(name):
    assert callable(plan.measure(name))


def test_summary_counts_verdicts(tmp_path):
    rows = [Row("a", 1.0, "", 2.0), Row("b", 3.0, "", 2.0), Row("c", None, "", 2.0), Row("d", 5.0)]
    write_json(tmp_path / "maps.json", measured_file("maps", rows, 1.0))
    found = json.loads(json.dumps(summary(tmp_path, ["maps", "packets"])))
    assert found["targets"] == {"met": 1, "missed": 1, "not measured": 1}
    assert [row["verdict"] for row in found["sections"]["maps"]] == ["met", "missed", "not measured", ""]


async def test_latencies_come_from_the_silence_sections(tmp_path):
    spans = {"suspicion_to_verdict": [0.4] * 9 + [0.7], "verdict_to_acknowledged": [0.1] * 10}
    write_json(tmp_path / "silence-fast.json", {"samples_ms": spans})
    rows = {row.what: row for row in await measure_latencies(Budget(folder=tmp_path))}
    assert rows["fast: suspicion to verdict p99"].verdict == "missed"
    assert rows["fast: verdict's evidence to acknowledgement p50"].measured == 0.1
    absent = rows["default: suspicion to verdict p99"]
    assert (absent.verdict, absent.note) == ("not measured", "run silence-default first")


async def test_a_section_alone_writes_its_file_and_the_joined_ones(tmp_path, capsys):
    done = await run_bench(tmp_path, ["latencies"])
    assert done.complete
    assert json.loads((tmp_path / "report.json").read_text()) == {"profiles": [], "peers": []}
    assert json.loads((tmp_path / "summary.json").read_text())["targets"]["not measured"] == 8
    assert "not measured: latencies: fast: suspicion to verdict p99" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ConfigError("measure", "maps", "it cannot be", "do not"), "measure maps: it cannot be"),
        (FileNotFoundError(2, "No such file"), "[Errno 2] No such file"),
        (TimeoutError(), "TimeoutError"),
    ],
)
async def test_a_section_that_fails_is_told_and_the_next_one_runs(tmp_path, monkeypatch, capsys, error, why):
    def broken(name):
        async def fails(budget):
            raise error

        return fails if name == "maps" else measure_latencies

    monkeypatch.setattr("mapek.simulations.bench.run.measure", broken)
    done = await run_bench(tmp_path, ["maps", "latencies"])
    assert (list(done.failed), list(done.rows), done.complete) == (["maps"], ["latencies"], False)
    assert f"failed: maps: {why}" in capsys.readouterr().out
    assert not (tmp_path / "maps.json").exists()


def test_nothing_done_is_complete():
    assert Done().complete


async def test_a_compiler_that_is_missing_is_named(tmp_path, monkeypatch):
    from mapek.errors import FeatureError

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FeatureError, match="there is no C compiler; apt-get install gcc libbpf-dev"):
        await compile_c("map_reads", tmp_path, "libbpf")


@pytest.mark.needs("cc")
async def test_a_program_is_compiled_asked_and_its_last_words_told(tmp_path):
    from mapek.errors import PermanentError

    program = await compile_c("syscall_loop", tmp_path)
    async with Gauge([program]) as loop:
        for which in (0, 1):
            took = await loop.ask(which, 3, 1000)
            assert len(took) == 3
            assert min(took) > 1000  # picoseconds: no system call takes less than a nanosecond
        with pytest.raises(PermanentError, match="it ended"):
            await loop.ask("nonsense")


async def test_a_part_of_the_bench_that_fails_is_told_with_its_last_words():
    from mapek.errors import PermanentError
    from mapek.simulations.bench.child import measured

    with pytest.raises(PermanentError, match=r"measure the hour: .*not enough values to unpack"):
        await measured("virtual_hour", what="the hour")


def test_numbers_of_a_part_are_numbers():
    from mapek.errors import PermanentError
    from mapek.simulations.bench.child import number as number_of

    assert number_of({"took": 3}, "took") == 3.0
    for record in ({}, {"took": True}, {"took": "3"}):
        with pytest.raises(PermanentError, match="read took of a bench part"):
            number_of(record, "took")


async def test_a_blocked_loop_is_felt_by_the_ticker_even_when_no_callback_is_long():
    import asyncio
    import time

    from mapek.simulations.bench.startup_child import Ticker

    ticker = Ticker()
    await asyncio.sleep(0.01)
    ticker.reset()
    time.sleep(0.03)
    await asyncio.sleep(0.01)
    assert ticker.longest_ns() >= 30e6
    ticker.close()


@pytest.mark.parametrize(
    ("line", "found"),
    [(b"\n", {}), (b"[1]", {}), (b"{", {}), (b'{"type": "map"}', {"type": "map"}), (b"\xff", {})],
)
def test_what_bpftrace_writes_between_its_records_is_passed_over(line, found):
    from mapek.simulations.bench.bpftrace import record

    assert record(line) == found


def test_a_histogram_of_bpftrace_is_the_sum_of_its_buckets():
    from mapek.simulations.bench.bpftrace import summed

    assert summed([{"max": 1, "count": 3}, {"min": 2, "max": 3, "count": 4}]) == 7
    assert summed({"2": 5, "6": 1}) == 6
    assert summed(9) == 9


@pytest.mark.parametrize(("version", "length"), [(4, 14 + 20 + 8 + 5), (6, 14 + 40 + 8 + 5)])
def test_frames(version, length):
    from ipaddress import ip_address

    ends = ("10.0.0.1", "10.0.0.2") if version == 4 else ("fe80::1", "fe80::2")
    made = frame(*map(ip_address, ends), 862, 5000, b"hello")
    assert len(made) == length
    assert made[14] >> 4 == version
    assert made.endswith(b"\x03\x5e\x13\x88\x00\x0d\x00\x00hello")


async def test_a_virtual_part_counts_what_the_loop_did():
    found = await run_virtual(1.0, 5.0, 3)
    assert found.seconds == 5.0
    assert found.switches == 0
    assert found.inquiries > found.suspicions > 0
    assert await run_virtual(1.0, 5.0, 3) == type(found)(
        **{**vars_of(found), "wall_s": pytest.approx(0, abs=60)}
    )


def vars_of(found):
    return {name: getattr(found, name) for name in found.__slots__}


async def test_the_longest_callback_is_found(monkeypatch):
    import asyncio
    import time

    monkeypatch.setattr(asyncio.Handle, "_run", asyncio.Handle._run)
    blocks = Blocks()

    def heavy():
        end = time.perf_counter() + 0.03
        while time.perf_counter() < end:
            pass

    asyncio.get_running_loop().call_soon(heavy)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert blocks.longest_ns >= 30_000_000
    assert blocks.what.endswith("heavy")
    handle = asyncio.get_running_loop().call_soon(heavy)
    assert who(handle).endswith("heavy")
    handle.cancel()
