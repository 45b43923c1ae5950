"""link_watch's programs under PROG_TEST_RUN: one path configured, frames in, verdicts and frames out."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address

from mapek.bpf import LoadedObject, RingBuffer
from mapek.bpf.maps import ArrayMap
from mapek.sensors.link_watch_layout import (
    ANSWERS,
    CONFIG,
    GAPS,
    IN_USE,
    STATE,
    WATCH,
    Alarm,
    alarm,
    packed,
    peer_key,
)
from tests.support.stamp import Datagram, frame, parse, payload

OWN_KEY, PEER_KEY = (0x1122334455667788, 0x99AABBCCDDEEFF00), (0xFEDCBA9876543210, 0x0123456789ABCDEF)
OWN_EPOCH, PEER_EPOCH = 1_700_000_000_000_000_001, 1_700_000_000_000_000_777
LOOPBACK = 1
"""The interface that a test run has."""

PAIRS = {
    "IPv4": ("10.0.0.1", "10.0.0.2"),
    "IPv6": ("fd00::1", "fd00::2"),
    "link-local": ("fe80::1", "fe80::2"),
}
VERDICTS = {
    "link_watch": {1: "dropped", 2: "passed", 3: "reply"},
    "link_watch_tc": {0xFFFFFFFF: "passed", 2: "dropped", 7: "reply"},
    "stamp": {0xFFFFFFFF: "passed"},
    "stamp_untimed": {0xFFFFFFFF: "passed"},
}


@dataclass
class Bench:
    """A loaded object whose path 0 leads from `local` to `peer`."""

    loaded: LoadedObject
    program: str
    local: str
    peer: str

    def __post_init__(self) -> None:
        self.configs = self.loaded.map("configs", ArrayMap).view(CONFIG)
        self.states = self.loaded.map("paths", ArrayMap).view(STATE)
        self.configure(0, self.local, self.peer)

    def configure(self, index: int, local: str, peer: str, **values: object) -> None:
        one, other = ip_address(local), ip_address(peer)
        row = self.configs[index]
        told: dict[str, object] = {
            "local": list(packed(one)), "peer": list(packed(other)), "ifindex": LOOPBACK,
            "flags": IN_USE | ANSWERS | GAPS | WATCH, "silence_ns": 10**12, "epoch": OWN_EPOCH, "own_key": OWN_KEY,
            "peer_key": PEER_KEY, "reply_rate": 1_000_000, "reply_burst": 1_000_000, **values,
        }  # fmt: skip
        for name, value in told.items():
            row[name] = value
        self.states[index]["next_seq"] = 1
        self.loaded.maps["peers"].update(peer_key(LOOPBACK, other, one), struct.pack("=I", index))

    def run(self, sent: bytes) -> tuple[str, bytes]:
        """Verdict and frame afterwards."""
        done = self.loaded.programs[self.program].test_run(sent)
        return VERDICTS[self.program][done.retval], done.data

    def probe(self, **fields: int) -> bytes:
        """The peer's next probe to us; `key` and `where` as given."""
        return frame(self.peer, self.local, payload(PEER_KEY, **{"epoch": PEER_EPOCH, "ssid": 7, **fields}))

    def ask(self, **fields: int) -> tuple[str, Datagram]:
        """The peer's probe and what became of it."""
        verdict, out = self.run(self.probe(**fields))
        return verdict, parse(out)

    def counts(self, index: int = 0) -> dict[str, int]:
        """Counters of a path that are not zero."""
        row = self.states[index]
        names = ("answered", "lost", "late", "duplicates", "rejected", "forward_lost", "reverse_lost", "reflected",
                 "forged", "replayed", "limited", "ring_drops", "sent", "stalls")  # fmt: skip
        return {name: int(row[name]) for name in names if row[name]}

    def alarms(self) -> list[Alarm]:
        """What is in the ring buffer."""
        found: list[bytes] = []
        with RingBuffer(self.loaded.maps["events"], found.append) as ring:
            ring.consume()
        return [alarm(one) for one in found]
