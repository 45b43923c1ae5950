"""Which path a peer's traffic takes: at once away from an ill one, slowly back, never without evidence."""

import pytest

from mapek.errors import ConfigError
from mapek.model import Entity, Inquiry, Step
from mapek.policies.link_failover import LinkFailover
from tests.unit.policies.road import SECOND, Road

B = Entity("peer", "b")


def placed(*arguments, **options):
    road = Road(*arguments, **options).run(1)
    assert road.moves() == ["hold l0"]
    return road


def test_the_first_placement_is_the_best_path_that_answers():
    road = Road(links=3)
    road.say("tick", Entity("node", "a"))
    assert road.moves() == []  # no frame yet
    road.silent["b/l0"], road.age["b/l1"] = 1.0, float("nan")
    road.run(1)
    assert road.moves() == ["hold l2"]
    assert road.run(5).moves() == []


def test_an_urgent_plan_and_its_proof():
    road = placed()
    plan = road.ill("l0", "l1")
    assert plan.steps == (Step("netlink", "use_path", {"peer": "b", "path": "b/l1"}),)
    assert plan.expect == Inquiry("", B, "probe_route", 500_000_000)
    assert plan.settle_ns == 500_000_000
    assert plan.touches == (B, Entity("path", "b/l1"))
    assert (plan.urgent, plan.reason) == (True, "path_dead on b/l0: to b/l1")


@pytest.mark.parametrize(
    ("alive", "moves"),
    [
        ((), []),
        (("l1",), ["!use_path l1"]),
        (("l2", "l1"), ["!use_path l1"]),
        (("l2",), ["!use_path l2"]),
        (("l0",), []),
        (("x",), []),
    ],
)
@pytest.mark.parametrize("kind", ["path_dead", "path_gray"])
def test_traffic_leaves_only_for_what_answered_the_most_preferred_first(kind, alive, moves):
    road = placed(links=3)
    road.ill("l0", *alive, kind=kind)
    assert road.moves() == moves


def test_evidence_of_another_form_is_none():
    road = placed()
    from mapek.model import Symptom

    ill = Symptom(Entity("path", "b/l0"), "path_dead", 1.0, 0, 0, evidence={"alive": "b/l1"})
    assert road.policy.plan(ill, road.knowledge) is None


@pytest.mark.parametrize("kind", ["peer_gone", "peer_never_seen", "custom"])
def test_other_symptoms_move_nothing(kind):
    road = placed()
    assert road.ill("l0", "l1", kind=kind) is None


def test_an_ill_path_that_carries_nothing_is_noted_and_avoided():
    road = placed(links=3)
    assert road.ill("l1", "l0", "l2") is None
    road.ill("l0", "l1", "l2")
    assert road.moves() == ["!use_path l2"]


def test_a_lossy_path_is_better_than_a_dead_one():
    road = placed()
    road.ill("l0", "l1", kind="path_gray")
    road.ill("l1", "l0")
    assert road.moves() == ["!use_path l1", "!use_path l0"]


def test_the_active_path_is_ill_and_there_is_no_alternative_until_there_is():
    road = placed()
    road.silent["b/l1"] = 1.0
    road.ill("l0")
    assert road.run(5).moves() == []
    road.silent["b/l1"] = 0.0
    assert road.run(1).moves() == ["use_path l1"]


def test_the_only_path_is_ill_and_is_kept():
    road = placed(links=1)
    road.ill("l0")
    assert road.run(5).moves() == []
    road.well("l0")
    assert road.run(20).moves() == []
    assert road.active() == "l0"


def test_an_emergency_waits_for_no_hold_down():
    road = placed()
    for _ in range(6):
        road.ill("l0", "l1")
        road.well("l0")
        road.ill("l1", "l0")
        road.well("l1")
    assert road.moves() == ["!use_path l1", "!use_path l0"] * 6


def test_going_back_waits_for_the_hold_down():
    road = placed()
    road.ill("l0", "l1")
    road.moves()
    assert road.run(20).moves() == []
    road.well("l0")
    assert road.run(5).moves() == []
    assert road.run(1).moves() == ["use_path l0"]
    assert road.active() == "l0"


def test_a_return_without_proof_is_taken_back():
    road = placed()
    road.ill("l0", "l1")
    road.well("l0")
    road.run(6)
    _, back = road.plans[-1]
    road.moves()
    road.unproved(back)
    assert road.moves() == ["use_path l1"]
    assert road.run(9).moves() == []  # and the hold-down has doubled
    assert road.run(2).moves() == ["use_path l0"]


def test_an_emergency_without_proof_stays():
    road = placed()
    plan = road.ill("l0", "l1")
    road.moves()
    road.unproved(plan)
    assert road.moves() == []


