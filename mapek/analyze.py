"""Analyze: hands every input to every analyzer and gathers what they find.

The analyzers are asked in the order of the configuration; one that raises is counted and left out of
this input only.
"""

from __future__ import annotations

from collections.abc import Iterable

from mapek.contracts import Analyzer
from mapek.knowledge import Knowledge
from mapek.model import Finding, Frame, Input
from mapek.supervision import Supervision


class Analyze:
    """The analyzers of one loop."""

    def __init__(self, analyzers: Iterable[Analyzer], knowledge: Knowledge, supervision: Supervision) -> None:
        self._analyzers = tuple(analyzers)
        self._knowledge, self._supervision = knowledge, supervision

    def start(self) -> None:
        for analyzer in self._analyzers:
            self._supervision.call(analyzer.name, None, analyzer.start, self._knowledge)

    def findings(self, item: Input) -> list[Finding]:
        """What the analyzers make of `item`, in order."""
        found: list[Finding] = []
        for analyzer in self._analyzers:
            found += self._supervision.call(analyzer.name, (), self._ask, analyzer, item)
        return found

    def _ask(self, analyzer: Analyzer, item: Input) -> tuple[Finding, ...]:
        # a generator runs here, inside the supervised call
        if isinstance(item, Frame):
            return tuple(analyzer.on_frame(item, self._knowledge))
        return tuple(analyzer.on_event(item, self._knowledge))
