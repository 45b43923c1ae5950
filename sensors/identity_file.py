"""The TOML file of identities, as text: read with bounds, and what it says as entries.

Expiries are wall-clock times, turned into CLOCK_MONOTONIC when the file is read.
"""

from __future__ import annotations

import tomllib
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final

from mapek.config.options import Table, error, open_at_once, plain, take, take_strings
from mapek.errors import ConfigError
from mapek.sensors.identities import ALLOW, DENY, MAX_BURST, MAX_RATE, Entry, Verdict
from mapek.sensors.identity_numbers import FIRST_OWN

MAX_BYTES: Final = 4 << 20
MAX_IDENTITIES: Final = 10_000


def read_file(path: Path, now_ns: int, wall_now_ns: int) -> list[Entry]:
    """The entries of the file at `path`; `now_ns` is CLOCK_MONOTONIC at the wall time `wall_now_ns`.

    Raises ConfigError for a file that is missing, too large, no TOML, or says what cannot be meant. Blocks.
    """
    try:
        with open(path, "rb", opener=open_at_once) as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as cause:
        raise ConfigError("read", plain(path), cause.strerror or str(cause), "check the path") from cause
    return parse_file(data, plain(path), now_ns, wall_now_ns)


def parse_file(data: bytes, name: str, now_ns: int, wall_now_ns: int) -> list[Entry]:
    """The same of its bytes."""
    if len(data) > MAX_BYTES:
        raise ConfigError("read", name, f"it is larger than {MAX_BYTES >> 20} MiB", "split it between nodes")
    try:
        values = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as cause:
        raise ConfigError("read", name, f"it is no TOML: {plain(cause)}", "correct it") from cause
    top = Table(values, name)
    rows = take(top, "identity", list, [], maximum=MAX_IDENTITIES)
    top.leftover()
    found = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise error(top, "identity", "is not an array of tables", "begin each with [[identity]]")
        found.append(_entry(Table(row, name, f"[[identity]] {number}"), now_ns - wall_now_ns))
    return found


def _entry(table: Table, wall_offset_ns: int) -> Entry:
    spiffe_id = take(table, "spiffe_id", str, required=True)
    number = take(table, "number", int, 0, minimum=0, maximum=FIRST_OWN - 1)
    prefixes = tuple(_prefix(table, one) for one in take_strings(table, "prefixes"))
    macs = tuple(_mac(table, one) for one in take_strings(table, "macs"))
    expires_ns = None
    if "expires" in table:
        expires = table["expires"]
        if not isinstance(expires, datetime) or expires.tzinfo is None:
            raise error(table, "expires", "is no time with a zone", "write it as 2027-01-31T00:00:00Z")
        expires_ns = max(0, int(expires.timestamp() * 1e9) + wall_offset_ns)
    verdict = _verdict(table)
    table.leftover()
    try:
        return Entry(spiffe_id, prefixes, macs, expires_ns, number, verdict)
    except ConfigError as cause:
        raise error(table, "spiffe_id", f"{cause.on}: {cause.why}", cause.do) from cause


def _verdict(table: Table) -> Verdict | None:
    kind = take(table, "verdict", str, "", choices=("", "allow", "deny", "limit"))
    if kind == "limit":
        rate = take(table, "rate", int, required=True, minimum=1, maximum=MAX_RATE)
        return Verdict(
            "limit", rate, take(table, "burst", int, max(1, rate // 10), minimum=1, maximum=MAX_BURST)
        )
    if kind == "allow":
        return ALLOW
    return DENY if kind == "deny" else None


def _prefix(table: Table, text: str) -> IPv4Network | IPv6Network:
    try:
        if "%" in text:
            raise ValueError("a prefix has no interface")
        return ip_network(text)
    except ValueError as cause:
        do = "write it as 10.1.0.0/16 or fd00::/64, without host bits"
        raise error(table, "prefixes", f'"{plain(text)}" is no prefix', do) from cause


def _mac(table: Table, text: str) -> bytes:
    parts = text.split(":")
    if len(parts) != 6 or not all(len(one) == 2 and one.isascii() for one in parts):
        raise error(table, "macs", f'"{plain(text)}" is no MAC address', "write it as 02:00:00:00:00:01")
    try:
        return bytes.fromhex("".join(parts))
    except ValueError as cause:
        raise error(table, "macs", f'"{plain(text)}" is no MAC address', "write hexadecimal") from cause
