"""Silence: suspicion, inquiry, verdict; who is dead, gone, was never there, and who is well again."""

import numpy as np
import pytest

from mapek.analyzers.path_health import GONE_AFTER, PathHealth
from mapek.errors import ConfigError
from mapek.model import Entity, Inquiry
from tests.unit.analyzers.peer_bench import MS, SECOND, Bench

B = Entity("peer", "b")


def all_but(*dead, of):
    return [f"l{k}" for k in range(of) if f"l{k}" not in dead]


@pytest.mark.parametrize("links", [2, 3])
def test_silence_with_another_path_alive_is_a_dead_path(links):
    bench = Bench(links)
    bench.run(7.3)
    onset = bench.now_ns
    bench.die("l0")
    bench.run(100)
    assert bench.said() == ["silence l0", "path_dead l0"]
    (dead,) = bench.symptoms()
    assert (dead.onset_ns, dead.onset_error_ns, dead.score) == (onset, 0, 1.0)
    assert dead.detected_ns == onset + MS + MS // 2  # one millisecond to the alarm, half of one is the grace
    assert dead.evidence["alive"] == tuple(f"b/l{k}" for k in range(1, links))
    assert bench.inquiries() == 1
    assert bench.state == {"l0": "dead"} | {f"l{k}": "well" for k in range(1, links)}


def test_two_of_three_paths_die_at_once():
    bench = Bench(3)
    bench.die("l0", "l2")
    bench.run(100)
    assert bench.said() == ["silence l0", "silence l2", "path_dead l0", "path_dead l2"]
    assert all(one.evidence["alive"] == ("b/l1",) for one in bench.symptoms())


def test_a_path_found_dead_while_asking_about_another_begins_at_its_last_answer():
    bench = Bench(3)
    bench.die("l0")
    bench.run(50)
    bench.live("l0")
    bench.run(5000)
    bench.found.clear()
    bench.die("l0", alarm=False)  # its own alarm comes too late
    last = bench.wires["b/l0"].last_answer_ns
    bench.die("l1")
    bench.run(8)
    other, dead = bench.symptoms("path_dead")
    assert (other.entity.name, dead.entity.name) == ("b/l1", "b/l0")  # it takes a second inquiry
    assert dead.onset_ns == last


@pytest.mark.parametrize("links", [1, 2, 3])
def test_silence_everywhere_is_no_dead_path_but_a_peer_that_is_gone_once(links):
    bench = Bench(links)
    onset = bench.now_ns
    every = all_but(of=links)
    bench.die(*every)
    bench.run(10_000)
    assert bench.symptoms("path_dead") == []
    (gone,) = bench.symptoms()
    assert (gone.kind, gone.entity, gone.onset_ns) == ("peer_gone", B, onset)
    assert gone.evidence == {"unanswered": GONE_AFTER, "admin_down": False}
    assert sorted(bench.said()[:links]) == sorted(f"silence {link}" for link in every)
    cleared = [word for word in bench.said() if word.startswith("-")]
    assert sorted(cleared) == sorted(f"-silence {link}" for link in every)
    # one after the other at first, with pauses later, once a second in the end
    asked = [ms for ms, one in bench.found if isinstance(one, Inquiry)]
    assert len(asked) == GONE_AFTER + 10
    assert asked[19] < 30 < 150 < asked[29] < 350
    assert min(np.diff(asked[31:])) == pytest.approx(1000)


def test_a_peer_that_is_gone_is_back_with_its_first_answer():
    bench = Bench()
    bench.die("l0", "l1")
    bench.run(3000)
    bench.found.clear()
    bench.live("l1")
    bench.run(10)
    assert bench.said() == ["-peer_gone b", "path_dead l0"]
    assert bench.symptoms()[0].evidence["alive"] == ("b/l1",)
    bench.live("l0")
    bench.run(100)
    assert bench.said()[2:] == ["-path_dead l0"]
    assert bench.state == {"l0": "well", "l1": "well"}


def test_a_peer_that_comes_back_without_an_alarm_is_found_by_asking():
    bench = Bench(1)
    bench.die("l0")
    bench.run(3000)
    bench.live("l0", alarm=False)
    bench.run(1100)
    assert bench.said()[-1] == "-peer_gone b"


