"""`mapek bpf profile`: which programs are meant, what is told of them, and what is refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mapek.bpf.inventory import Attached, Loaded
from mapek.bpf.run_stats import FEWEST, Runs, Size
from mapek.bpf.stop_watch import StopWatch
from mapek.cli import main
from mapek.cli.bpf.loaded_cost import Cost, choose, document, inside, table
from mapek.cli.bpf.profile_ab import read_options
from mapek.errors import ConfigError, ObjectError

KNOWN = ("xdp_counter", "net_events", "dispatcher")
HEAD = Loaded(
    10, "dispatcher", "xdp", "00", "dispatcher", 1, 0, 60, 90, 0, 0, (1,), (Attached(7, "xdp", "eth0"),)
)
MEMBER = replace(HEAD, id=11, name="xdp_counter", object="xdp_counter", map_ids=(1, 2), attached=())
ALONE = replace(MEMBER, id=12, map_ids=(3,), attached=(Attached(8, "xdp", "eth1"),))
EVENTS = replace(ALONE, id=13, name="net_drop", object="net_events_tp", type="tracepoint")
FOREIGN = replace(ALONE, id=14, name="theirs", object="")
ALL = (HEAD, MEMBER, ALONE, EVENTS, FOREIGN)
WATCH = StopWatch(21.4, 47.0)


def chosen(*wanted: str) -> list[int]:
    return [one.id for one in choose(ALL, wanted, KNOWN)]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ((), [10, 11, 12, 13]),
        # A program that is reached through a dispatcher brings it along, for its time is in there.
        (("xdp_counter",), [10, 11, 12]),
        (("net_events",), [13]),
        (("dispatcher",), [10]),
        (("14",), [14]),
        (("11",), [10, 11]),
        (("14", "net_events", "14"), [13, 14]),
    ],
)
def test_which_programs_are_meant(wanted, found):
    assert chosen(*wanted) == found


def test_what_is_not_there_is_told_apart_from_what_is_not_known():
    with pytest.raises(
        ConfigError, match=r"profile nonsense: no sensor .* take from xdp_counter, net_events"
    ):
        chosen("nonsense")
    with pytest.raises(ObjectError, match="profile 99: it is not loaded now; see mapek bpf list"):
        chosen("99")
    with pytest.raises(ObjectError, match="not loaded now; start an agent with it, or measure it with --ab"):
        choose((FOREIGN,), ("net_events",), KNOWN)
    with pytest.raises(ObjectError, match="none is loaded now"):
        choose((FOREIGN,), (), KNOWN)


def test_members_are_found_by_the_chain_that_they_share():
    assert inside(ALL) == {11: 10}


def costs() -> list[Cost]:
    size = Size(354, 4096, 5 << 20)
    return [
        Cost(HEAD, Runs(200_000_000, 2_000_000), size, 2.0),
        Cost(MEMBER, Runs(0, 0), replace(size, maps=4096), 2.0, 10),
        Cost(EVENTS, Runs(9000, FEWEST - 1), replace(size, jited=0), 2.0),
    ]


def test_the_table():
    text = table(costs(), WATCH, 2.0)
    assert max(map(len, text.splitlines())) <= 100
    _, head, member, events, empty, *words = text.splitlines()
    assert head.split() == "10 dispatcher dispatcher 1000000 100.0 10 5 MiB 90 354 B".split()
    assert member.split() == "11 xdp_counter xdp_counter inside 10 4 KiB 90 354 B".split()
    assert events.split() == "13 net_drop net_events_tp 500 - - 5 MiB 90 -".split()
    assert empty.split() == ["empty", "program", "21.4"]
    assert words == [
        "",
        "by bpf_stats, over 2.0 s. Each ns/run holds what it takes to time the empty program: 21 ns.",
        "While it is on, bpf_stats makes each run of each program 47 ns longer; it is off again.",
        "inside N: run by dispatcher 10, and within its time.",
        "-: not measured, for fewer than 1000 runs tell nothing.",
    ]
    assert "bpf_stats was on before, and stays on." in table(costs(), StopWatch(21.4, None), 2.0)


def test_the_document():
    told = json.loads(json.dumps(document(costs(), WATCH, 2.0, True)))
    assert set(told) == {"seconds", "interrupted", "bpf_stats", "programs"}
    assert told["interrupted"] is True
    assert told["bpf_stats"] == {"empty_ns": 21.4, "adds_ns": 47.0}
    head, member, events = told["programs"]
    assert head == {
        "id": 10, "name": "dispatcher", "type": "xdp", "object": "dispatcher", "runs": 2_000_000,
        "runs_per_second": 1_000_000.0, "ns_per_run": 100.0, "percent_of_core": 10.0, "map_bytes": 5 << 20,
        "program_bytes": 4096, "jited_bytes": 354, "instructions": 60, "verified_instructions": 90, "inside": None,
    }  # fmt: skip
    assert (member["inside"], member["ns_per_run"]) == (10, None)
    assert (events["ns_per_run"], events["jited_bytes"]) == (None, None)


def test_options_are_lines_of_toml():
    assert read_options(["packets=true", 'mode = "tc"', "list=[1]"]) == {
        "packets": True,
        "mode": "tc",
        "list": [1],
    }
    with pytest.raises(ConfigError, match="read option mode="):
        read_options(["mode="])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seconds", "0"], "profile for 0 s: out of range"),
        (["--seconds", "nan"], "profile for nan s: out of range"),
        (["--plot", "x.png"], "profile with --plot: there is no A/B without --ab"),
        (["--option", "a=1"], "profile with --option: there is no A/B without --ab"),
        (["--ab", "psi"], "measure psi: no sensor with a program of its own"),
        (["--ab", "xdp_counter", "--option", "a=1"], "a: unknown key"),
        (["--ab", "--option", "a=1"], "set options of several sensors"),
    ],
)
def test_what_cannot_be_meant_is_one_line(words, said, capsys):
    assert main(["bpf", "profile", *words]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err
    assert told.err.count("\n") == 1
