"""One path as link_watch's kernel programs see it, in virtual time: probes, answers, watchdog, window.

It acts only when a probe is lost, and counts the others in between: at 1 kHz and 1 % loss that is a hundredth
of the events. It follows bpf/programs/link_watch.bpf.c; a test holds it to a probe-by-probe model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from mapek.clock import Clock, Timer
from mapek.sensors.link_watch_layout import ANSWER, ANSWERS, BACK, GAPS, MISSING, SILENT, WATCH, WINDOW, Alarm
from mapek.sensors.link_watch_paths import LEAST_SILENCE_NS, UNKNOWN_SILENCE_NS
from mapek.simulations.radio import Link

KNOWN_AFTER: Final = 16
"""Answers after which the round trip counts as known."""


class VirtualPath:
    """Probes on `link` every `interval_ns`; `interval_ns` 0 for bursts only.

    Args:
        index: the path's number in alarms.
        rtt_ns: round-trip time, which does not vary.
        raise_alarm: takes what the kernel's ring buffer would bring.
    """

    def __init__(
        self,
        index: int,
        link: Link,
        clock: Clock,
        interval_ns: int,
        rtt_ns: int,
        raise_alarm: Callable[[Alarm], None],
    ) -> None:
        self.index, self.link, self.rtt_ns = index, link, rtt_ns
        self._clock, self._interval_ns, self._alarm = clock, interval_ns, raise_alarm
        self.flags = WATCH
        self.silent = self.missing = False
        self.silence_ns = UNKNOWN_SILENCE_NS + interval_ns
        self.forward_lost = self.backward_lost = self.lost_total = 0
        self._left_window = 0
        self._start_ns = -1
        self._burst_sent = 0
        self._bursts: deque[tuple[int, int]] = deque(maxlen=64)
        """(time, probes) of the last bursts."""
        self._burst_answered_ns: deque[int] = deque(maxlen=8)
        self._lost: deque[tuple[int, int]] = deque()
        """(sequence number, send time) of the lost ones in the window."""
        self._open: deque[tuple[int, int]] = deque()
        """The lost ones since the newest answered one."""
        self._next_lost = 0
        self._losing: Timer | None = None
        self._bark: Timer | None = None
        self._answer: Timer | None = None

    # -- counting ----------------------------------------------------------------------------------------

    def start(self, start_ns: int) -> None:
        """Begin to probe, the first time at `start_ns`."""
        self._start_ns = start_ns
        if self._interval_ns:
            self._plan_loss(0)

    def _steady(self, now_ns: int) -> int:
        """Steady probes sent up to now."""
        if self._start_ns < 0 or not self._interval_ns or now_ns < self._start_ns:
            return 0
        return (now_ns - self._start_ns) // self._interval_ns + 1

    def sent(self, now_ns: int) -> int:
        """All probes sent."""
        return self._steady(now_ns) + self._burst_sent

    def _in_flight(self, now_ns: int) -> int:
        """Probes whose answer is still on its way."""
        since = now_ns - self.rtt_ns
        steady = self._steady(now_ns) - self._steady(since)
        bursts = lost = 0
        for time_ns, count in reversed(self._bursts):
            if time_ns <= since:
                break
            bursts += count
        for _, time_ns in reversed(self._lost):
            if time_ns <= since:
                break
            lost += 1
        return max(steady + bursts - lost, 0)

    def answered(self, now_ns: int) -> int:
        """Answers received."""
        return max(self.sent(now_ns) - self.lost_total - self._in_flight(now_ns), 0)

    def left_window(self, now_ns: int) -> int:
        """Lost probes that 512 later ones have pushed out."""
        edge = self.sent(now_ns) - WINDOW
        while self._lost and self._lost[0][0] <= edge:
            self._lost.popleft()
            self._left_window += 1
        return self._left_window

    def window_loss(self, now_ns: int) -> float:
        """Share of the settled probes of the window without an answer; NaN before the first."""
        self.left_window(now_ns)
        size = min(self.sent(now_ns), WINDOW)
        settled_lost = sum(time_ns + 2 * self.silence_ns < now_ns for _, time_ns in self._lost)
        good = size - len(self._lost) - self._in_flight(now_ns)
        return settled_lost / (good + settled_lost) if good + settled_lost > 0 else float("nan")

    def answered_between(self, first: int, end: int, now_ns: int) -> int:
        """Of the probes first <= sequence number < end, how many have an answer."""
        lost = 0
        for seq, _ in reversed(self._lost):
            if seq < first:
                break
            lost += seq < end
        return max(end - first - lost - self._in_flight(now_ns), 0)

    def last_answered_sent_ns(self, now_ns: int) -> int:
        """Send time of the newest answered probe; 0 if there is none."""
        steady = self._steady(now_ns - self.rtt_ns) - 1
        lost = {time_ns for _, time_ns in self._open}
        while steady >= 0 and self._start_ns + steady * self._interval_ns in lost:
            steady -= 1
        newest = self._start_ns + steady * self._interval_ns if steady >= 0 else 0
        burst = next((sent for sent in reversed(self._burst_answered_ns) if sent + self.rtt_ns <= now_ns), 0)
        return max(newest, burst)

    def last_answer_ns(self, now_ns: int) -> int:
        """When the last answer came; 0 before the first."""
        sent = self.last_answered_sent_ns(now_ns)
        return sent + self.rtt_ns if sent or self.answered(now_ns) else 0

    def settle_silence(self, now_ns: int) -> None:
        """What user space does with every frame: the limit follows the round trip."""
        if self.answered(now_ns) >= KNOWN_AFTER:
            self.silence_ns = max(self._interval_ns // 2, 2 * self.rtt_ns, LEAST_SILENCE_NS)

    # -- what happens ------------------------------------------------------------------------------------

    def changed(self) -> None:
        """The link loses otherwise from now on."""
        now = self._clock.now_ns()
        if self._interval_ns and self._start_ns >= 0:
            self._plan_loss(self._steady(now))
            if self._answer and self._answer.due_ns - self.rtt_ns > now:
                self._answer.cancel()
            if self._open:
                self._await_answer(self._steady(now))

    def _plan_loss(self, first: int) -> None:
        if self._losing:
            self._losing.cancel()
        self._next_lost = self.link.next_lost(self._start_ns, self._interval_ns, first)
        due = self._start_ns + self._next_lost * self._interval_ns
        self._losing = self._clock.call_at(due, self._lose)

    def _lose(self) -> None:
        k = self._next_lost
        now = self._start_ns + k * self._interval_ns
        self._note_lost(k + 1 + self._burst_sent, now)
        self.link.forget(now - 1)
        self._plan_loss(k + 1)
        self._await_answer(k + 1)
        self._arm(now)

    def _note_lost(self, seq: int, time_ns: int) -> None:
        self.lost_total += 1
        if self.link.lost_forth(time_ns):
            self.forward_lost += 1
        else:
            self.backward_lost += 1
        self.left_window(time_ns)
        self._lost.append((seq, time_ns))
        self._open.append((seq, time_ns))

    def _await_answer(self, k: int) -> None:
        """Steady probe `k` will close the gap, unless it is lost: then the next one, and so on."""
        sent = self._start_ns + k * self._interval_ns
        due = sent + self.rtt_ns
        if k == self._next_lost or (self._answer and self._answer.callback and self._answer.due_ns <= due):
            return
        if self._answer:
            self._answer.cancel()

        def answer() -> None:
            later = sum(count for time_ns, count in self._bursts if time_ns > sent)
            self._answered(k + 1 + self._burst_sent - later, sent, due)
            if self._open:
                self._await_answer(k + 1)

        self._answer = self._clock.call_at(due, answer)

    def burst(self, count: int) -> None:
        """Send `count` probes now."""
        now = self._clock.now_ns()
        base = self.sent(now)
        self._burst_sent += count
        lost = [base + 1 + k for k in self.link.lost_of(count, now)]
        for seq in lost:
            self._note_lost(seq, now)
        self._bursts.append((now, count))
        if len(lost) < count:
            self._burst_answered_ns.append(now)
            if self._open or self.silent or self.flags & ANSWERS:
                due = now + self.rtt_ns
                # Of answers in a row only the first can close a gap.
                every = self.flags & ANSWERS
                firsts = [
                    seq
                    for seq in range(base + 1, base + count + 1)
                    if seq not in lost and (every or seq == base + 1 or seq - 1 in lost)
                ]

                def arrive() -> None:
                    for seq in firsts:
                        self._answered(seq, now, due)

                self._clock.call_at(due, arrive)
        if lost and self._interval_ns and self._start_ns >= 0:
            self._await_answer(self._steady(now))
        if lost:
            self._arm(now)

    def _answered(self, seq: int, sent_ns: int, now_ns: int) -> None:
        first: tuple[int, int] | None = None
        gap = 0
        while self._open and self._open[0][0] < seq:
            lost = self._open.popleft()
            first = first or lost
            gap += 1
        if first and self.flags & GAPS and not (self.silent or self.missing):
            self.missing = True
            self._alarm(Alarm(now_ns, first[1], self.index, MISSING, first[0], gap))
        if self.silent:
            self.silent = False
            if self.flags & WATCH:
                self._alarm(Alarm(now_ns, sent_ns, self.index, BACK, seq, 0))
        if self.flags & ANSWERS:
            self._alarm(Alarm(now_ns, sent_ns, self.index, ANSWER, seq, 0))

    def _arm(self, now_ns: int) -> None:
        if self._bark is None and self.flags & WATCH and not self.silent:
            self._bark = self._clock.call_at(now_ns + self.silence_ns, self._look)

    def _look(self) -> None:
        self._bark = None
        now = self._clock.now_ns()
        if not self._open or not self.flags & WATCH or self.silent:
            return
        seq, time_ns = self._open[0]
        if now - time_ns < self.silence_ns:
            self._bark = self._clock.call_at(time_ns + self.silence_ns, self._look)
            return
        self.silent = True
        outstanding = self.sent(now) + 1 - seq
        self._alarm(Alarm(now, self.last_answered_sent_ns(now), self.index, SILENT, seq, outstanding))

    def is_silent(self, now_ns: int) -> bool:
        """Has the oldest unanswered probe waited too long?"""
        return bool(self._open) and now_ns - self._open[0][1] >= self.silence_ns

    def stop(self) -> None:
        """Send nothing any more."""
        for timer in (self._losing, self._bark, self._answer):
            if timer:
                timer.cancel()
        self._losing = self._bark = self._answer = None
        self._interval_ns = 0
