"""mapek closes an autonomic loop on a Linux mesh node: eBPF sensors, a verdict, a verified repair.

Importing this is cheap: each public name loads its module when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mapek.assembly import build as build
    from mapek.clock import RealClock as RealClock
    from mapek.clock import VirtualClock as VirtualClock
    from mapek.config import Config as Config
    from mapek.config import load_config as load_config
    from mapek.config import take as take
    from mapek.contracts import Analyzer as Analyzer
    from mapek.contracts import Options as Options
    from mapek.contracts import Policy as Policy
    from mapek.contracts import Status as Status
    from mapek.contracts import Surroundings as Surroundings
    from mapek.contracts import Touchpoint as Touchpoint
    from mapek.errors import ConfigError as ConfigError
    from mapek.errors import MapekError as MapekError
    from mapek.knowledge import Knowledge as Knowledge
    from mapek.loop import Loop as Loop
    from mapek.model import Applied as Applied
    from mapek.model import Entity as Entity
    from mapek.model import Event as Event
    from mapek.model import Frame as Frame
    from mapek.model import Incident as Incident
    from mapek.model import Inquiry as Inquiry
    from mapek.model import Metric as Metric
    from mapek.model import Plan as Plan
    from mapek.model import Schema as Schema
    from mapek.model import Step as Step
    from mapek.model import Suspicion as Suspicion
    from mapek.model import Symptom as Symptom

__version__: Final = "0.1.0"

_HOMES: Final = {
    "clock": "RealClock VirtualClock",
    "config": "Config load_config take",
    "contracts": "Analyzer Options Policy Status Surroundings Touchpoint",
    "errors": "ConfigError MapekError",
    "knowledge": "Knowledge",
    "assembly": "build",
    "loop": "Loop",
    "model": "Applied Entity Event Frame Incident Inquiry Metric Plan Schema Step Suspicion Symptom",
}
_WHERE: Final = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [*_WHERE]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"mapek.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