def test_a_short_silence_everywhere_ends_in_nothing():
    bench = Bench()
    bench.die("l0", "l1")
    bench.run(30)
    bench.live("l0", "l1")
    bench.run(200)
    assert bench.symptoms() == []
    assert sorted(bench.said()) == ["-silence l0", "-silence l1", "silence l0", "silence l1"]
    assert bench.asking == ""


def test_a_false_alarm_is_cleared_and_asked_about_once():
    bench = Bench()
    bench.wires["b/l0"].silent = False
    bench.path("silent", "l0", onset_ns=bench.now_ns - MS, seq=1, outstanding=1)
    bench.path("back", "l0", sent_ns=bench.now_ns, seq=2)
    bench.run(50)
    assert bench.said() == ["silence l0", "-silence l0"]
    assert bench.inquiries() == 1


def test_suspicions_meanwhile_do_not_ask_again():
    bench = Bench()
    bench.die("l0")
    bench.run(1.1)
    for _ in range(5):
        bench.path("silent", "l0", onset_ns=bench.now_ns, seq=1, outstanding=1)
    assert (bench.inquiries(), len(bench.suspects())) == (1, 1)


def test_a_suspicion_on_a_gray_path_is_cleared_too():
    bench = Bench()
    bench.lose(l0=0.4)
    bench.gaps("l0", 0.5)
    bench.run(600)
    assert bench.state["l0"] == "gray"
    bench.found.clear()
    bench.path("silent", "l0", onset_ns=bench.now_ns - MS, seq=1, outstanding=1)
    bench.run(5)
    assert bench.said() == ["silence l0", "-silence l0"]


@pytest.mark.parametrize("late_ms", [0.6, 5, 100])
def test_what_we_ran_late_ourselves_is_asked_again_and_never_judged(late_ms):
    bench = Bench()
    bench.die("l0")
    bench.late_ns = int(late_ms * MS)
    bench.run(1.6 + late_ms)
    assert bench.symptoms() == []
    assert bench.inquiries() == 2
    bench.run(1)
    assert bench.said() == ["silence l0", "path_dead l0"]


def test_late_within_the_grace_is_judged():
    bench = Bench()
    bench.die("l0")
    bench.late_ns = MS // 2
    bench.run(3)
    assert bench.said() == ["silence l0", "path_dead l0"]
    assert bench.inquiries() == 1


def test_the_grace_follows_the_slowest_round_trip():
    bench = Bench(grace_ms=0.3)
    bench.die("l0")
    bench.run(1.2)
    assert bench.found[-1][1].within_ns == 400_000  # four times 0.1 ms
    bench = Bench(grace_ms=2.0)
    bench.die("l0")
    bench.run(1.2)
    assert bench.found[-1][1].within_ns == 2 * MS


@pytest.mark.parametrize("alarm", [True, False], ids=["heard", "alarm lost"])
def test_a_dead_path_is_well_after_three_clean_bursts(alarm):
    bench = Bench()
    bench.die("l0")
    bench.run(200)
    bench.found.clear()
    bench.live("l0", alarm=alarm)
    bench.run(2000)
    assert bench.said() == ["-path_dead l0"]
    assert bench.inquiries() == 3
    assert bench.when("path_dead") < (205 if alarm else 1400)
    assert bench.state == {"l0": "well", "l1": "well"}
    assert bench.asking == ""


def test_a_silence_whose_alarm_was_lost_is_found_with_the_next_frame():
    bench = Bench()
    bench.die("l0", alarm=False)
    bench.wires["b/l0"].silent = True
    bench.run(1100)
    assert bench.said() == ["silence l0", "path_dead l0"]
    (dead,) = bench.symptoms()
    assert bench.zero_ns - SECOND < dead.onset_ns <= bench.zero_ns


def test_a_link_that_flaps_below_the_watchdog_does_not_stay_dead():
    bench = Bench()
    bench.die("l0", alarm=False)
    bench.tell("link.down", Entity("link", "l0", 7))
    bench.run(2)
    assert bench.said() == ["silence l0", "path_dead l0"]
    bench.live("l0")  # no alarm was raised, so none is taken back
    bench.run(2500)
    assert bench.said()[2:] == ["-path_dead l0"]


