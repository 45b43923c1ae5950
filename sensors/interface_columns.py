"""The columns of `interface`: the kernel's statistics by their own names, then those of drivers that came up."""

from __future__ import annotations

from typing import Final

from mapek.model import Metric, Schema
from mapek.sensors.interface_wire import HELP, STATISTICS, QdiscCounters

_QDISC: Final = {
    "bytes": "Bytes that went through the queueing discipline.",
    "packets": "Packets that went through the queueing discipline.",
    "drops": "Packets that the queueing discipline dropped; a counter of 32 bits.",
    "requeues": "Packets that the driver gave back to the queueing discipline; a counter of 32 bits.",
    "overlimits": "Times a packet had to wait for its rate; a counter of 32 bits.",
}
_SIDES: Final = ("egress", "ingress")


def _unit(name: str) -> str:
    return next((unit for unit in ("packets", "bytes") if name.endswith(unit)), "")


def schema_with(driver: tuple[str, ...] = ()) -> Schema:
    """With a column for each of those statistics of drivers, behind the others."""
    return Schema(
        "interface",
        "link",
        counters=(
            *(Metric(name, _unit(name), HELP[name]) for name in STATISTICS),
            Metric("carrier_up", "changes", "Times the carrier came."),
            Metric("carrier_down", "changes", "Times the carrier went."),
            *(
                Metric(
                    f"qdisc_{name}",
                    _unit(name),
                    text,
                    labels=(("side", side),),
                )
                for side in _SIDES
                for name, text in _QDISC.items()
            ),
            *(
                Metric("driver", "", "A statistic of the driver's own.", labels=(("statistic", name),))
                for name in driver
            ),
        ),
        gauges=(
            Metric("operstate", "", "RFC 2863: 0 unknown, 2 down, 3 lower layer down, 5 dormant, 6 up."),
            Metric("qdisc_queue", "packets", "Packets that wait in the root discipline; NaN without one."),
            Metric("qdisc_backlog", "bytes", "Bytes that wait in the root discipline; NaN without one."),
        ),
    )


SCHEMA: Final = schema_with()
"""Without statistics of drivers, for which the sensor's own has more columns."""


def qdisc_columns(qdisc: QdiscCounters) -> list[int]:
    """Its counters in the order of the schema."""
    return [qdisc.bytes, qdisc.packets, qdisc.drops, qdisc.requeues, qdisc.overlimits]


NO_QDISC: Final = [0] * len(_QDISC)
"""Where there is no discipline, nothing went through one."""
