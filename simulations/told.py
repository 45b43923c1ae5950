"""What a person sees while a campaign runs: each move of a node as it happens, each trial with its stages."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from mapek.simulations.agent import AgentEvent
from mapek.simulations.campaign import Listener, Series, Spell
from mapek.simulations.contender import Contender
from mapek.simulations.quiet import QuietResult
from mapek.simulations.trial import TrialResult


class Teller(Listener):
    """Writes lines to `out`; agents' switches too when their events are handed to `event`."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._start = time.monotonic_ns()

    def say(self, text: str) -> None:
        """One line, with the seconds since the start."""
        self._out.write(f"{(time.monotonic_ns() - self._start) / 1e9:7.2f} s  {text}\n")
        self._out.flush()

    def event(self, event: AgentEvent) -> None:
        """A line of an agent; only what changes the traffic's way is worth one here."""
        fields = event.fields
        if event.kind == "switch":
            way = f"{fields.get('from') or 'nothing'} -> {fields.get('to')}"
            self.say(f"  {event.node}: {way} ({fields.get('reason')})")
        elif event.kind == "incident" and fields.get("state") == "unrecovered":
            self.say(f"  {event.node}: {fields.get('entity')} NOT recovered")

    def opened(self, contender: Contender) -> None:
        """The contender runs."""
        self.say(f"{contender.name}: runs on every node")

    def trial(self, contender: Contender, series: Series, result: TrialResult) -> None:
        """The trial's verdict by the flow, and the nodes' stages."""
        word = "healed" if result.rescued else "NOT HEALED"
        version = "IPv6 " if result.family == 6 else ""
        text = f"{result.fault} {version}#{result.number + 1} on {result.wire}: {word}, "
        if series.fault.gray:
            text += f"{result.lost_percent:.3f} % lost, path changes {result.changes}"
        else:
            text += f"outage {result.outage_ms:.1f} ms"
        if result.stall_ms >= 1.0:
            text += f" (machine stalled {result.stall_ms:.1f} ms)"
        self.say(text)
        for stage in result.stages:
            self.say(
                f"  {stage.node}: detect {stage.detect:.2f} + plan {stage.plan:.2f} + act {stage.act:.2f}"
                f" + verify {stage.verify:.2f} ms"
            )

    def failed(self, contender: Contender, series: Series, why: str) -> None:
        """A trial that could not be judged."""
        self.say(f"{series.fault.name}: not judged: {why}")

    def spell(self, contender: Contender, spell: Spell, result: QuietResult) -> None:
        """A quiet spell's count."""
        beside = f" beside {result.hogs} CPU hogs" if result.hogs else ""
        under = f" under {spell.fault.name}" if spell.fault else ""
        told = "" if result.suspicions is None else f"{result.suspicions} suspicions, "
        self.say(
            f"no fault{under}{beside} for {result.seconds:.0f} s: {told}{result.failovers} failovers; "
            f"{result.cpu_percent:.1f} % CPU, {result.usage.pss_mb:.0f} MB PSS a node"
        )
