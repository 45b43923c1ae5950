"""The real loop over virtual links: it heals what is dead, leaves what is well, and does so again by seed."""

import io

import pytest

from mapek.analyzers.path_health import PathHealth
from mapek.model import Frame, Incident, Suspicion, Symptom
from mapek.policies.link_failover import LinkFailover
from mapek.simulations.radio import Loss
from mapek.simulations.recording import About, RecordingWriter
from mapek.simulations.replay import replay
from mapek.simulations.virtual_mesh import VirtualLink, VirtualMesh, two_links

FAST = {"interval_ms": 1.0}
DEFAULT = {"interval_ms": 10.0}


def mesh(links=None, options=FAST, seed=0, tap=None, paths=2):
    return VirtualMesh(
        two_links(paths), [PathHealth({})], [LinkFailover({})], links or {}, options, seed, tap
    )


def lossy(share, paths=2):
    return {f"b/l{k}": VirtualLink(Loss(share / 2), Loss(share / 2)) for k in range(paths)}


@pytest.mark.parametrize("options", [FAST, DEFAULT], ids=["fast", "default"])
@pytest.mark.parametrize(
    "directions", [{}, {"backward": False}, {"forward": False}], ids=["both", "forth", "back"]
)
async def test_a_silent_path_is_left_once_and_the_way_is_proved(options, directions):
    seen = []
    async with mesh(options=options, tap=lambda now, item: seen.append((now, item))) as node:
        await node.run(3.0)
        assert node.routes.active == {"b": "b/l0"}
        failed_ns = node.clock.now_ns()
        node.fail("b/l0", **directions)
        await node.run(1.0)
        assert node.routes.active == {"b": "b/l1"}
        assert len(node.routes.moves) == 2
        interval = options["interval_ms"] * 1e6
        # one interval to the missed probe, half of one until it counts as missed, grace and wake-ups
        assert node.routes.moves[1][0] - failed_ns < 1.5 * interval + 1.2e6
    (last,) = {one.id: one for _, one in seen if isinstance(one, Incident)}.values()
    assert last.state == "recovered"
    assert failed_ns - interval - 100_000 <= last.onset_ns <= failed_ns
    assert last.onset_ns < last.detected_ns <= last.planned_ns <= last.acted_ns < last.recovered_ns
    assert node.loop.supervision.failures == {}


async def test_when_nobody_answers_nothing_is_moved():
    seen = []
    async with mesh(tap=lambda now, item: seen.append(item)) as node:
        await node.run(3.0)
        node.fail("b/l0")
        node.fail("b/l1")
        await node.run(5.0)
        assert len(node.routes.moves) == 1
        assert "peer_gone" in {one.kind for one in seen if isinstance(one, Symptom)}
        node.heal("b/l1")
        await node.run(5.0)
        assert node.routes.active == {"b": "b/l1"}


@pytest.mark.parametrize("share", [0.001, 0.01])
async def test_loss_on_both_paths_moves_nothing(share):
    async with mesh(lossy(share), seed=5) as node:
        await node.run(
            60.0
        )  # what is doubted at the start, before much is known, is undone after its hold-down
        begun = len(node.routes.moves)
        await node.run(300.0)
        assert begun == len(node.routes.moves) > 0


async def test_loss_on_one_path_moves_away_from_it():
    seen = []
    async with mesh(tap=lambda now, item: seen.append(item)) as node:
        await node.run(3.0)
        node.lose("b/l0", Loss(0.1), Loss(0.1))
        await node.run(3.0)
        assert node.routes.active == {"b": "b/l1"}
        assert next(one.kind for one in seen if isinstance(one, Symptom)) == "path_gray"


async def test_the_same_seed_is_the_same_run_and_another_is_another():
    async def run(seed):
        log = []
        async with mesh(lossy(0.02), seed=seed, tap=lambda now, one: log.append((now, repr(one)))) as node:
            await node.run(5.0)
        return [one for one in log if "Frame(" not in one[1]]

    one, two, other = await run(1), await run(1), await run(2)
    assert one == two != other
    assert len(one) > 100


async def test_what_it_did_replays_byte_for_byte(tmp_path):
    file = io.BytesIO()
    topology = two_links()
    writer = RecordingWriter(file, About(topology, seed=4))
    async with mesh(lossy(0.005), seed=4, tap=writer) as node:
        await node.run(3.0)
        for _ in range(3):
            node.fail(node.routes.active["b"])
            await node.run(2.0)
            node.heal("b/l0")
            node.heal("b/l1")
            await node.run(8.0)
    writer.finish()
    path = tmp_path / "virtual.mcap"
    path.write_bytes(file.getvalue())
    report = await replay(path, [PathHealth({})], [LinkFailover({})])
    assert report.alike, report.difference
    assert report.recorded > 100
    assert (report.unknown, report.withheld, report.missing, report.damage) == (0, 0, 0, "")
    assert len([one for one in report.incidents if one.state == "recovered"]) >= 3
    other = await replay(path, [PathHealth({"grace_ms": 2.0})], [LinkFailover({})])
    assert not other.alike
    assert other.unknown > 0


async def test_frames_look_like_the_sensor():
    frames = []
    async with mesh(lossy(0.02), tap=lambda _, item: isinstance(item, Frame) and frames.append(item)) as node:
        await node.run(10.5)
    first, last = frames[0], frames[-1]
    assert first.schema.sensor == "link_watch"
    assert len(frames) in (10, 11)
    names = [one.name for one in last.schema.counters]
    sent, answered, lost = (last.counters[:, names.index(one)] for one in ("sent", "answered", "lost"))
    assert (sent > 10_000).all()
    assert (answered <= sent).all()
    assert ((sent - answered) / sent).tolist() == pytest.approx([0.02, 0.02], abs=0.008)
    assert (lost <= sent - answered).all()
    assert (last.histograms[0].sum(axis=1) == answered).all()
    gauges = [one.name for one in last.schema.gauges]
    assert last.gauges[:, gauges.index("round_trip_p99")].tolist() == [60e-6] * 2
    assert (last.gauges[:, gauges.index("window_loss")] < 0.06).all()


async def test_suspicions_are_settled():
    open_ones = set()

    def tap(now, item):
        if isinstance(item, Suspicion) and item.kind == "silence":
            (open_ones.discard if item.cleared else open_ones.add)(item.entity)

    async with mesh(lossy(0.001), tap=tap) as node:
        await node.run(20.0)
    assert open_ones == set()


def test_there_is_no_such_path():
    with pytest.raises(ValueError, match="there is no path b/x"):
        mesh().fail("b/x")
