"""The path that jumps from loss to loss raises the alarms of one that follows every probe."""

import heapq
import itertools
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapek.clock import VirtualClock
from mapek.sensors.link_watch_layout import BACK, GAPS, MISSING, SILENT, WATCH, Alarm
from mapek.simulations.radio import FOREVER, Direction, Link, Loss, Uniforms
from mapek.simulations.virtual_path import VirtualPath

MS = 1_000_000
RTT = 60_005  # and bursts at 3 modulo 10: no two things ever fall on the same nanosecond
START = 5 * MS


class Scripted(Link):
    """Loses exactly the steady probes and the bursts' probes that the script names."""

    def __init__(self, steady, bursts=()):
        super().__init__(Loss(), Loss(), Uniforms(np.random.default_rng(0)))
        self.steady, self.bursts = sorted(steady), deque(bursts)

    def next_lost(self, start_ns, interval_ns, first):
        return next((k for k in self.steady if k >= first), (FOREVER - start_ns) // interval_ns)

    def lost_of(self, count, time_ns):
        return [k for k in self.bursts.popleft() if k < count]


def every_probe(steady, bursts, flags, silence_ns, until_ns):
    """bpf/programs/link_watch.bpf.c, probe by probe, with its watchdog timer."""
    queue = [(START + k * MS, 0, "send", k in steady) for k in range((until_ns - START) // MS + 1)]
    queue += [(time_ns, 1 + k, "send", k in lost) for time_ns, lost in bursts for k in range(4)]
    heapq.heapify(queue)
    log, sent = [], []
    newest, newest_sent, silent, missing, running = 0, 0, False, False, False
    while queue and queue[0][0] <= until_ns:
        now, order, what, detail = heapq.heappop(queue)
        if what == "send":
            sent.append(now)
            if not detail:
                heapq.heappush(queue, (now + RTT, order, "answer", len(sent)))
            if flags & WATCH and not silent and not running:
                running = True
                heapq.heappush(queue, (now + silence_ns, 9, "bark", 0))
        elif what == "answer":
            seq, gap = detail, detail - newest - 1
            if gap >= 0:
                if gap and flags & GAPS and not (silent or missing):
                    missing = True
                    log.append(Alarm(now, sent[newest], 0, MISSING, newest + 1, gap))
                newest, newest_sent = seq, sent[seq - 1]
            if silent:
                silent = False
                if flags & WATCH:
                    log.append(Alarm(now, sent[seq - 1], 0, BACK, seq, 0))
        else:
            running = False
            if not flags & WATCH or silent or newest == len(sent):
                continue
            waited = now - sent[newest]
            if waited < silence_ns:
                running = True
                heapq.heappush(queue, (now + silence_ns - waited, 9, "bark", 0))
            else:
                silent = True
                log.append(Alarm(now, newest_sent, 0, SILENT, newest + 1, len(sent) - newest))
    return log


@settings(deadline=None, max_examples=300)
@given(
    steady=st.sets(st.integers(0, 40)) | st.sets(st.integers(3, 9)),
    bursts=st.lists(
        st.tuples(st.integers(600_000, 4_400_000).map(lambda t: 10 * t + 3), st.sets(st.integers(0, 3))),
        max_size=4,
        unique_by=lambda one: one[0] // MS,
    ),
    flags=st.sampled_from([WATCH, GAPS, WATCH | GAPS]),
    silence_ns=st.sampled_from([500_000, 1_300_000, 3_700_000]),
)  # fmt: skip
def test_its_alarms_are_those_of_every_probe(steady, bursts, flags, silence_ns):
    bursts = sorted(bursts, key=lambda one: one[0])
    clock, log = VirtualClock(), []
    path = VirtualPath(0, Scripted(steady, [lost for _, lost in bursts]), clock, MS, RTT, log.append)
    path.flags, path.silence_ns = flags, silence_ns
    path.start(START)
    for time_ns, _ in bursts:
        clock.call_at(time_ns, lambda: path.burst(4))
    clock.advance_to(50 * MS)
    assert log == every_probe(steady, bursts, flags, silence_ns, 50 * MS)
    assert path.sent(50 * MS) == 46 + 4 * len(bursts)
    lost = len(steady) + sum(len(one) for _, one in bursts)
    assert path.answered(50 * MS + RTT) == path.sent(50 * MS) - lost
    assert path.forward_lost + path.backward_lost == path.lost_total == lost
    clock.advance_to(80 * MS + 500_000)
    assert path.window_loss(80 * MS + 500_000) == pytest.approx(lost / path.sent(80 * MS), abs=1e-9)


def test_silence_and_return_by_hand():
    clock, log = VirtualClock(), []
    path = VirtualPath(0, Scripted([2, 3]), clock, MS, RTT, log.append)
    path.silence_ns = 500_000
    path.start(0)
    clock.advance_to(10 * MS)
    assert log == [Alarm(2_500_000, 1_000_000, 0, SILENT, 3, 1), Alarm(4_060_005, 4_000_000, 0, BACK, 5, 0)]
    assert path.last_answer_ns(10 * MS) == 9 * MS + RTT
    assert not path.is_silent(10 * MS)


def direction(loss, seed=1):
    return Direction(loss, Uniforms(np.random.default_rng(seed)))


@pytest.mark.parametrize(
    "loss", [Loss(0.001), Loss(0.02), Loss(0.3), Loss(0.0, 0.5, 1.0, 0.05), Loss(0.01, 1.0, 0.3, 0.1)]
)
def test_the_share_lost_is_the_one_asked_for(loss):
    link = Link(loss, Loss(), Uniforms(np.random.default_rng(7)))
    n, k, lost = 2_000_000, -1, 0
    while (k := link.next_lost(0, MS, k + 1)) < n:
        lost += 1
        link.forget(k * MS)
    # bursts make neighbours alike: allow for the number of independent spells
    spells = n if not loss.bad_s else n * MS / 1e9 / (loss.good_s + loss.bad_s)
    margin = 5 * (loss.mean * (1 - loss.mean) / spells) ** 0.5
    assert lost / n == pytest.approx(loss.mean, abs=margin)


def test_bursts_are_bursts():
    link = Link(Loss(0.0, 0.9, 2.0, 0.05), Loss(), Uniforms(np.random.default_rng(3)))
    ks, k = [], -1
    while len(ks) < 3000:
        k = link.next_lost(0, MS, k + 1)
        ks.append(k)
    together = sum(b - a == 1 for a, b in itertools.pairwise(ks)) / len(ks)
    assert together > 0.8  # independent losses of 2.2 % would be 0.022


def test_both_directions_lose():
    link = Link(Loss(0.1), Loss(0.3), Uniforms(np.random.default_rng(3)))
    lost = sum(len(link.lost_of(10, 0)) for _ in range(20_000)) / 200_000
    assert lost == pytest.approx(1 - 0.9 * 0.7, abs=0.006)
    forth = sum(link.lost_forth(0) for _ in range(100_000)) / 100_000
    assert forth == pytest.approx(0.1 / 0.37, abs=0.01)
    link.forward.silent = True
    assert link.lost_of(3, 0) == [0, 1, 2]
    assert link.next_lost(0, MS, 17) == 17
    assert link.lost_forth(0)


@pytest.mark.parametrize(
    "wrong", [{"rate": 1.1}, {"rate": -0.1}, {"bad_s": 1.0}, {"good_s": -1.0, "bad_s": 1.0}]
)
def test_an_impossible_loss_is_refused(wrong):
    with pytest.raises(ValueError, match="Loss"):
        Loss(**wrong)


def test_no_loss_is_for_ever():
    link = Link(Loss(), Loss(), Uniforms(np.random.default_rng(3)))
    assert link.next_lost(0, MS, 0) * MS >= FOREVER
    assert link.lost_of(100, 5) == []
    assert direction(Loss(0.5)).at(5) == (0.5, FOREVER)
