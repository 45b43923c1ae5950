"""batman-adv's tables over generic netlink, by pyroute2: the mesh, its interfaces, originators and neighbours.

Blocks: for a thread of its own. It imports pyroute2, which takes 13 MB, so import this room only where it is used. The
attribute table has the kernel's names (linux/batman_adv.h) up to those that are read here.
"""

from __future__ import annotations

import errno
import socket
from contextlib import closing

from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST, genlmsg
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted
from pyroute2.netlink.exceptions import NetlinkError as PyrouteError
from pyroute2.netlink.generic import AsyncGenericNetlinkSocket, GenericNetlinkSocket

from mapek.errors import NetlinkError
from mapek.sensors.batman_adv_refusal import FAMILY, refusal
from mapek.sensors.batman_adv_tables import Hardif, Mesh, Neighbour, Originator, Tables

VERSION = 1
BATADV_CMD_GET_MESH = 1
BATADV_CMD_GET_HARDIF = 5
BATADV_CMD_GET_ORIGINATORS = 8
BATADV_CMD_GET_NEIGHBORS = 9


class batadvmsg(genlmsg):  # type: ignore[misc]
    """A message of the family; attributes in the order of the kernel's enum."""

    prefix = "BATADV_ATTR_"
    nla_map = (
        ("BATADV_ATTR_UNSPEC", "none"),
        ("BATADV_ATTR_VERSION", "asciiz"),
        ("BATADV_ATTR_ALGO_NAME", "asciiz"),
        ("BATADV_ATTR_MESH_IFINDEX", "uint32"),
        ("BATADV_ATTR_MESH_IFNAME", "asciiz"),
        ("BATADV_ATTR_MESH_ADDRESS", "l2addr"),
        ("BATADV_ATTR_HARD_IFINDEX", "uint32"),
        ("BATADV_ATTR_HARD_IFNAME", "asciiz"),
        ("BATADV_ATTR_HARD_ADDRESS", "l2addr"),
        ("BATADV_ATTR_ORIG_ADDRESS", "l2addr"),
        ("BATADV_ATTR_TPMETER_RESULT", "uint8"),
        ("BATADV_ATTR_TPMETER_TEST_TIME", "uint32"),
        ("BATADV_ATTR_TPMETER_BYTES", "uint64"),
        ("BATADV_ATTR_TPMETER_COOKIE", "uint32"),
        ("BATADV_ATTR_PAD", "hex"),
        ("BATADV_ATTR_ACTIVE", "flag"),
        ("BATADV_ATTR_TT_ADDRESS", "l2addr"),
        ("BATADV_ATTR_TT_TTVN", "uint8"),
        ("BATADV_ATTR_TT_LAST_TTVN", "uint8"),
        ("BATADV_ATTR_TT_CRC32", "uint32"),
        ("BATADV_ATTR_TT_VID", "uint16"),
        ("BATADV_ATTR_TT_FLAGS", "uint32"),
        ("BATADV_ATTR_FLAG_BEST", "flag"),
        ("BATADV_ATTR_LAST_SEEN_MSECS", "uint32"),
        ("BATADV_ATTR_NEIGH_ADDRESS", "l2addr"),
        ("BATADV_ATTR_TQ", "uint8"),
        ("BATADV_ATTR_THROUGHPUT", "uint32"),
    )


class AsyncBatadv(AsyncGenericNetlinkSocket):  # type: ignore[misc]
    """The family's requests."""

    module_err_level = "debug"  # what is missing is said once, in our own words

    async def ask(self, command: int, mesh: int, flags: int) -> list[batadvmsg]:
        """The answers about the mesh interface with that index."""
        msg = batadvmsg()
        msg["cmd"], msg["version"] = command, VERSION
        msg["attrs"].append(["BATADV_ATTR_MESH_IFINDEX", mesh])
        return [one async for one in await self._do_dump(msg, flags)]


