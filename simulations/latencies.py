"""How long the agents took from one thought to the next, by what they say."""

from __future__ import annotations

from mapek.simulations.campaign import CampaignResult
from mapek.simulations.stats import spread
from mapek.simulations.trial import TrialResult


def latencies(result: CampaignResult) -> dict[str, dict[str, float | None]]:
    """Percentiles in ms over silent faults: suspicion to verdict, verdict to the kernel's answer."""
    judged: list[float] = []
    acted: list[float] = []
    for series in result.series:
        if series.series.fault.gray:
            continue
        for trial in series.trials:
            judged += _suspicion_to_verdict(trial)
            acted += [stage.plan + stage.act for stage in trial.stages]
    return {"suspicion_to_verdict": spread(judged), "verdict_to_acknowledged": spread(acted)}


def _suspicion_to_verdict(trial: TrialResult) -> list[float]:
    found = []
    for event in trial.events:
        if event.kind != "incident" or event.fields.get("state") != "recovered":
            continue
        verdict = event.number("detected_ns")
        if verdict is None:
            continue
        before = [
            other.time_ns
            for other in trial.events
            if other.kind == "suspicion"
            and other.node == event.node
            and trial.started_ns <= other.time_ns <= verdict
        ]
        if before:
            found.append((verdict - max(before)) / 1e6)
    return found
