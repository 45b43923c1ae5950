"""The demo: two nodes, two links, both profiles, fault after fault, healed before one's eyes, in under 90 s.

Everything is measured on the spot; `build/demo/` gets `report.json` and `timeline.png`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from mapek.errors import FeatureError
from mapek.simulations.agent import Mapek, Profile
from mapek.simulations.bird import Bird, BirdTimers
from mapek.simulations.campaign import CampaignResult, Series, Spell, run_campaign
from mapek.simulations.contender import Contender
from mapek.simulations.faults import DROP_AB, DROP_BA, DROP_BOTH, gray
from mapek.simulations.report import raw, report, table, write_json
from mapek.simulations.told import Teller


@dataclass(frozen=True)
class DemoPlan:
    """How much of everything; the defaults take about a minute."""

    profiles: tuple[Profile, ...] = ("default", "fast")
    trials: int = 3
    gray_percent: float = 30.0
    gray_s: float = 5.0
    quiet_s: float = 8.0
    seed: int = 0

    def series(self) -> tuple[Series, ...]:
        """Each fault that a profile meets, in order."""
        few = max(1, self.trials - 1)
        return (
            Series(DROP_BOTH, self.trials),
            Series(DROP_AB, few),
            Series(DROP_BA, few),
            Series(gray(self.gray_percent, hold_s=self.gray_s), 1),
            Series(DROP_BOTH, few, family=6),
        )


async def run_demo(
    folder: Path = Path("build/demo"),
    plan: DemoPlan | None = None,
    *,
    out: TextIO | None = None,
    peers: tuple[BirdTimers, ...] = (),
) -> dict[str, CampaignResult]:
    """Run the demo and write its report and picture into `folder`; returns the results by profile.

    `peers` adds BIRD with these timers to the same faults. Raises what the lab raises where it cannot run.
    """
    plan, teller = plan or DemoPlan(), Teller(out)
    stream = out or sys.stdout
    ours: dict[str, CampaignResult] = {}
    theirs: list[CampaignResult] = []
    contenders: list[Contender] = [Mapek(profile, listener=teller.event) for profile in plan.profiles]
    contenders += [Bird(timers) for timers in peers]
    for contender in contenders:
        spells = (Spell(plan.quiet_s),) if plan.quiet_s > 0 else ()
        result = await run_campaign(contender, plan.series(), spells, seed=plan.seed, listener=teller)
        if isinstance(contender, Mapek):
            ours[contender.profile] = result
        else:
            theirs.append(result)
    stream.write("\n" + table([*ours.values(), *theirs]) + "\n\n")
    write_json(folder / "report.json", report(ours, theirs))
    write_json(folder / "trials.json", [raw(result) for result in (*ours.values(), *theirs)])
    stream.write(f"{folder / 'report.json'}  {folder / 'trials.json'}")
    try:
        from mapek.simulations.picture import draw

        draw([*ours.values(), *theirs], folder / "timeline.png")
        stream.write(f"  {folder / 'timeline.png'}\n")
    except FeatureError as error:
        stream.write(f"\nno picture: {error}\n")
    return ours
