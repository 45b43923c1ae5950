"""What link_watch makes of answers to our own probes, by PROG_TEST_RUN: counts, losses by direction, alarms."""

from __future__ import annotations

import time
from typing import Any

import pytest

from mapek.sensors.link_watch_layout import (
    ANSWER,
    BACK,
    GAPS,
    IN_USE,
    MARK_MISSING,
    MARK_SILENT,
    MISSING,
    WATCH,
)
from tests.netns.sensors.programs import OWN_EPOCH, OWN_KEY, PAIRS, PEER_KEY, Bench
from tests.support.stamp import REPLY, frame, payload

both = pytest.mark.parametrize("program", ["link_watch", "link_watch_tc"])
AGO_NS = 1_000_000


class Prober(Bench):
    """A bench that pretends to have sent probes."""

    def sent(self, *seqs: int, ago_ns: int = AGO_NS) -> None:
        row = self.states[0]
        for seq in seqs:
            row["window"][seq % 512] = (time.monotonic_ns() - ago_ns, seq, 0)
            row["next_seq"] = seq + 1

    def answer(self, seq: int, number: int, *, key=OWN_KEY, source=None, **fields: int) -> str:
        """The verdict on the peer's answer to `seq`, its own `number`-th."""
        told = {"epoch": OWN_EPOCH, "role": REPLY, "sender_seq": seq, "seq": number, "tlv_flags": 0, **fields}
        sent = frame(source or self.peer, self.local, payload(key, **told), ports=(862, 45000))
        return self.run(sent)[0]


@pytest.fixture
def prober(bench):
    def make(program: str, family: str = "IPv4", flags: int = IN_USE | GAPS | WATCH) -> Prober:
        one = bench(program, family)
        made = Prober(one.loaded, program, *PAIRS[family])
        made.configs[0]["flags"] = flags
        return made

    return make


@both
@pytest.mark.parametrize("family", PAIRS)
@pytest.mark.kernel
def test_an_answer(prober, program, family):
    one = prober(program, family, IN_USE | 8)
    one.sent(1)
    before = time.monotonic_ns()
    assert one.answer(1, 1) == "dropped"  # it ends here: no user space waits for it
    row = one.states[0]
    assert one.counts() == {"answered": 1}
    assert before <= row["last_answer_ns"] <= time.monotonic_ns()
    sent_ns, seq, rtt = row["window"][1]
    assert row["last_answered_sent_ns"] == sent_ns == row["last_answer_ns"] - rtt
    assert (seq, row["newest_answered"]) == (1, 1)
    assert AGO_NS <= rtt < AGO_NS + 100_000_000
    (bucket,) = row["rtt_buckets"].nonzero()[0]
    assert 2**bucket <= rtt < 2 ** (bucket + 1)
    (alarm,) = one.alarms()
    assert (alarm.kind, alarm.path, alarm.seq, alarm.onset_ns) == (ANSWER, 0, 1, sent_ns)
    assert alarm.time_ns == row["last_answer_ns"]


@both
def test_an_answer_that_comes_twice(prober, program):
    one = prober(program)
    one.sent(1)
    assert [one.answer(1, 1), one.answer(1, 1)] == ["dropped"] * 2
    assert one.counts() == {"answered": 1, "duplicates": 1}


WRONG: dict[str, dict[str, Any]] = {
    "signed with the other key": {"key": PEER_KEY},
    "of another session": {"epoch": OWN_EPOCH - 1},
    "to a probe never sent": {"seq": 2},
    "to a probe of an earlier round of the window": {"seq": 513},
}


@both
@pytest.mark.parametrize("which", WRONG)
@pytest.mark.kernel
def test_wrong_answers_are_counted_and_change_nothing(prober, program, which):
    one = prober(program)
    one.sent(1)
    before = one.states[0].copy()
    told = {"seq": 1, **WRONG[which]}
    assert one.answer(told.pop("seq"), 1, **told) == "dropped"
    assert one.counts() == {"rejected": 1}
    before["rejected"] = 1
    assert one.states[0] == before
    assert one.answer(1, 1) == "dropped"
    assert one.counts() == {"answered": 1, "rejected": 1}


