"""How long the agents took from one thought to the next, by what they say."""

from __future__ import annotations

from collections.abc import Iterator

from mapek.simulations.agent import AgentEvent
from mapek.simulations.campaign import CampaignResult
from mapek.simulations.stats import spread
from mapek.simulations.trial import TrialResult

SPANS = ("suspicion_to_verdict", "verdict_to_acknowledged")


def samples(result: CampaignResult) -> dict[str, list[float]]:
    """Every span in ms over silent faults: suspicion to verdict, verdict to the kernel's answer.

    The verdict carries the stamp of the evidence that it rests on, the end of the inquiry. Suspicions that
    were refuted, and those of other paths than the incident's, are not counted.
    """
    judged: list[float] = []
    acted: list[float] = []
    for series in result.series:
        if series.series.fault.gray:
            continue
        for trial in series.trials:
            judged += _suspicion_to_verdict(trial)
            acted += [stage.plan + stage.act for stage in trial.stages]
    return {"suspicion_to_verdict": judged, "verdict_to_acknowledged": acted}


def latencies(result: CampaignResult) -> dict[str, dict[str, float | None]]:
    """Percentiles of `samples`, in ms."""
    return {name: spread(values) for name, values in samples(result).items()}


def _suspicion_to_verdict(trial: TrialResult) -> list[float]:
    found = []
    for event in trial.events:
        if event.kind != "incident" or event.fields.get("state") != "recovered":
            continue
        verdict = event.number("detected_ns")
        if verdict is not None and (before := list(_suspicions(trial, event, verdict))):
            found.append((verdict - max(before)) / 1e6)
    return found


def _suspicions(trial: TrialResult, incident: AgentEvent, verdict: int) -> Iterator[int]:
    for event in trial.events:
        if (
            event.kind == "suspicion"
            and event.node == incident.node
            and event.fields.get("entity") == incident.fields.get("entity")
            and trial.started_ns <= event.time_ns <= verdict
        ):
            yield event.time_ns
