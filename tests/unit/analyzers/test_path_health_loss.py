"""Loss: one path's alone is found with its onset, loss that befalls all alike moves nothing, at any rate."""

import pytest

from mapek.model import Entity, Inquiry
from tests.unit.analyzers.peer_bench import MS, PROBES, SECOND, Bench


@pytest.mark.parametrize("links", [2, 3])
@pytest.mark.parametrize(("share", "within_ms"), [(0.5, 30), (0.3, 60), (0.1, 300), (0.05, 1000)])
def test_loss_on_this_path_only_is_a_gray_path(links, share, within_ms):
    bench = Bench(links, seed=3)
    bench.lose(l0=share)
    first = bench.now_ns
    bench.gaps("l0", 3.0, every_ms=1)
    bench.run(3000)
    gray = bench.symptoms("path_gray")
    assert len(gray) == 1
    assert (gray[0].entity.name, bench.state["l0"]) == ("b/l0", "gray")
    assert 0 < gray[0].detected_ns - first < within_ms * MS
    # the first missing probe: two milliseconds before the first alarm of this suspicion
    suspicion = next(ms for ms, one in reversed(bench.found) if getattr(one, "kind", "") == "loss")
    assert gray[0].onset_ns == bench.zero_ns + round((suspicion - 2) * MS)
    assert gray[0].evidence["alive"] == tuple(f"b/l{k}" for k in range(1, links))[:1]
    assert bench.asking == ""


def test_a_single_gap_is_looked_into_and_forgotten():
    bench = Bench()
    bench.path("missing", "l0", onset_ns=bench.now_ns - 2 * MS, seq=1, count=1)
    bench.run(100)
    assert bench.said() == ["loss l0", "-loss l0"]
    assert bench.inquiries() == 14
    assert bench.asking == ""


def test_the_onset_is_that_of_this_loss_and_not_of_one_long_past():
    bench = Bench(seed=1)
    bench.path("missing", "l0", onset_ns=bench.now_ns - 2 * MS, seq=1, count=1)
    bench.run(60_000)
    begin = bench.now_ns
    bench.lose(l0=0.02)
    bench.run(300_000)  # no gap is told: the path is not in use, the slow test decides
    gray = bench.symptoms("path_gray")
    assert [one.entity.name for one in gray] == ["b/l0"]
    assert gray[0].onset_ns >= begin - 2 * SECOND
    assert gray[0].onset_ns < gray[0].detected_ns
    assert gray[0].onset_error_ns == SECOND
    assert gray[0].score > 14


def test_what_comes_late_is_not_lost():
    bench = Bench(seed=1)
    bench.wires["b/l0"].delayed = 0.2
    bench.run(300_000)
    assert bench.symptoms() == []


def test_a_single_path_is_not_compared_with_anything():
    bench = Bench(1)
    bench.lose(l0=0.3)
    bench.gaps("l0", 1.0)
    bench.run(2000)
    assert (bench.said(), bench.inquiries()) == ([], 0)


def test_a_lossy_path_whose_rival_died_is_kept():
    bench = Bench(seed=2)
    bench.die("l1")
    bench.run(10)
    bench.found.clear()
    bench.lose(l0=0.2)
    bench.gaps("l0", 1.0)
    bench.run(1500)
    assert bench.symptoms() == []
    assert {"loss l0", "-loss l0"} == set(bench.said())
    assert bench.asking == ""


def test_gray_is_well_again_after_three_frames_without_loss():
    bench = Bench(seed=4)
    bench.lose(l0=0.3)
    bench.gaps("l0", 0.5)
    bench.run(1000)
    bench.lose(l0=0.0)
    bench.run(12_000)
    assert bench.said()[-1] == "-path_gray l0"
    # the window forgets first: five frames in this bench, then three clean ones
    assert 6000 < bench.when("path_gray") < 9500
    assert bench.state == {"l0": "well", "l1": "well"}


def test_gray_stays_gray_while_it_loses():
    bench = Bench(seed=4)
    bench.lose(l0=0.3)
    bench.gaps("l0", 60.0)
    bench.run(60_000)
    assert [word for word in bench.said() if "loss" not in word] == ["path_gray l0"]


