"""What a BPF object may do here: `Rules`, with defaults that fit observers of the network, or from a TOML file.

A default for every program type, so that a machine without a file is guarded too; the file of an operator who knows
what his programs need is shorter than ours. The file comes from disk and is believed only after every key was looked
at.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mapek.bpf import helpers, signatures
from mapek.bpf.elf import ByteOrder
from mapek.bpf.names import PROGRAM_TYPES
from mapek.bpf.regular import read_regular, reason
from mapek.errors import ConfigError

MAX_WALKED: Final = 1_000_000
"""Instructions that the verifier walks at most (BPF_COMPLEXITY_LIMIT_INSNS)."""

PACKETS: Final = frozenset("xdp sched_cls sched_act socket_filter cgroup_skb".split())
"""Program types that run for a packet."""
TRACING: Final = frozenset("raw_tracepoint tracepoint tracing kprobe perf_event".split())
"""Program types that run for an event of the kernel."""

_NEVER: Final = (
    "writes user memory",
    "kills processes",
    "makes kernel functions fail",
    "makes BPF system calls",
    "changes sockets",
)


def _without(*effects: str) -> frozenset[str]:
    return frozenset(helpers.NAMES[1:]).difference(*(helpers.EFFECTS[effect] for effect in effects))


def _defaults() -> dict[str, frozenset[str]]:
    packets = _without(*_NEVER, "reads user memory", "reads kernel memory")
    tracing = _without(*_NEVER, "redirects packets", "changes packets")
    return {**dict.fromkeys(PACKETS, packets), **dict.fromkeys(TRACING, tracing)}


HELPERS: Final[Mapping[str, frozenset[str]]] = _defaults()
"""Allowed helpers by program type when nothing else is said. Packet programs may redirect and change packets but not
read memory of processes or of the kernel at will; tracing programs the other way round; neither may act on processes,
sockets or BPF itself. Other program types are not allowed."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What is allowed.

    Args:
        helpers: names by program type; a type that is no key is not allowed.
        kfuncs: names of kernel functions that may be called.
        maps, map_bytes: how many maps, and how much memory all of them may take.
        cpus: how many CPUs `validate` counts per-CPU maps for; the loader counts those that this machine may have.
        slots: the length of a program with all that it calls, in eight-byte instructions.
        sha256: digests of objects that may be loaded, lower case hex; None: any.
        keys: Ed25519 public keys, 32 bytes each, one of which must have signed the object; (): it need not be signed.
        signatures: folder of the signatures, each called as its object with ".sig" behind; None: beside the object.
        byteorder: of the machine it is for.
    """

    helpers: Mapping[str, Collection[str]] = field(default_factory=lambda: HELPERS)
    kfuncs: Collection[str] = ()
    maps: int = 64
    map_bytes: int = 1 << 30
    cpus: int = 1
    slots: int = MAX_WALKED
    sha256: Collection[str] | None = None
    byteorder: ByteOrder = sys.byteorder
    keys: tuple[bytes, ...] = ()
    signatures: Path | None = None


@dataclass(slots=True)
class _Force:
    rules: Rules = field(default_factory=Rules)
    changes: int = 0


_force: Final = _Force()


def enforce(rules: Rules) -> None:
    """From now on nothing is loaded in this process that `rules` refuse: a decision of the process, not of a library.

    `mapek run` calls it for `[bpf] rules`.
    """
    _force.rules, _force.changes = rules, _force.changes + 1


def in_force() -> tuple[Rules, int]:
    """The rules by which this process loads, and how often they have changed."""
    return _force.rules, _force.changes


def read(path: str | Path) -> Rules:
    """Rules from a TOML file; what it does not say is as in `Rules()`. Raises ConfigError.

    Keys: `kfuncs` (names), `maps`, `map_mib`, `instructions`, `sha256` (digests), `keys` (Ed25519 public keys, or files
    of one), `signatures` (a folder) and the table `[helpers]` with a list of names for each program type that is
    allowed, where "default" stands for ours. Relative paths start from the folder of the file.
    """
    table = _table(path)
    known = {"kfuncs", "maps", "map_mib", "instructions", "sha256", "keys", "signatures", "helpers"}
    if odd := sorted(table.keys() - known):
        raise _bad(path, f"unknown key {odd[0]!r}", f"use {', '.join(sorted(known))}")
    base = Rules()
    return Rules(
        _by_type(path, table["helpers"]) if "helpers" in table else base.helpers,
        frozenset(_names(path, "kfuncs", table["kfuncs"])) if "kfuncs" in table else base.kfuncs,
        _number(path, table, "maps", base.maps),
        _number(path, table, "map_mib", base.map_bytes >> 20) << 20,
        slots=_number(path, table, "instructions", base.slots),
        sha256=digests(path, _names(path, "sha256", table["sha256"])) if "sha256" in table else None,
        keys=_keys(path, table["keys"]) if "keys" in table else (),
        signatures=_folder(path, table["signatures"]) if "signatures" in table else None,
    )


def read_digests(path: str | Path) -> frozenset[str]:
    """SHA-256 digests from a file as `sha256sum` writes it: the first word of each line. Raises ConfigError."""
    rows = (line.split() for line in _bytes(path).decode("utf-8", "replace").splitlines())
    return digests(path, [row[0] for row in rows if row and not row[0].startswith("#")])


def digests(path: str | Path, words: Collection[str]) -> frozenset[str]:
    """The words as digests; raises ConfigError for one that is none."""
    found = frozenset(word.lower().removeprefix("\\") for word in words)
    if odd := sorted(word for word in found if not re.fullmatch("[0-9a-f]{64}", word)):
        raise _bad(path, f"{odd[0][:80]!r} is no SHA-256", "write 64 hexadecimal digits, as sha256sum does")
    return found


def _keys(path: str | Path, given: object) -> tuple[bytes, ...]:
    found = []
    for word in _names(path, "keys", given):
        try:
            found.append(signatures.parse_key(word, str(path)))
        except ConfigError:
            found.append(signatures.read_key(Path(path).parent / word))
    if not found:
        raise _bad(path, "keys is empty, so nothing could be loaded", "name a key, or leave it out")
    return tuple(found)


def _folder(path: str | Path, given: object) -> Path:
    if not isinstance(given, str) or not given or "\0" in given:
        raise _bad(path, "signatures is no path", 'write signatures = "/etc/mapek/signatures"')
    return Path(path).parent / given


def _bytes(path: str | Path) -> bytes:
    try:
        return read_regular(path, 1 << 20)
    except (OSError, ValueError) as error:
        raise _bad(path, reason(error), "check the path") from error


def _table(path: str | Path) -> dict[str, object]:
    try:
        return tomllib.loads(_bytes(path).decode())
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"it is no TOML: {error}", "correct it") from error


def _by_type(path: str | Path, given: object) -> dict[str, frozenset[str]]:
    if not isinstance(given, dict):
        raise _bad(path, "helpers is no table", "write [helpers] and a line for each program type")
    found = {}
    for kind, names in given.items():
        if kind not in PROGRAM_TYPES:
            raise _bad(path, f"unknown program type {kind!r}", f"use {', '.join(PROGRAM_TYPES[1:])}")
        wanted = set(_names(path, f"helpers.{kind}", names))
        if "default" in wanted:
            wanted = wanted - {"default"} | HELPERS.get(kind, frozenset())
        if odd := sorted(wanted.difference(helpers.NAMES)):
            raise _bad(path, f"unknown helper {odd[0]!r}", "write it as in bpf-helpers(7), without bpf_")
        found[kind] = frozenset(wanted)
    return found


def _names(path: str | Path, key: str, given: object) -> list[str]:
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise _bad(path, f"{key} is no list of strings", f'write {key} = ["name", ...]')
    return given


def _number(path: str | Path, table: Mapping[str, object], key: str, default: int) -> int:
    given = table.get(key, default)
    if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given <= 1 << 40:
        raise _bad(path, f"{key} is no number from 0", f"write {key} = {default}")
    return given


def _bad(path: str | Path, why: str, do: str) -> ConfigError:
    return ConfigError("read rules", path, why, do)
