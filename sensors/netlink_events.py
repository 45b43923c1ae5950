"""What the kernel says on rtnetlink's multicast groups, as events: links, addresses, routes, nexthops.

Decoded are only the attributes that an analyzer can use. A socket that overran has lost messages, and says so.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

from mapek.bpf.rtnl import attributes, split
from mapek.model import Entity, Event, Value
from mapek.sensors.netlink_wire import (
    RTM_DELNEXTHOP,
    RTM_DELROUTE,
    RTM_NEWNEXTHOP,
    RTM_NEWROUTE,
    nexthop_fields,
)

RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_DELADDR = 16, 17, 20, 21
GROUPS: Final = (1, 5, 9, 7, 11, 32)
"""RTNLGRP_LINK, IPV4_IFADDR, IPV6_IFADDR, IPV4_ROUTE, IPV6_ROUTE, NEXTHOP."""

_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_IFF_UP, _IFF_RUNNING, _IFF_LOWER_UP = 0x1, 0x40, 0x10000
_MAIN: Final = 254
_ETHERNET: Final = 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFA_ADDRESS, _RTA_DST, _RTA_OIF, _RTA_PRIORITY = 1, 3, 1, 1, 4, 6


def subscribe(groups: Iterable[int] = GROUPS) -> socket.socket:
    """A non-blocking socket that hears `groups`. A group that the kernel lacks (nexthop, 5.3) is left out."""
    heard = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    heard.setblocking(False)
    heard.bind((0, 0))
    for group in groups:
        try:
            heard.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        except OSError:
            continue
    return heard


@dataclass(slots=True)
class Link:
    """An interface as last heard of; `mac` is its Ethernet address, if it has one."""

    name: str
    ifindex: int
    up: bool
    carrier: bool
    mac: bytes = b""


@dataclass(slots=True)
class Decoder:
    """Makes events of messages; remembers the links, so that only changes become events."""

    links: dict[int, Link] = field(default_factory=dict)
    undecoded: int = 0

    def learn(self, kind: int, body: bytes) -> None:
        """Take a link of a dump in, without an event."""
        if kind == RTM_NEWLINK:
            self._link(kind, body, 0)

    def refreshed(self, dump: Iterable[tuple[int, bytes]], now_ns: int) -> Iterator[Event]:
        """The events that a dump of all links stands for: what changed since they were last heard of."""
        gone = set(self.links)
        for kind, body in dump:
            if kind == RTM_NEWLINK and len(body) >= 16:
                gone.discard(struct.unpack_from("=xxxxi", body)[0])
                if event := self._link(kind, body, now_ns):
                    yield event
        for ifindex in gone:
            yield Event(now_ns, Entity("link", self.links.pop(ifindex).name, ifindex), "link.gone")

    def events(self, data: bytes, now_ns: Callable[[], int]) -> Iterator[Event]:
        """The events in one datagram; what cannot be decoded is counted."""
        for kind, body in split(data):
            try:
                event = self._event(kind, body, now_ns())
            except (struct.error, ValueError):
                self.undecoded += 1
                continue
            if event is not None:
                yield event

    def _event(self, kind: int, body: bytes, now_ns: int) -> Event | None:
        if kind in (RTM_NEWLINK, RTM_DELLINK):
            return self._link(kind, body, now_ns)
        if kind in (RTM_NEWADDR, RTM_DELADDR):
            return self._address(kind, body, now_ns)
        if kind in (RTM_NEWROUTE, RTM_DELROUTE):
            return self._route(kind, body, now_ns)
        if kind in (RTM_NEWNEXTHOP, RTM_DELNEXTHOP):
            return self._nexthop(kind, body, now_ns)
        return None

    def _link(self, kind: int, body: bytes, now_ns: int) -> Event | None:
        family, hardware, ifindex, flags = struct.unpack_from("=BxHiI", body)
        if family:
            return None  # a bridge's port talks of the bridge, not of the link
        found = attributes(body, 16)
        name = found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "replace")
        known = self.links.get(ifindex)
        entity = Entity("link", name or (known.name if known else str(ifindex)), ifindex)
        if kind == RTM_DELLINK:
            self.links.pop(ifindex, None)
            return Event(now_ns, entity, "link.gone")
        mac = found.get(_IFLA_ADDRESS, b"") if hardware == _ETHERNET else b""
        now = Link(entity.name, ifindex, bool(flags & _IFF_UP), bool(flags & _IFF_LOWER_UP), mac)
        self.links[ifindex] = now
        fields: Mapping[str, Value] = {"up": now.up, "carrier": now.carrier}
        well = now.up and now.carrier
        if known is None:
            return Event(now_ns, entity, "link.new", fields)
        if known.name != now.name:
            return Event(now_ns, entity, "link.renamed", {**fields, "before": known.name})
        if well != (known.up and known.carrier):
            return Event(now_ns, entity, "link.up" if well else "link.down", fields)
        if known.mac != now.mac:
            return Event(now_ns, entity, "link.readdressed", {**fields, "mac": now.mac.hex(":")})
        return None

    def _address(self, kind: int, body: bytes, now_ns: int) -> Event | None:
        family, length, _, _, ifindex = struct.unpack_from("=BBBBI", body)
        raw = attributes(body, 8).get(_IFA_ADDRESS)
        if raw is None:
            return None
        known = self.links.get(ifindex)
        entity = Entity("link", known.name if known else str(ifindex), ifindex)
        fields: Mapping[str, Value] = {"address": f"{ip_address(raw)}/{length}", "family": family}
        return Event(now_ns, entity, "address.new" if kind == RTM_NEWADDR else "address.gone", fields)

    def route(self, body: bytes) -> Mapping[str, Value] | None:
        """prefix, protocol, ifindex and metric of a route of the main table; None for another table's.

        Raises struct.error or ValueError for what cannot be decoded.
        """
        family, length, _, _, table, protocol, _, _, _ = struct.unpack_from("=BBBBBBBBI", body)
        if table != _MAIN:
            return None
        found = attributes(body, 12)
        width = 4 if family == socket.AF_INET else 16
        destination = ip_address(found.get(_RTA_DST, bytes(width)))
        oif, metric = found.get(_RTA_OIF, bytes(4)), found.get(_RTA_PRIORITY, bytes(4))
        return {
            "prefix": f"{destination}/{length}",
            "protocol": protocol,
            "ifindex": struct.unpack("=I", oif)[0],
            "metric": struct.unpack("=I", metric)[0],
        }

    def _route(self, kind: int, body: bytes, now_ns: int) -> Event | None:
        fields = self.route(body)
        if fields is None:
            return None
        entity = Entity("service", "routes")
        return Event(now_ns, entity, "route.new" if kind == RTM_NEWROUTE else "route.gone", fields)

    def _nexthop(self, kind: int, body: bytes, now_ns: int) -> Event | None:
        found = nexthop_fields(body)
        if found is None:
            raise ValueError("nexthop message without an id")
        ident, protocol, ifindex, _ = found
        fields: Mapping[str, Value] = {"nexthop": ident, "protocol": protocol, "ifindex": ifindex}
        entity = Entity("service", "routes")
        return Event(now_ns, entity, "nexthop.new" if kind == RTM_NEWNEXTHOP else "nexthop.gone", fields)
