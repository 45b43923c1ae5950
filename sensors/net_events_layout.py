"""Bytes of net_events' maps and samples into values: the mirror of bpf/programs/net_events.h."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, inet_ntop
from struct import Struct
from typing import Final

import numpy as np

from mapek.model import Value
from mapek.sensors.net_events_names import Field

TCP_EVENTS: Final = ("retransmit", "retransmit_synack", "reset_sent", "reset_received")
"""As the tracepoints are called; the order of `enum net_event`, which ends with the drop."""
FAMILIES: Final = ("ipv4", "ipv6", "other")
REASONS: Final = 256
OTHER_REASON: Final = REASONS - 1
LOSSES: Final = ("ring_drops", "unsampled", "map_full", "unattributed")
COUNTS: Final = np.dtype(
    [("tcp", "u8", (len(TCP_EVENTS), len(FAMILIES))), ("drops", "u8", REASONS), ("losses", "u8", len(LOSSES))]
)
TRAFFIC: Final = ("received_packets", "received_bytes", "sent_packets", "sent_bytes")
SAMPLE: Final = Struct("=QIIIHHBBBxHxx16s16s")
FORMAT: Final = Struct("=10h")
_SOCKADDR: Final = 28

_STATES: Final = (
    "", "established", "syn_sent", "syn_recv", "fin_wait1", "fin_wait2", "time_wait", "close", "close_wait",
    "last_ack", "listen", "closing", "new_syn_recv", "bound_inactive",
)  # fmt: skip
_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One event in detail. `kind`: one of TCP_EVENTS, or "drop". Ports are 0 and texts empty where not known."""

    time_ns: int
    kind: str
    reason: int
    ifindex: int
    family: str
    protocol: str
    state: str
    source: str
    source_port: int
    destination: str
    destination_port: int
    ethertype: int

    def fields(self, reasons: Mapping[int, str]) -> dict[str, Value]:
        """What an event says of it; what is not known is left out."""
        found: dict[str, Value] = {"family": self.family}
        if self.kind == "drop":
            found["reason"] = reasons.get(self.reason, str(self.reason))
            found["ethertype"] = self.ethertype
        for name in (
            "protocol", "state", "source", "source_port", "destination", "destination_port", "ifindex"
        ):  # fmt: skip
            if value := getattr(self, name):
                found[name] = value
        return found


def sample(record: bytes) -> Sample:
    """Decode a ring buffer record. Raises struct.error for another size, IndexError for unknown codes."""
    when, event, reason, ifindex, sport, dport, family, protocol, state, ethertype, source, destination = (
        SAMPLE.unpack(record)
    )
    return Sample(
        when,
        (*TCP_EVENTS, "drop")[event],
        reason,
        ifindex,
        FAMILIES[family],
        _PROTOCOLS.get(protocol, str(protocol) if protocol else ""),
        _STATES[state] if state < len(_STATES) else str(state),
        _address(family, source),
        sport,
        _address(family, destination),
        dport,
        ethertype,
    )


def _address(family: int, data: bytes) -> str:
    if family >= 2:
        return ""
    if not family:
        return inet_ntop(AF_INET, data[:4])
    text = inet_ntop(AF_INET6, data)
    # The C library writes IPv4 inside IPv6 its own way; all else alike, in a tenth of the time.
    return str(ip_address(data)) if "." in text else text


def tcp_format(fields: Mapping[str, Field]) -> bytes:
    """`struct tcp_format`: where a tracepoint of TCP tells what; -1 for what it does not."""

    def at(name: str, *sizes: int) -> int:
        field = fields.get(name)
        return field.offset if field is not None and field.size in sizes else -1

    source = fields.get("saddr")
    return FORMAT.pack(
        at("family", 2), at("state", 4), at("sport", 2), at("dport", 2), at("saddr", 4, _SOCKADDR),
        at("daddr", 4, _SOCKADDR), at("saddr_v6", 16), at("daddr_v6", 16), source.size if source else 0, 0,
    )  # fmt: skip