@both
def test_an_answer_for_another_path_is_not_taken_for_this_one(prober, program):
    one = prober(program)
    one.configure(1, "10.0.1.1", "10.0.1.2")
    one.sent(1)
    assert one.answer(1, 1, source="10.0.1.2") == "passed"  # nobody with these addresses
    one.configs[0]["ifindex"] = 9
    assert one.answer(1, 1) == "dropped"
    assert one.answer(1, 1, ssid=0) == "dropped"
    assert one.answer(1, 1, ssid=65535) == "dropped"
    # All are counted where they came from: on the path between these addresses.
    assert one.counts() == {"rejected": 3}
    assert one.counts(1) == {}


@both
@pytest.mark.kernel
def test_losses_are_told_apart_by_direction(prober, program):
    one = prober(program)
    one.sent(*range(1, 11))
    one.answer(1, 1)
    one.answer(2, 2)
    one.answer(5, 3)  # 3 and 4 never reached the reflector
    assert one.counts() == {"answered": 3, "forward_lost": 2}
    one.answer(8, 6)  # 6 and 7 did, their answers got lost
    assert one.counts() == {"answered": 4, "forward_lost": 2, "reverse_lost": 2}
    one.answer(10, 7)  # one of each kind is not a loss on both ways
    assert one.counts() == {"answered": 5, "forward_lost": 3, "reverse_lost": 2}


@both
def test_a_gap_is_told_once_until_rearmed(prober, program):
    one = prober(program)
    one.sent(*range(1, 12))
    one.answer(1, 1)
    for seq in (4, 7):
        one.answer(seq, seq)
    (alarm,) = one.alarms()
    assert (alarm.kind, alarm.seq, alarm.count) == (MISSING, 2, 2)
    assert alarm.onset_ns == one.states[0]["window"][2]["sent_ns"]
    assert one.states[0]["marks"] == MARK_MISSING
    one.states[0]["marks"] = 0
    one.answer(8, 8)  # no gap
    one.answer(10, 10)
    (alarm,) = one.alarms()
    assert (alarm.kind, alarm.seq, alarm.count) == (MISSING, 9, 1)


@both
def test_no_gap_is_told_where_nobody_asked(prober, program):
    one = prober(program, flags=IN_USE | WATCH)
    one.sent(1, 2, 3)
    one.answer(1, 1)
    one.answer(3, 3)
    assert one.alarms() == []


@both
def test_an_answer_out_of_order_is_no_loss(prober, program):
    one = prober(program)
    one.sent(1, 2, 3)
    for seq, number in ((1, 1), (3, 3), (2, 2)):
        one.answer(seq, number)
    assert one.states[0]["newest_answered"] == 3
    assert one.counts() == {"answered": 3, "reverse_lost": 1}  # as it looked when 3 came


@both
def test_back_is_told_once(prober, program):
    one = prober(program)
    one.sent(1, 2, 3)
    one.states[0]["marks"] = MARK_SILENT
    one.answer(2, 1)
    one.answer(3, 2)
    (alarm,) = one.alarms()
    assert (alarm.kind, alarm.seq, alarm.onset_ns) == (BACK, 2, one.states[0]["window"][2]["sent_ns"])
    assert one.states[0]["marks"] == 0


@both
def test_lost_then_late(prober, program):
    one = prober(program)
    one.sent(1, *range(2, 70))
    one.states[0]["lost"] = 1  # as `stamp` counted it when 65 went out
    one.answer(1, 1)
    assert one.counts() == {
        "answered": 1,
        "lost": 1,
        "late": 1,
    }  # no counter falls: the loss is their difference


@both
def test_sequence_numbers_wrap(prober, program):
    one = prober(program)
    last = 2**32 - 1
    row = one.states[0]
    row["newest_answered"], row["reflector_seq"] = last - 1, 10
    for seq in (last, 0):
        row["window"][seq % 512] = (time.monotonic_ns() - AGO_NS, seq, 0)
    row["next_seq"] = 1
    one.answer(last, 11)
    one.answer(0, 12)
    assert row["newest_answered"] == 0
    assert one.counts() == {"answered": 2}
    assert one.alarms() == []


@both
def test_a_full_ring_is_counted(prober, program):
    one = prober(program, flags=IN_USE | 8)
    for _ in range(5):
        one.sent(*range(1, 513))
        for seq in range(1, 513):
            one.answer(seq, seq)
    room = 65536 // 40
    assert one.counts()["ring_drops"] == 5 * 512 - len(one.alarms())
    assert room - 1 <= 5 * 512 - one.counts()["ring_drops"] <= room