@pytest.mark.parametrize("kind", ["link.down", "link.gone"])
def test_a_link_that_goes_down_is_asked_about_at_once(kind):
    bench = Bench()
    bench.die("l1", alarm=False)
    down = bench.now_ns
    bench.tell(kind, Entity("link", "l1", 7))
    bench.tell(kind, Entity("link", "elsewhere", 8))
    bench.run(0.6)
    assert bench.said() == ["silence l1", "path_dead l1"]
    assert bench.symptoms()[0].onset_ns == down


def test_a_link_that_is_said_to_be_down_and_answers_is_well():
    bench = Bench()
    bench.tell("link.down", Entity("link", "l0", 7))
    bench.run(1.5)
    assert bench.said() == ["silence l0", "-silence l0"]


def test_a_dead_path_that_comes_back_lossy_is_not_flooded():
    bench = Bench()
    bench.die("l0")
    bench.run(100)
    bench.lose(l0=0.6)
    bench.live("l0")
    bench.run(10_000)
    assert bench.said() == ["silence l0", "path_dead l0"]
    assert bench.inquiries() < 1500  # 20 000 without a pause


def test_a_peer_that_stops_in_order_is_not_missed():
    bench = Bench()
    bench.path("peer_admin_down", "l0")
    bench.die("l0", "l1")
    bench.run(5000)
    assert bench.symptoms() == []
    bench.live("l0", "l1")
    bench.path("peer_up", "l0")
    bench.run(1500)
    assert [word for word in bench.said() if "peer" in word] == []
    bench.die("l0", "l1")
    bench.run(2000)
    assert [one.kind for one in bench.symptoms()] == ["peer_gone"]


@pytest.mark.parametrize("links", [1, 2])
def test_a_peer_that_was_never_seen_is_said_to_be_absent_once(links):
    bench = Bench(links, known=False, never_seen_s=2.0)
    for wire in bench.wires.values():
        wire.dead = True
    bench.run(20_000)
    assert bench.said() == ["peer_never_seen b"]
    (absent,) = bench.symptoms()
    assert absent.onset_ns == bench.zero_ns + SECOND // 2  # the first tick
    bench.live("l0")
    bench.run(1500)
    assert bench.said() == ["peer_never_seen b", "-peer_never_seen b"]


def test_a_peer_whose_probes_are_rare_is_seen_with_its_first_answer():
    bench = Bench(known=False, never_seen_s=2.0)
    for wire in bench.wires.values():
        wire.dead, wire.last_answer_ns = True, bench.now_ns
    bench.run(10_000)
    assert bench.said() == []


def test_a_peer_that_was_seen_for_a_moment_is_gone_and_not_unseen():
    bench = Bench(known=False, never_seen_s=2.0)
    for wire in bench.wires.values():
        wire.dead = wire.silent = True
        wire.last_answer_ns = bench.now_ns
    bench.run(10_000)
    assert [str(one.entity) for one in bench.symptoms()] == ["peer b"]
    assert [one.kind for one in bench.symptoms()] == ["peer_gone"]


def test_a_path_that_answered_and_fell_silent_before_it_was_found_well_is_dead():
    """Traffic may have been put on it by its first answer."""
    bench = Bench(known=False)
    bench.live("l1")
    bench.path("back", "l0", sent_ns=bench.now_ns, seq=1)
    bench.die("l0")
    bench.run(3000)
    (dead,) = bench.symptoms("path_dead")
    assert dead.entity.name == "b/l0"


def test_an_unknown_path_is_no_news_when_it_is_silent():
    bench = Bench(known=False)
    bench.path("silent", "l0", onset_ns=0, seq=1, outstanding=1)
    assert (bench.said(), bench.inquiries()) == ([], 0)


@pytest.mark.parametrize("how", ["refuses", "forgets"])
def test_an_inquiry_without_an_answer_does_not_hold_up_the_next(how):
    bench = Bench()
    setattr(bench, how, True)
    bench.die("l0")
    bench.run(3000)
    assert bench.symptoms() == []
    asked = bench.inquiries()
    assert 3 <= asked <= 5  # once, and with every tick
    setattr(bench, how, False)
    bench.run(1100)
    assert bench.said() == ["silence l0", "path_dead l0"]
    assert bench.inquiries() == asked + 1