def test_gray_that_dies_is_dead_and_no_longer_gray():
    bench = Bench(seed=4)
    bench.lose(l0=0.3)
    bench.gaps("l0", 0.5)
    bench.run(1000)
    bench.found.clear()
    bench.die("l0")
    bench.run(10)
    assert bench.said() == ["silence l0", "-path_gray l0", "path_dead l0"]


def test_a_path_known_to_lose_is_offered_only_where_there_is_no_other():
    bench = Bench(3, seed=4)
    bench.lose(l1=0.3)
    bench.gaps("l1", 0.5)
    bench.run(1000)
    bench.die("l0")
    bench.run(5)
    assert bench.symptoms("path_dead")[0].evidence["alive"] == ("b/l2",)
    bench.die("l2")
    bench.run(5)
    assert bench.symptoms("path_dead")[1].evidence["alive"] == ("b/l1",)


@pytest.mark.parametrize("links", [2, 3, 4])
@pytest.mark.parametrize(
    ("share", "seconds"),
    [(0.001, 200), (0.003, 100), (0.01, 50), (0.02, 30), (0.05, 20), (0.1, 20), (0.3, 10)],
)
def test_equal_loss_is_no_gray_path(links, share, seconds):
    bench = Bench(links, seed=round(share * 10_000) + links)
    bench.lose(**{f"l{k}": share for k in range(links)})
    bench.gaps("l0", seconds, every_ms=1)
    bench.run(seconds * 1000)
    assert bench.symptoms("path_gray") == []
    assert "loss l0" in bench.said()


def test_loss_that_begins_on_both_at_once_is_no_gray_path():
    bench = Bench(seed=9)
    for round_ in range(20):
        bench.lose(l0=0.4 * (round_ % 2), l1=0.4 * (round_ % 2))
        bench.gaps("l0", 0.5)
        bench.run(500)
    assert bench.symptoms("path_gray") == []


def test_more_loss_on_the_other_path_is_none_of_this_path_s():
    bench = Bench(seed=9)
    bench.lose(l0=0.02, l1=0.2)
    bench.gaps("l0", 20, every_ms=1)
    bench.run(20_000)
    assert [one for one in bench.symptoms() if one.entity.name == "b/l0"] == []


def test_lasting_loss_on_both_is_looked_into_with_pauses():
    bench = Bench(seed=9)
    bench.lose(l0=0.1, l1=0.1)
    bench.gaps("l0", 20, every_ms=1)
    bench.run(20_000)
    asked = [ms for ms, one in bench.found if isinstance(one, Inquiry)]
    assert len(asked) < 400 + 20_000 / 10 + 50
    assert sum(ms < 250 for ms in asked) > 300  # at full speed as long as it may be decided quickly


def test_an_answer_lost_in_the_middle_of_a_burst_test_does_not_end_it():
    bench = Bench(seed=3)
    bench.lose(l0=0.3)
    bench.path("missing", "l0", onset_ns=bench.now_ns, seq=1, count=1)
    bench.forgets = True
    bench.run(300)
    bench.forgets = False
    bench.run(2000)  # without another gap: the tick asks
    assert [one.kind for one in bench.symptoms()] == ["path_gray"]


def test_counters_that_begin_anew_are_no_loss():
    bench = Bench(seed=3)
    for _ in range(20):
        for wire in bench.wires.values():
            wire.answered = wire.lost = 0
        bench.wires["b/l0"].lost = PROBES
        bench.run(1000)
    assert bench.said() == []


def test_the_budget_is_the_users():
    """With a generous budget less evidence is needed."""

    def time_to_verdict(**options):
        bench = Bench(seed=11, **options)
        bench.lose(l0=0.1)
        bench.gaps("l0", 5, every_ms=1)
        bench.run(5000)
        return bench.symptoms("path_gray")[0].detected_ns

    assert time_to_verdict(false_switches_per_month=1e5) < time_to_verdict(false_switches_per_month=1e-5)


def test_the_path_of_another_peer_is_no_rival():
    bench = Bench()
    bench.tell("path.missing", Entity("path", "c/l0"), onset_ns=0, seq=1, count=1)
    assert bench.found == []
