"""What every phase may read: recent history, the topology, and the few facts that phases share.

It is all in memory and belongs to the loop's thread; what must outlive the process is in the journal
(`mapek.knowledge.journal`, which imports SQLite and is therefore a module of its own).
"""

from __future__ import annotations

from mapek.errors import PluginError
from mapek.knowledge.history import History, Ring, column_name, columns_of
from mapek.knowledge.rates import Rates
from mapek.knowledge.topology import Address, Network, Path, Peer, Topology
from mapek.model import Frame, Value

__all__ = [
    "Address",
    "History",
    "Knowledge",
    "Network",
    "Path",
    "Peer",
    "Rates",
    "Ring",
    "Topology",
    "column_name",
    "columns_of",
]


class Knowledge:
    """Shared by the phases; only the loop writes it, except `facts`.

    Args:
        topology: who the peers are and which paths lead to them.
        boot_id: of the running kernel; what was planned under another one is void.
        depth: frames of each sensor that `history` keeps.

    Attributes:
        now_ns: stamp of the input in hand, the only time that analyzers and policies know.
        latest: the last frame of each sensor.
        rates: its counters as rates per second, by sensor; NaN where unknown.
        history: rates and gauges of the last `depth` frames.
        facts: small facts by name that one phase finds out and others read ("active_path/b": "b/wlan0").
    """

    def __init__(self, topology: Topology, *, boot_id: str = "", depth: int = 512) -> None:
        self.topology = topology
        self.boot_id = boot_id
        self.now_ns = 0
        self.latest: dict[str, Frame] = {}
        self.rates = Rates()
        self.history = History(depth)
        self.facts: dict[str, Value] = {}

    def take(self, frame: Frame) -> None:
        """Make `frame` the latest of its sensor and note its rates and history.

        Raises:
            PluginError: its arrays do not have the shapes and types that its schema promises.
        """
        check_frame(frame)
        self.latest[frame.schema.sensor] = frame
        self.history.append(frame, self.rates.take(frame))


def check_frame(frame: Frame) -> None:
    """Raise PluginError if the arrays of `frame` are not what its schema and entities promise."""
    schema, n = frame.schema, len(frame.entities)
    arrays = [
        ("counters", frame.counters, "uint64", (n, len(schema.counters))),
        ("gauges", frame.gauges, "float64", (n, len(schema.gauges))),
        ("valid", frame.valid, "bool", (n,)),
    ]
    if len(frame.histograms) != len(schema.histograms):
        why = f"{len(frame.histograms)} histograms, {len(schema.histograms)} promised"
        raise _mismatch(schema.sensor, why)
    for metric, histogram in zip(schema.histograms, frame.histograms, strict=True):
        arrays.append((f"histogram {metric.name}", histogram, "uint64", (n, len(metric.bounds) + 1)))
    for what, array, dtype, shape in arrays:
        if array.shape != shape or array.dtype != dtype:
            raise _mismatch(schema.sensor, f"{what} are {array.dtype}{array.shape}, not {dtype}{shape}")


def _mismatch(sensor: str, why: str) -> PluginError:
    return PluginError("take a frame of", sensor, why, "make the sensor's read() follow its schema")
