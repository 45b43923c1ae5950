"""What a person is told while a campaign runs."""

from __future__ import annotations

import io

from mapek.simulations.agent import AgentEvent, Mapek
from mapek.simulations.campaign import Series, Spell
from mapek.simulations.faults import DROP_BOTH, gray
from mapek.simulations.told import Teller
from tests.unit.simulations.results import campaign, trial


def test_lines():
    out = io.StringIO()
    teller, contender = Teller(out), Mapek("fast")
    teller.opened(contender)
    teller.trial(contender, Series(DROP_BOTH, 1, 6), trial(DROP_BOTH, 0, 2.5, family=6))
    teller.trial(contender, Series(gray(30), 1), trial(gray(30), 0, 2.5, lost=1))
    teller.trial(contender, Series(DROP_BOTH, 1), trial(DROP_BOTH, 1, 200.0))
    teller.failed(contender, Series(DROP_BOTH, 1), "wait for flow: nothing")
    spell = campaign().spells[1]
    teller.spell(contender, Spell(8, hogs=True, fault=gray(0.1)), spell.result)
    teller.event(
        AgentEvent("a", "switch", 5, {"peer": "b", "from": "l0", "to": "l1", "reason": "path_silent"})
    )
    teller.event(AgentEvent("a", "incident", 5, {"state": "unrecovered", "entity": "path b/l0"}))
    teller.event(AgentEvent("a", "suspicion", 5, {"entity": "path b/l0"}))
    lines = [line.split(" s  ", 1)[1] for line in out.getvalue().splitlines()]
    stages = ["  a: detect 2.00 + plan 0.10 + act 0.10 + verify 0.80 ms"]
    stages += [stages[0].replace("a:", "b:")]
    assert lines == [
        "mapek fast: runs on every node",
        "drop_both IPv6 #1 on l0: healed, outage 2.5 ms",
        *stages,
        "loss_30_both #1 on l0: healed, 0.100 % lost, path changes 1",
        *stages,
        "drop_both #2 on l0: NOT HEALED, outage 200.0 ms",
        *stages,
        "drop_both: not judged: wait for flow: nothing",
        "no fault under loss_0.1_both beside 2 CPU hogs for 8 s: 3 suspicions, 1 failovers; "
        "1.2 % CPU, 30 MB PSS a node",
        "  a: l0 -> l1 (path_silent)",
        "  a: path b/l0 NOT recovered",
    ]
