"""What ships is whole, small, without secrets, and our loop decides over it as it did on the day.

A failure after a change of path_health or link_failover that is meant: record anew with
`python -m mapek.simulations.record_lab simulations/recordings`.
"""

from pathlib import Path

import pytest

from mapek.cli.recorded import deciders
from mapek.simulations.recording import RecordingReader
from mapek.simulations.replay import replay

SHIPPED = sorted((Path(__file__).parents[3] / "simulations" / "recordings").glob("*.mcap"))


def test_there_is_one():
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
async def test_it_replays_alike(path):
    assert path.stat().st_size < 500_000
    analyzers, policies = deciders(RecordingReader(path).about.config, path)
    report = await replay(path, analyzers, policies)
    assert report.alike, report.difference
    assert (report.damage, report.missing, report.unknown, report.withheld) == ("", 0, 0, 0)
    healed = [one for one in report.incidents if one.state == "recovered" and one.policy == "link_failover"]
    assert len(healed) >= 3
    assert report.recorded > 50
