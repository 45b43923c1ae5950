"""Section `latencies`: from suspicion to verdict to the kernel's answer, over both silence sections' trials.

It measures nothing itself: it reads what `silence-fast` and `silence-default` have left in the folder.
"""

from __future__ import annotations

import json
from typing import Final

from mapek.simulations.bench.judge import TARGETS
from mapek.simulations.bench.plan import PROFILES, Budget
from mapek.simulations.bench.targets import Row
from mapek.simulations.latencies import SPANS
from mapek.simulations.stats import percentile

OVER_GRACE_MS: Final = 0.3
ACT_P50_MS: Final = 0.2
ACT_P99_MS: Final = 1.0


async def measure(budget: Budget) -> list[Row]:
    """p50 and p99 of both spans, by profile."""
    rows: list[Row] = []
    for profile in PROFILES:
        grace = TARGETS[profile].grace_ms
        path = budget.folder / f"silence-{profile}.json"
        found: dict[str, list[float]] = {}
        if path.exists():
            found = json.loads(path.read_text())["samples_ms"]
        judged, acted = (found.get(name, []) for name in SPANS)
        why = "" if found else f"run silence-{profile} first"
        said = f"grace {grace:g} ms; n = {len(judged)}"
        rows += [
            Row(f"{profile}: suspicion to verdict p50", percentile(judged, 50), "ms", None, why or said),
            Row(
                f"{profile}: suspicion to verdict p99",
                percentile(judged, 99),
                "ms",
                grace + OVER_GRACE_MS,
                why or said,
            ),
            Row(
                f"{profile}: verdict's evidence to acknowledgement p50",
                percentile(acted, 50),
                "ms",
                ACT_P50_MS,
                why or f"n = {len(acted)}",
            ),
            Row(
                f"{profile}: verdict's evidence to acknowledgement p99",
                percentile(acted, 99),
                "ms",
                ACT_P99_MS,
                why or f"n = {len(acted)}",
            ),
        ]
    return rows
