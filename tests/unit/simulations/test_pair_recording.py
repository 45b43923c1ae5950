"""The recording that the demo shows where there is no lab: small, whole, and decided again as it was."""

from __future__ import annotations

from pathlib import Path

from mapek.cli.recorded import deciders
from mapek.simulations.record import LIMIT
from mapek.simulations.recording import RecordingReader
from mapek.simulations.replay import replay

PAIR = Path(__file__).parents[3] / "simulations/recordings/pair.mcap"
AGAIN = "if the code is meant to decide otherwise now, record anew, as root: " + (
    ".venv/bin/python -m mapek.simulations.record simulations/recordings/pair.mcap"
)


async def test_it_is_decided_alike_byte_for_byte():
    report = await replay(PAIR, *deciders(RecordingReader(PAIR).about.config, PAIR))
    assert report.difference is None, f"{report.difference}; {AGAIN}"
    assert report.replayed == report.recorded > 50, AGAIN
    assert (report.damage, report.missing, report.unknown, report.withheld) == ("", 0, 0, 0), AGAIN
    kinds = [one.kind for one in report.incidents if one.state == "recovered" and one.acted_ns]
    assert kinds.count("path_dead") >= 2, AGAIN
    assert "path_gray" in kinds, AGAIN
    assert all(one.onset_ns <= one.detected_ns <= one.recovered_ns for one in report.incidents), AGAIN


async def test_other_options_decide_otherwise_and_it_shows():
    config = dict(RecordingReader(PAIR).about.config)
    analyzers, policies = deciders(config, PAIR)
    report = await replay(PAIR, analyzers, [])
    assert report.difference is not None
    assert not any(one.acted_ns for one in report.incidents)
    assert policies


def test_it_is_small_and_holds_no_secret():
    data = PAIR.read_bytes()
    assert len(data) <= LIMIT
    about = RecordingReader(PAIR).about
    assert about.config["profile"] == "fast"
    assert all(not peer.key for peer in about.topology.peers.values())
