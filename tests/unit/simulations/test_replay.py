"""The loop decides alike over a recording; what it was never told stays unknown and is counted."""

import io
from ipaddress import ip_address

import pytest

from mapek.clock import VirtualClock
from mapek.contracts import Analyzer, Policy
from mapek.errors import RecordingError
from mapek.knowledge import Knowledge, Path, Peer, Topology
from mapek.loop import Loop
from mapek.model import Entity, Event, Inquiry, Plan, Step, Symptom
from mapek.simulations.recording import About, RecordingWriter
from mapek.simulations.replay import replay

TOPOLOGY = Topology(
    "a", (), [Peer("b", (), (), (Path("b", "w0", ip_address("fe80::2")),), b"0123456789abcdef")]
)
PATH = TOPOLOGY.paths()[0].entity
MS = 1_000_000


class Asks(Analyzer):
    """Asks about each silence, and calls it a death when no answer is good."""

    name = "asks"

    def __init__(self, kind="probe_paths", patience=0):
        self.kind, self.patience, self.count = kind, patience, 0

    def on_event(self, event, knowledge):
        if event.kind == "path.silent":
            self.count += 1
            if self.count > self.patience:
                yield Inquiry(f"asks:{self.count}", event.entity, self.kind, MS)
        elif event.kind == "inquiry.answer" and event.fields["kind"] == self.kind and not event.fields["ok"]:
            yield Symptom(event.entity, "path_dead", 1.0, event.time_ns, event.time_ns - MS)


class Moves(Policy):
    name = "moves"

    def plan(self, symptom, knowledge):
        expect = Inquiry("", symptom.entity, "probe_route", 5 * MS)
        return Plan(self.name, symptom.entity, (Step("t", "move"),), expect, 5 * MS)


class World:
    """Effects in virtual time: nobody answers on the path, the move is done, and the new way answers."""

    def __init__(self, clock):
        self.clock, self.feed, self.deaf = clock, None, set()

    def later(self, delay_ns, entity, kind, fields):
        due = self.clock.now_ns() + delay_ns
        self.clock.call_at(due, lambda: self.feed(Event(due, entity, kind, fields)))

    def ask(self, inquiry):
        if inquiry.kind in self.deaf:
            return False
        good = inquiry.kind == "probe_route"
        fields = {"id": inquiry.id, "kind": inquiry.kind, "ok": good, "asked_ns": self.clock.now_ns()}
        self.later(MS // 2, inquiry.entity, "inquiry.answer", fields)
        return True

    def carry_out(self, plan_id, plan):
        now = self.clock.now_ns()
        fields = {"id": plan_id, "planned_ns": now, "acked_ns": now + 50_000, "changed": True, "detail": "",
                  "policy": plan.policy}  # fmt: skip
        self.later(60_000, plan.entity, "plan.acted", fields)


async def live(path, *, silences=5, deaf=(), analyzer=None, cut=None):
    clock = VirtualClock(1_000 * MS)
    world = World(clock)
    world.deaf = set(deaf)
    file = io.BytesIO()
    writer = RecordingWriter(file, About(TOPOLOGY, seed=3))
    loop = Loop(
        Knowledge(TOPOLOGY),
        clock,
        (),
        [analyzer or Asks()],
        [Moves()],
        effects=world,
        tap=writer,
        replay=True,
    )
    world.feed = loop.feed
    async with loop:
        for _ in range(silences):
            clock.advance_to(clock.now_ns() + 100 * MS)
            loop.feed(Event(clock.now_ns() - 1000, PATH, "path.silent"))
        clock.advance_to(clock.now_ns() + 100 * MS)
        loop.feed(Event(clock.now_ns(), PATH, "tick"))
    writer.finish()
    path.write_bytes(file.getvalue()[:cut])
    return loop


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.mcap"


async def test_the_same_loop_decides_the_same_byte_for_byte(path):
    await live(path)
    seen = []
    report = await replay(path, [Asks()], [Moves()], show=lambda now, decision: seen.append(decision))
    assert report.alike, report.difference
    # 5 inquiries, symptoms, plans, proofs asked, and incidents in 4 states
    assert report.recorded == report.replayed == len(seen) == 5 * 8
    assert (report.asked, report.unknown, report.withheld, report.missing) == (15, 0, 0, 0)
    assert [one.state for one in report.incidents] == ["recovered"] * 5
    plain = report.plain()
    assert plain["incidents"][0]["mttr_ms"] == pytest.approx(1.56)
    assert plain["incidents"][0]["stages_ms"]["verify"] == pytest.approx(0.51)
    assert plain["decisions"] == {"recorded": 40, "replayed": 40, "alike": True}
    assert report.seconds == pytest.approx(0.5)


async def test_it_replays_the_same_twice(path):
    await live(path)
    assert (await replay(path, [Asks()], [Moves()])).plain() == (
        await replay(path, [Asks()], [Moves()])
    ).plain()


async def test_another_policy_is_a_difference_and_what_it_wants_is_unknown(path):
    await live(path)

    class Waits(Moves):
        def plan(self, symptom, knowledge):
            return Plan(self.name, symptom.entity, (Step("t", "wait"),), None, MS)

    report = await replay(path, [Asks()], [Waits()])
    assert not report.alike
    assert report.difference.number > 2
    assert '"move"' in report.difference.recorded
    assert '"wait"' in report.difference.replayed
    assert (report.asked, report.unknown) == (10, 5)
    assert report.withheld == 10
    assert [one.state for one in report.incidents] == ["detected"]


async def test_questions_that_were_never_asked_are_unknown(path):
    await live(path)
    report = await replay(path, [Asks(kind="probe_moon")], [Moves()])
    assert (report.asked, report.unknown, report.incidents) == (5, 5, ())
    assert report.plain()["questions"]["unknown_share"] == 1.0


async def test_an_answer_of_a_question_not_asked_this_time_is_withheld(path):
    await live(path)
    report = await replay(path, [Asks(patience=2)], [Moves()])
    # ids 3 to 5 were asked at the same places; plans count from 1 again, and the end of plan 1 was long ago
    assert not report.alike
    assert (report.asked, report.unknown, report.withheld) == (6, 3, 12)
    assert [one.state for one in report.incidents] == ["detected"]


async def test_no_policy_at_all(path):
    await live(path)
    report = await replay(path, [Asks()], [])
    assert report.replayed < report.recorded
    assert [one.state for one in report.incidents] == ["detected"]


async def test_a_question_nobody_took_is_refused_again(path):
    loop = await live(path, deaf=["probe_route"])
    assert {one.state for one in loop.incidents.ended} == {"unrecovered"}
    report = await replay(path, [Asks()], [Moves()])
    assert report.alike, report.difference
    assert [one.state for one in report.incidents] == ["unrecovered"] * 5


async def test_a_damaged_recording_is_replayed_up_to_the_damage(path):
    await live(path, silences=400)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    report = await replay(path, [Asks()], [Moves()])
    assert "ends early" in report.damage
    assert report.alike, report.difference
    assert 0 < report.recorded < 3200


async def test_no_recording(path):
    path.write_bytes(b"no")
    with pytest.raises(RecordingError):
        await replay(path, [], [])


async def test_an_empty_recording_is_alike(path):
    path.write_bytes(b"")
    file = io.BytesIO()
    RecordingWriter(file, About(TOPOLOGY)).finish()
    path.write_bytes(file.getvalue())
    report = await replay(path, [Asks()], [Moves()])
    assert (report.alike, report.inputs, report.seconds) == (True, 0, 0.0)
    assert Entity("path", "b/w0") == report.about.topology.paths()[0].entity
