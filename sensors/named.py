"""The interfaces that a sensor was configured with, and which of them are not there."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from mapek.errors import AttachError

if TYPE_CHECKING:
    from mapek.knowledge.topology import Topology

ATTACHED: Final = "check the name; it is attached to when it is there"


def named(names: Iterable[str], topology: Topology) -> tuple[str, ...]:
    """`names`, or without any the interfaces of all paths; each once."""
    return tuple(dict.fromkeys(tuple(names) or (path.interface for path in topology.paths())))


def no_such(verb: str, name: str, do: str = ATTACHED) -> AttachError:
    """The error for a name that no interface has."""
    return AttachError(verb, name, "there is no such interface", do)


def absent(verb: str, names: Iterable[str], do: str = ATTACHED) -> tuple[AttachError, ...]:
    """One for each of `names` that is not there now, in this network namespace. Raises the first if none is there."""
    there = {name for _, name in socket.if_nameindex()}
    wanted = tuple(names)
    errors = tuple(no_such(verb, name, do) for name in wanted if name not in there)
    if errors and len(errors) == len(wanted):
        raise errors[0]
    return errors