def test_the_answer_to_an_inquiry_given_up_is_not_taken_for_that_to_the_next():
    bench = Bench()
    bench.refuses = True
    bench.die("l0")
    bench.run(1100)
    first, second = [one for _, one in bench.found if isinstance(one, Inquiry)][:2]
    assert first.id != second.id
    bench.tell("inquiry.answer", B, **bench.answer(first, bench.now_ns))
    assert bench.symptoms() == []
    bench.tell("inquiry.answer", B, **bench.answer(second, bench.now_ns))
    assert [one.kind for one in bench.symptoms()] == ["path_dead"]
    bench.tell("inquiry.answer", B, **bench.answer(second, bench.now_ns))
    assert len(bench.symptoms()) == 1


def test_a_malformed_answer_is_refused_and_asked_again():
    bench = Bench()
    bench.refuses = True
    bench.die("l0")
    bench.run(1.5)
    inquiry = bench.found[-1][1]
    answer = bench.answer(inquiry, bench.now_ns) | {"sent": (8,)}
    with pytest.raises(ValueError, match="zip"):
        bench.tell("inquiry.answer", B, **answer)
    bench.refuses = False
    bench.run(1100)
    assert [one.kind for one in bench.symptoms()] == ["path_dead"]


def test_rows_that_could_not_be_read_say_nothing():
    bench = Bench()
    for wire in bench.wires.values():
        wire.silent = True
    bench.feed_frame(valid=np.zeros(2, np.bool_))
    assert bench.said() == []


def test_events_of_others_are_no_concern():
    bench = Bench()
    bench.tell("path.silent", Entity("path", "c/l0"), onset_ns=0)
    bench.tell("inquiry.answer", B, id="plan:1", kind="probe_route", ok=True)
    bench.tell("inquiry.answer", Entity("peer", "c"), id="x", kind="probe_paths")
    bench.tell("path.peer_restarted", Entity("path", "b/l0"))
    bench.tell("route.gone", B)
    assert bench.found == []


@pytest.mark.parametrize(
    "options",
    [
        {"grace_ms": 0.01},
        {"grace_ms": "1"},
        {"false_switches_per_month": 0},
        {"loss_floor": 0.5},
        {"never_seen_s": 0},
    ],
)
def test_options_are_checked(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        PathHealth(options)


@pytest.mark.parametrize(("hidden_ms", "dead"), [(0.6, False), (3.0, False), (8.0, True)])
def test_one_unanswered_inquiry_amid_others_is_not_enough(hidden_ms, dead):
    bench = Bench(2)
    bench.run(5000)
    bench.lose(l1=0.03)
    bench.path("missing", "l1", onset_ns=bench.now_ns, seq=1, count=1)
    bench.run(0.5)  # the next burst follows at once
    bench.die("l0", alarm=False)
    bench.run(hidden_ms)
    bench.live("l0", alarm=False)
    bench.run(0.6)
    assert bench.inquiries() > 2
    assert bool([one for one in bench.symptoms("path_dead") if one.entity.name == "b/l0"]) == dead


def test_a_path_that_was_back_meanwhile_is_given_its_patience_anew():
    """Two inquiries that found nobody, far apart, with a sign of life between them, are not one long silence."""
    bench = Bench(2)
    bench.run(5000)
    bench.lose(l1=0.03)
    bench.path("missing", "l1", onset_ns=bench.now_ns, seq=1, count=1)
    bench.run(0.5)
    bench.die("l0", alarm=False)
    bench.run(3.0)  # within the patience: asked and not answered, and not dead yet
    bench.path("back", "l0", sent_ns=bench.now_ns, seq=9)
    bench.run(3.0)
    dead = [one for one in bench.symptoms("path_dead") if one.entity.name == "b/l0"]
    assert dead == []
    bench.run(6.0)
    assert [one for one in bench.symptoms("path_dead") if one.entity.name == "b/l0"]