def test_the_hold_down_begins_again_with_each_relapse():
    road = placed()
    road.ill("l0", "l1")
    road.moves()
    for _ in range(5):
        road.well("l0")
        assert road.run(4).moves() == []
        road.ill("l0", "l1")
    road.well("l0")
    road.silent["b/l0"] = 1.0
    assert road.run(10).moves() == []
    road.silent["b/l0"] = 0.0
    assert road.run(6).moves() == ["use_path l0"]


def back_after(road):
    """Seconds from the moment the preferred path is well until traffic returns."""
    road.ill("l0", "l1")
    road.well("l0")
    road.moves()
    begin = road.seconds
    while not road.plans:
        road.run(1)
    assert road.moves() == ["use_path l0"]
    return road.seconds - begin - 1


def test_the_hold_down_doubles_with_each_return_that_did_not_last_and_has_a_limit():
    road = placed(hold_down_s=5, hold_down_max_s=60)
    waits = []
    for _ in range(6):
        waits.append(back_after(road))
        road.run(7)  # longer than the first hold-down: a path that fails every few seconds is no better
    assert waits == [5, 10, 20, 40, 60, 60]
    # a return that lasts forgives
    road.run(60)
    assert back_after(road) == 5
    road.run(59 - 1)
    assert back_after(road) == 10


def test_only_the_failure_of_the_returned_path_counts_and_only_once():
    road = placed(links=3)
    assert back_after(road) == 5
    road.ill("l0", "l1", "l2")  # doubles
    road.ill("l1", "l2")
    road.ill("l2", "l1")
    road.well("l1")
    road.well("l2")
    road.moves()
    assert back_after(road) == 10


@pytest.mark.parametrize(
    ("changes", "returns"),
    [
        ({}, True),
        ({"silent": 1.0}, False),
        ({"age": 2.5}, False),
        ({"age": float("nan")}, False),
        ({"loss": 0.004}, True),
        ({"loss": 0.01}, False),
        ({"loss": float("nan")}, True),
    ],
)
def test_what_a_path_must_show_to_be_returned_to(changes, returns):
    road = placed()
    road.ill("l0", "l1")
    road.well("l0")
    road.moves()
    for name, value in changes.items():
        getattr(road, name)["b/l0"] = value
    assert road.run(20).moves() == (["use_path l0"] if returns else [])


def test_a_little_loss_there_is_no_obstacle_where_there_is_as_much_here():
    road = placed()
    road.ill("l0", "l1")
    road.well("l0")
    road.moves()
    road.loss["b/l0"], road.loss["b/l1"] = 0.02, 0.018
    assert road.run(20).moves() == ["use_path l0"]


@pytest.mark.parametrize("how", ["no frames", "unreadable"])
def test_old_evidence_is_none(how):
    road = placed()
    road.ill("l0", "l1")
    road.well("l0")
    road.moves()
    road.run(1)
    if how == "no frames":
        road.frames = False
    else:
        road.invalid = {"b/l0"}
    assert road.run(60).moves() == []


@pytest.mark.parametrize("kind", ["nexthop.gone", "nexthop.new", "nexthop.differs", "route.gone", "link.up"])
def test_what_was_changed_is_laid_anew_at_once(kind):
    road = placed()
    entity = Entity("link", "l0", 3) if kind == "link.up" else B
    road.say(kind, entity)
    assert road.moves() == ["hold l0"]
    assert road.run(5).moves() == []


def test_what_concerns_nobody_in_use_is_not():
    road = placed()
    road.say("link.up", Entity("link", "l1", 3))
    road.say("link.down", Entity("link", "l0", 3))
    road.say("route.new", B)
    assert road.run(3).moves() == []


def test_messages_that_were_lost_may_concern_every_peer():
    road = Road("bcd").run(3)
    assert road.moves() == ["hold l0", "hold c/l0", "hold d/l0"]
    road.say("netlink.overrun", Entity("service", "routes"))
    assert sorted(road.run(3).moves()) == ["hold c/l0", "hold d/l0", "hold l0"]
    assert road.run(3).moves() == []


def test_a_repair_that_comes_during_a_move_is_not_forgotten():
    road = placed()
    road.refuse = {"*"}
    road.ill("l0", "l1")
    assert road.say("nexthop.gone", B) is None
    road.refuse = set()
    road.say("plan.failed", B, policy="link_failover", why="as told")
    road.moves()
    assert road.run(2).moves() == ["use_path l1"]


def test_no_repair_of_what_is_ill_or_not_in_use():
    road = Road()
    road.say("nexthop.gone", B)
    assert road.moves() == []
    road.run(1)
    road.moves()
    road.ill("l0")
    road.silent["b/l1"] = 1.0
    road.say("nexthop.gone", B)
    assert road.run(3).moves() == []
    road.well("l0")
    assert road.run(1).moves() == ["hold l0"]