class Batadv(GenericNetlinkSocket):  # type: ignore[misc]
    """The same for a thread without an event loop."""

    async_class = AsyncBatadv

    def ask(self, command: int, mesh: int, dump: bool = True) -> list[batadvmsg]:
        """As `AsyncBatadv.ask`; a dump, or the one answer of a plain request."""
        flags = NLM_F_REQUEST | (NLM_F_DUMP if dump else 0)
        found: list[batadvmsg] = self._run_with_cleanup(self.asyncore.ask, command, mesh, flags)
        return found


def dump_tables() -> list[Tables]:
    """The tables of every mesh interface in the calling thread's namespace, in the order of their names.

    Raises:
        FeatureError: the kernel has no batman-adv.
        PrivilegeError: CAP_NET_ADMIN is missing.
        NetlinkError: the kernel refused, or a table changed while it was written; try again.
    """
    try:
        with Batadv() as family:
            family.bind(FAMILY, batadvmsg)
            return [_tables(family, index) for index in _meshes()]
    except NetlinkDumpInterrupted as error:
        why = "a table changed while the kernel wrote it"
        raise NetlinkError("dump", FAMILY, why, "try again", code=errno.EINTR) from error
    except PyrouteError as error:
        raise refusal(error.code) from error
    except OSError as error:
        raise refusal(error.errno or errno.EIO) from error


def _meshes() -> list[int]:
    with closing(IPRoute()) as route:
        found = {str(link.get("ifname")): int(link["index"]) for link in route.get_links(kind="batadv")}
    return [found[name] for name in sorted(found)]


def _tables(family: Batadv, index: int) -> Tables:
    (about,) = family.ask(BATADV_CMD_GET_MESH, index, dump=False)
    mesh = Mesh(
        _text(about, "MESH_IFNAME"),
        _text(about, "ALGO_NAME"),
        _text(about, "VERSION"),
        _text(about, "MESH_ADDRESS"),
    )
    hardifs = {
        _number(one, "HARD_IFINDEX"): Hardif(
            _text(one, "HARD_IFNAME"),
            _text(one, "HARD_ADDRESS"),
            one.get_attr("BATADV_ATTR_ACTIVE") is not None,
        )
        for one in family.ask(BATADV_CMD_GET_HARDIF, index)
    }
    originators = [
        Originator(
            _text(one, "ORIG_ADDRESS"),
            _text(one, "NEIGH_ADDRESS"),
            _interface(one, hardifs),
            one.get_attr("BATADV_ATTR_FLAG_BEST") is not None,
            _number(one, "LAST_SEEN_MSECS"),
            _optional(one, "TQ"),
            _optional(one, "THROUGHPUT"),
        )
        for one in family.ask(BATADV_CMD_GET_ORIGINATORS, index)
    ]
    neighbours = [
        Neighbour(
            _text(one, "NEIGH_ADDRESS"),
            _interface(one, hardifs),
            _number(one, "LAST_SEEN_MSECS"),
            _optional(one, "THROUGHPUT"),
        )
        for one in family.ask(BATADV_CMD_GET_NEIGHBORS, index)
    ]
    return Tables(mesh, tuple(hardifs.values()), tuple(originators), tuple(neighbours))


def _interface(one: batadvmsg, hardifs: dict[int, Hardif]) -> str:
    index = _number(one, "HARD_IFINDEX")
    if index in hardifs:
        return hardifs[index].name
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"if{index}"  # it left the mesh between two dumps


def _text(one: batadvmsg, name: str) -> str:
    return str(one.get_attr(f"BATADV_ATTR_{name}") or "")


def _number(one: batadvmsg, name: str) -> int:
    return int(one.get_attr(f"BATADV_ATTR_{name}") or 0)


def _optional(one: batadvmsg, name: str) -> int | None:
    value = one.get_attr(f"BATADV_ATTR_{name}")
    return None if value is None else int(value)
