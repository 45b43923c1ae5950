"""The `[[peer]]` tables: addresses, prefixes, keys and paths, checked against each other.

Whatever could only fail later, on the node, at night, is refused here: a path that cannot carry a prefix, a
peer's address that no prefix covers, two peers behind one neighbour.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

from mapek.config.options import Table, error, open_at_once, plain, take, take_strings
from mapek.errors import ConfigError
from mapek.knowledge.topology import Address, Network, Path, Peer

_KEY_BYTES: Final = 16
_KEY_FILE_LIMIT: Final = 4096
_NAME_LIMIT: Final = 63
_INTERFACE_LIMIT: Final = 15  # IFNAMSIZ less the final zero


def peers(top: Table, node: str, own: tuple[Address, ...]) -> tuple[Peer, ...]:
    """All peers of the file. Raises ConfigError."""
    found: list[Peer] = []
    for table in tables(top, "peer", "[[peer]]"):
        peer = _peer(table, node, own)
        _distinct(table, peer, found)
        found.append(peer)
    return tuple(found)


def tables(parent: Table, key: str, place: str) -> Iterator[Table]:
    """The tables of an array of tables, each numbered in its place."""
    for number, values in enumerate(take(parent, key, list, []), 1):
        if not isinstance(values, dict):
            raise error(parent, key, "is not an array of tables", f"begin each with {place}")
        yield Table(values, parent.file, f"{place} {number}", folder=parent.folder)


def name(table: Table, key: str = "name", default: str | None = None) -> str:
    """A name that may stand in a label, a file name and an entity."""
    value = take(table, key, str, default, required=default is None, minimum=1, maximum=_NAME_LIMIT)
    if not (value.isascii() and all(letter.isalnum() or letter in "._-" for letter in value)):
        raise error(table, key, f'is "{plain(value)}"', "use letters, digits, dot, dash and underscore only")
    return value


def address(table: Mapping[str, object], key: str, value: str, *, link_local: bool) -> Address:
    """One unicast address. Raises ConfigError for anything else."""
    try:
        found = ip_address(value)
    except ValueError:
        raise error(
            table, key, f'"{plain(value)}" is not an IP address', "write it like 10.0.0.1 or fd00::1"
        ) from None
    if isinstance(found, IPv6Address) and found.scope_id:
        raise error(
            table,
            key,
            f'"{plain(value)}" names an interface',
            "leave out the part from % on: interface says it",
        )
    if found.is_multicast or found.is_unspecified or found.is_loopback:
        raise error(
            table, key, f'"{value}" is not a unicast address of a node', "write an address of its own"
        )
    if found.is_link_local and not link_local:
        raise error(
            table, key, f'"{value}" holds on one link only', "write an address that every path leads to"
        )
    return found


def addresses(table: Table, key: str) -> tuple[Address, ...]:
    """A list of a node's own addresses, none twice and none link-local."""
    values = take_strings(table, key)
    found = tuple(
        address(table, f"{key}[{place}]", value, link_local=False) for place, value in enumerate(values)
    )
    for place, one in enumerate(found):
        if one in found[:place]:
            raise error(table, f"{key}[{place}]", f"{one} is there twice", "remove one")
    return found


def _peer(table: Table, node: str, own: tuple[Address, ...]) -> Peer:
    called = name(table)
    table.place = f'[[peer]] "{called}"'
    if called == node:
        raise error(table, "name", f'"{called}" is this node itself', "give each node its own name")
    theirs = addresses(table, "addresses")
    if not theirs:
        raise error(table, "addresses", "is empty", "write at least one: repairs are proved by reaching it")
    for one in theirs:
        if one in own:
            raise error(table, "addresses", f"{one} is this node's own", "write the peer's")
    prefixes = _prefixes(table, theirs)
    paths = _paths(table, called, prefixes)
    unauthenticated = take(table, "unauthenticated", bool, False)
    if not unauthenticated:
        key = read_key(table)
    elif take(table, "key_file", str, ""):
        raise error(table, "key_file", "an unauthenticated peer has no use for it", "remove one of the two")
    else:
        key = b""
    table.leftover()
    return Peer(called, theirs, prefixes, paths, key, unauthenticated)


def _prefixes(table: Table, theirs: tuple[Address, ...]) -> tuple[Network, ...]:
    found: list[Network] = []
    for place, value in enumerate(
        take_strings(table, "prefixes", tuple(str(ip_network(one)) for one in theirs))
    ):
        key = f"prefixes[{place}]"
        try:
            prefix = ip_network(value)
        except ValueError:
            raise error(table, key, f'"{plain(value)}" is not a prefix', _prefix_cure(value)) from None
        if prefix in found:
            raise error(table, key, f"{prefix} is there twice", "remove one")
        found.append(prefix)
    for one in theirs:
        if not any(one in prefix for prefix in found):
            do = f'add "{ip_network(one)}": repairs are proved by reaching it over the route they changed'
            raise error(table, "prefixes", f"none holds the peer's address {one}", do)
    return tuple(found)


def _prefix_cure(value: str) -> str:
    try:
        return f'write "{ip_network(value, strict=False)}"'
    except ValueError:
        return "write it like 10.1.0.0/16 or fd00:1::/32"


