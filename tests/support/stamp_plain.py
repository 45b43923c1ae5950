"""STAMP in unauthenticated mode by the text of RFC 8762, over sockets of user space: nothing of `mapek` in it.

A Session-Sender's packets and a Session-Reflector, with what implementations differ in: the format of
timestamps, who counts, whether what follows the 44 bytes comes back.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from dataclasses import dataclass

NTP_EPOCH = 2_208_988_800
BASE = 44
PTP = 0x4000
_SENDER = struct.Struct("!IIIHH28x")
_REFLECTOR = struct.Struct("!IIIHHIIIIIHHB3s")
_IP_TTL, _IP_RECVTTL, _IPV6_RECVHOPLIMIT, _IPV6_HOPLIMIT = 2, 12, 51, 52


def stamp(wall_ns: int, ptp: bool = False) -> tuple[int, int]:
    """A timestamp as (seconds, fraction): NTP's 64 bits, or PTPv2 truncated."""
    seconds, rest = divmod(wall_ns, 10**9)
    return (seconds, rest) if ptp else (seconds + NTP_EPOCH, (rest << 32) // 10**9)


def wall_ns(seconds: int, fraction: int, ptp: bool = False) -> float:
    """What a timestamp says, in ns since 1970."""
    if ptp:
        return seconds * 1e9 + fraction
    return (seconds - NTP_EPOCH) * 1e9 + fraction * 1e9 / 2**32


def request(
    seq: int, sent: tuple[int, int] = (1, 2), error: int = 0x0001, ssid: int = 0, more: bytes = b""
) -> bytes:
    """A Session-Sender's packet; `more` is padding or TLVs."""
    return _SENDER.pack(seq, *sent, error, ssid) + more


@dataclass(frozen=True)
class Reply:
    """A Session-Reflector's packet."""

    seq: int
    sent: tuple[int, int]
    error: int
    ssid: int
    received: tuple[int, int]
    sender_seq: int
    sender_sent: tuple[int, int]
    sender_error: int
    mbz: int
    sender_ttl: int
    mbz3: bytes
    more: bytes

    @property
    def ptp(self) -> bool:
        return bool(self.error & PTP)


def parse_reply(data: bytes) -> Reply:
    """Decode it. Raises struct.error for fewer than 44 bytes."""
    seq, a, b, error, ssid, c, d, sender_seq, e, f, sender_error, mbz, ttl, mbz3 = _REFLECTOR.unpack_from(
        data
    )
    return Reply(
        seq, (a, b), error, ssid, (c, d), sender_seq, (e, f), sender_error, mbz, ttl, mbz3, data[BASE:]
    )


def reply(
    data: bytes, ttl: int, seq: int, received: tuple[int, int], sent: tuple[int, int], error: int,
    *, ssid: bool = False, more: bool = True,
) -> bytes:  # fmt: skip
    """The answer to a sender's packet."""
    sender_seq, seconds, fraction, sender_error, its_ssid = _SENDER.unpack_from(data)
    return _REFLECTOR.pack(
        seq, *sent, error, its_ssid if ssid else 0, *received, sender_seq, seconds, fraction, sender_error,
        0, ttl, bytes(3),
    ) + (data[BASE:] if more else b"")  # fmt: skip


class Reflector:
    """A Session-Reflector in a thread, from `start` until `close`; it lives in the namespace that starts it.

    Args:
        scope: the interface of a link-local address.
        stateful: count the replies itself, from 0 (else repeat the sender's numbers).
        ptp: PTPv2 timestamps.
        ssid: return it, as RFC 8972 has it; RFC 8762 has zeros there.
        skip: drop these packets, by their order of arrival, before they are counted: lost on the way there.
        swallow: reply to these, but nowhere: lost on the way back.
    """

    def __init__(
        self, address: str, port: int = 862, *, scope: int = 0, stateful: bool = False, ptp: bool = False,
        ssid: bool = False, skip: frozenset[int] = frozenset(), swallow: frozenset[int] = frozenset(),
    ) -> None:  # fmt: skip
        self.stateful, self.ptp, self.ssid, self.skip, self.swallow = stateful, ptp, ssid, skip, swallow
        self.arrived = self.replied = 0
        self.ttls: set[int] = set()
        self.requests: list[bytes] = []
        self.answers = True
        v6 = ":" in address
        self._socket = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
        level = socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP
        self._socket.setsockopt(level, _IPV6_RECVHOPLIMIT if v6 else _IP_RECVTTL, 1)
        try:
            self._socket.bind((address, port, 0, scope) if v6 else (address, port))
        except OSError:
            self._socket.close()
            raise
        self._socket.settimeout(0.05)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rfc8762-reflector")
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                data, control, _, source = self._socket.recvmsg(2048, 256)
            except TimeoutError:
                continue
            received = time.time_ns()
            if len(data) < BASE:
                continue
            order, self.arrived = self.arrived, self.arrived + 1
            self.requests.append(data)
            if order in self.skip or not self.answers:
                continue
            ttl = next(struct.unpack("=i", value[:4])[0] for _, _, value in control)
            self.ttls.add(ttl)
            seq = self.replied if self.stateful else struct.unpack_from("!I", data)[0]
            self.replied += 1
            if order in self.swallow:
                continue
            error = 0x0101 | (PTP if self.ptp else 0)
            sent = stamp(time.time_ns(), self.ptp)
            out = reply(data, ttl, seq, stamp(received, self.ptp), sent, error, ssid=self.ssid)
            self._socket.sendto(out, source)

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()

    def __enter__(self) -> Reflector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