def test_a_repair_that_fails_is_tried_again_with_a_back_off():
    road = placed()
    road.refuse = {"b/l0"}
    begin = road.seconds
    road.say("route.gone", B)
    road.run(80)
    times = [seconds - begin for seconds, _ in road.plans]
    assert times == [0, 1, 3, 7, 15, 31, 47, 63, 79]
    road.refuse = set()
    road.moves()
    assert road.run(20).moves() == ["hold l0"]
    road.refuse = {"b/l0"}
    begin = road.seconds
    road.say("route.gone", B)
    road.run(3)
    assert [seconds - begin for seconds, _ in road.plans] == [0, 1, 3]


def test_an_emergency_that_fails_is_tried_again_and_does_not_wait_for_an_older_back_off():
    road = placed(links=3)
    road.refuse = {"b/l1"}
    road.ill("l0", "l1", "l2")
    assert road.moves() == ["!use_path l1"]
    assert road.run(1).moves() == ["use_path l1"]
    road.ill("l1", "l2")  # not in use: noted
    road.run(4)
    assert road.moves() == ["use_path l2"]
    road.refuse = {"b/l0"}
    road.well("l0")
    road.ill("l2", "l0")
    road.refuse = set()
    road.ill("l2", "l0")
    assert road.moves() == ["!use_path l0", "!use_path l0"]


def test_a_link_that_is_back_ends_the_back_off():
    road = placed()
    road.refuse = {"b/l0"}
    road.say("nexthop.gone", B)
    road.run(20)
    road.refuse = set()
    road.moves()
    road.say("link.up", Entity("link", "l0", 3))
    assert road.moves() == ["hold l0"]


def test_a_return_that_failed_is_no_return():
    road = placed(hold_down_s=5)
    road.ill("l0", "l1")
    road.well("l0")
    road.moves()
    road.refuse = {"b/l0"}
    road.run(6)
    assert road.moves() == ["use_path l0"]
    road.ill("l1", "l0")  # the emergency is tried though the return failed
    road.refuse = set()
    road.ill("l1", "l0")
    road.well("l1")
    road.moves()
    assert back_after(road) == 5  # nothing was doubled


def test_a_plan_that_never_ends_is_forgotten_after_a_while():
    road = placed()
    road.refuse = {"*"}
    road.ill("l0", "l1")
    road.refuse = set()
    road.moves()
    assert road.run(4).moves() == []
    assert road.run(3).moves() == ["use_path l1"]


def test_a_second_emergency_while_the_first_plan_is_under_way():
    road = placed(links=3)
    road.refuse = {"*"}
    road.ill("l0", "l1", "l2")
    road.ill("l1", "l2")
    assert road.moves() == ["!use_path l1", "!use_path l2"]
    # the first ends late; what was decided last still counts
    road.refuse = set()
    road.say("path.active", Entity("path", "b/l1"), peer="b", before="b/l0")
    road.say("plan.acted", B, policy="link_failover", changed=True)
    road.ill("l2", "l1")
    assert road.moves() == ["!use_path l1"]


def test_the_plans_of_other_policies_are_not_ours():
    road = placed()
    road.refuse = {"*"}
    road.ill("l0", "l1")
    road.moves()
    road.say("plan.failed", B, policy="another", why="as told")
    assert road.run(2).moves() == []


def test_one_peer_that_fails_for_ever_does_not_starve_the_others():
    road = Road("bcd")
    road.refuse = {"b/l0"}
    road.run(4)
    assert road.active("c") == road.active("d") == "l0"
    assert road.active("b") == ""


def test_peers_do_not_concern_each_other():
    road = Road("bc").run(2)
    road.moves()
    road.ill("l0", "l1", peer="c")
    assert (road.active("b"), road.active("c")) == ("l0", "l1")


def test_clearing_another_kind_does_not_make_a_path_well():
    road = placed()
    road.ill("l0", "l1")
    road.moves()
    road.well("l0", kind="path_gray")
    assert road.run(20).moves() == []


def test_what_an_earlier_agent_left_is_adopted():
    road = Road()
    road.say("path.active", Entity("path", "b/l1"), peer="b", before="")
    assert road.run(5).moves() == []
    assert road.run(1).moves() == ["use_path l0"]


@pytest.mark.parametrize(
    "options",
    [
        {"hold_down_s": 0},
        {"hold_down_s": 10, "hold_down_max_s": 5},
        {"settle_ms": "soon"},
        {"touchpoint": 1},
    ],
)
def test_options_are_checked(options):
    with pytest.raises(ConfigError, match=next(reversed(options))):
        LinkFailover(options)


def test_the_effector_may_be_another():
    road = Road(touchpoint="mine", settle_ms=20)
    road.run(1)
    ((_, plan),) = road.plans
    assert (plan.steps[0].touchpoint, plan.settle_ns) == ("mine", SECOND // 50)
