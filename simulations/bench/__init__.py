"""The bench: every number that is claimed, measured again, each section alone or all in less than an hour.

A section prints what it measured beside its target and writes `build/bench/NAME.json` as soon as it is
done, so a bench that is cut short has still measured what it says. `report.json` joins the campaigns,
`summary.json` the rows of all sections.
"""

from mapek.simulations.bench.files import joined
from mapek.simulations.bench.plan import Section, sections
from mapek.simulations.bench.run import run_bench, slow

__all__ = ["Section", "joined", "run_bench", "sections", "slow"]
