"""`/metrics` and `/health` over HTTP, read from the loop's memory; on loopback unless told otherwise.

Importing this package loads nothing heavy; `serve` loads prometheus_client, before the first scrape needs it.
"""

from __future__ import annotations

from mapek.service.serve import Service, serve
from mapek.service.state import LoopView, SensorView, view_of

__all__ = ["Service", "serve", "LoopView", "SensorView", "view_of"]
