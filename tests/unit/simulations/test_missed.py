"""A fault that met no traffic says nothing and is tried again, but not for ever."""

from __future__ import annotations

import random

import pytest

from mapek.simulations import campaign
from mapek.simulations.agent import Mapek
from mapek.simulations.campaign import Listener, Series
from mapek.simulations.faults import DROP_AB, DROP_BA, DROP_BOTH
from mapek.simulations.trial import MissedError, _affected
from tests.unit.simulations.results import trial


@pytest.mark.parametrize(
    ("fault", "used", "expected"),
    [
        (DROP_BOTH, ("l0", "l1"), ("l0", "l1")),
        (DROP_AB, ("l0", "l1"), ("l0",)),
        (DROP_BA, ("l0", None), (None,)),
    ],
)
def test_affected_directions(fault, used, expected):
    assert _affected(fault, used) == expected


@pytest.mark.parametrize(("misses", "judged", "failed"), [(0, 3, 0), (3, 3, 0), (5, 1, 2), (99, 0, 3)])
async def test_misses(monkeypatch, misses, judged, failed):
    left = misses

    async def missing_trial(*_, number, **__):
        nonlocal left
        if left:
            left -= 1
            raise MissedError("fault", "wire l0", "the traffic had just left it", "try again")
        return trial(DROP_BOTH, number, 3.0)

    monkeypatch.setattr(campaign, "run_trial", missing_trial)
    run = campaign._run_series
    result = await run(Mapek("fast"), None, Series(DROP_BOTH, 3), None, random.Random(0), Listener())  # type: ignore[arg-type]
    assert (len(result.trials), len(result.failed)) == (judged, failed)