def _paths(table: Table, peer: str, prefixes: tuple[Network, ...]) -> tuple[Path, ...]:
    found: list[Path] = []
    for path_table in tables(table, "path", "[[peer.path]]"):
        path_table.place = f"{table.place} {path_table.place}"
        path = _path(path_table, peer)
        if any(path.interface == other.interface for other in found):
            raise error(
                path_table,
                "interface",
                f'"{path.interface}" has a path to this peer already',
                "remove one of them",
            )
        unfit = next(
            (prefix for prefix in prefixes if prefix.version == 6 and path.address.version == 4), None
        )
        if unfit is not None:
            raise error(
                path_table, "address", f"an IPv4 path cannot carry the IPv6 prefix {unfit}",
                "write the peer's IPv6 address on that link (link-local will do): it carries both",
            )  # fmt: skip
        path_table.leftover()
        found.append(path)
    if not found:
        raise error(table, "path", "is missing", "add a [[peer.path]] with interface and address")
    return tuple(sorted(found, key=lambda path: path.preference))


def _path(table: Table, peer: str) -> Path:
    interface = take(table, "interface", str, required=True, minimum=1, maximum=_INTERFACE_LIMIT)
    if (
        not interface.isascii()
        or not interface.isprintable()
        or set("/: ") & set(interface)
        or interface in (".", "..")
    ):
        raise error(
            table, "interface", f'"{plain(interface)}" cannot be an interface', "write a name of `ip link`"
        )
    theirs = address(table, "address", take(table, "address", str, required=True), link_local=True)
    written = take(table, "local", str, "")
    local = address(table, "local", written, link_local=True) if written else None
    if local is not None and local.version != theirs.version:
        raise error(
            table,
            "local",
            f"{local} and address {theirs} are of different families",
            "write both of one family",
        )
    if local == theirs:
        raise error(
            table, "local", f"{local} is the peer's address too", "write this node's own, or leave it out"
        )
    preference = take(table, "preference", int, 0, minimum=0, maximum=1_000_000)
    return Path(peer, interface, theirs, local, preference)


def _distinct(table: Table, peer: Peer, others: list[Peer]) -> None:
    for other in others:
        if peer.name == other.name:
            table.place = "[[peer]]"
            raise error(table, "name", f'"{peer.name}" is there twice', "give each peer its own name")
        for one in peer.addresses:
            if one in other.addresses:
                raise error(
                    table, "addresses", f'{one} is also peer "{other.name}"', "remove it from one of them"
                )
        for prefix in peer.prefixes:
            if prefix in other.prefixes:
                raise error(
                    table,
                    "prefixes",
                    f'{prefix} is also behind peer "{other.name}"',
                    "remove it from one of them",
                )
        for path in peer.paths:
            if any(
                (path.interface, path.address) == (theirs.interface, theirs.address) for theirs in other.paths
            ):
                raise error(
                    table, "path", f'{path.address} on {path.interface} is also peer "{other.name}"',
                    "give each peer its own",
                )  # fmt: skip


def read_key(table: Table, key: str = "key_file") -> bytes:
    """The secret in the file that `key` names: hexadecimal, at least 16 bytes, closed to others.

    Raises ConfigError, whose message never shows what the file holds.
    """
    written = take(table, key, str, required=True, minimum=1)
    path = table.folder / written
    shown = f'"{plain(written)}"'
    make = f"make it with: (umask 077; openssl rand -hex 32 > {plain(path, 200)})"
    try:
        file = open(path, "rb", opener=open_at_once)  # noqa: SIM115
    except FileNotFoundError:
        raise error(table, key, f"{shown} does not exist", make) from None
    except IsADirectoryError:
        raise error(table, key, f"{shown} is not a plain file", make) from None
    except (OSError, ValueError) as cause:
        why = getattr(cause, "strerror", None) or str(cause)
        raise error(table, key, f"cannot open {shown}: {plain(why)}", "let this user read it") from cause
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise error(table, key, f"{shown} is not a plain file", make)
        if status.st_mode & 0o077:
            raise error(
                table, key, f"{shown} can be read or written by others (mode {status.st_mode & 0o777:04o})",
                f"chmod 0600 {plain(path, 200)}",
            )  # fmt: skip
        if status.st_uid not in (0, os.geteuid()):
            raise error(
                table, key, f"{shown} belongs to uid {status.st_uid}", f"chown it to uid {os.geteuid()}"
            )
        text = file.read(_KEY_FILE_LIMIT + 1)
    return _decode_key(table, key, shown, make, text)


def _decode_key(table: Table, key: str, shown: str, make: str, text: bytes) -> bytes:
    problem: ConfigError
    if len(text) > _KEY_FILE_LIMIT:
        raise error(table, key, f"{shown} is longer than {_KEY_FILE_LIMIT} bytes", make)
    try:
        secret = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        problem = error(table, key, f"{shown} is not hexadecimal", make)
        # The cause would quote the secret.
        raise problem from None
    if len(secret) < _KEY_BYTES:
        raise error(table, key, f"{shown} holds {len(secret)} bytes, fewer than {_KEY_BYTES}", make)
    return secret
